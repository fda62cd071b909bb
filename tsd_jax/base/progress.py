"""A progress bar on a terminal, plain lines elsewhere."""

import contextlib
import logging
import sys
import time
from typing import Any


def quiet_libraries() -> None:
  """Hides what Orbax, tensorflow-datasets and JAX say of no use to a user.

  The first two log through absl, one line a file; our own warnings stay
  visible. What fails in Orbax is raised too, and told by whoever asked for it.
  """
  # It tells of every backend that is not there.
  logging.getLogger("jax").setLevel(logging.WARNING)

  def wanted(record: logging.LogRecord) -> bool:
    if "orbax" in record.pathname:
      return False
    return record.levelno >= logging.ERROR or "datasets" not in record.pathname

  logging.getLogger("absl").addFilter(wanted)


class Progress:
  """Shows where a run stands: ETA, reward, accuracy, tokens a second."""

  _said: set[str] = set()  # What this process has said once.

  def __init__(self, total: int, done: int, stream=None):
    """Starts the clock.

    Args:
      total: iterations of the run.
      done: iterations made before this process started.
      stream: where to write; standard error by default.
    """
    self._total, self._first = total, done
    self._stream = stream or sys.stderr
    self._terminal = self._stream.isatty()
    self._start = time.monotonic()
    self._tokens = None
    self._accuracy = ""

  def __enter__(self):
    """Nothing to open."""
    return self

  def __exit__(self, *error):
    """Leaves the last state of the bar on its own line."""
    if self._terminal:
      self._write("\n")

  def say(self, text: str, *, once: bool = False) -> None:
    """Writes a line of its own, if there is one to write.

    Args:
      text: the line, or "".
      once: whether the process says it once, however many runs it trains.
    """
    if text and not (once and text in self._said):
      if once:
        self._said.add(text)
      self._write(text + "\n")

  def show(self, row: dict[str, Any]) -> None:
    """Shows a metrics row."""
    step, tokens = row["step"], row["ledger"]["total"]
    elapsed = time.monotonic() - self._start
    for mode, result in row.get("eval", {}).items():
      if mode.startswith("mean@"):
        self._accuracy = f"{mode} {result['accuracy']:.3f}"
    if self._tokens is None:
      self._tokens = tokens if step == self._first else 0
    parts = [f"{step}/{self._total}"]
    if "reward" in row:
      parts.append(f"reward {row['reward']:.3f}")
    if self._accuracy:
      parts.append(self._accuracy)
    made = step - self._first
    if made and elapsed:
      left = elapsed / made * (self._total - step)
      parts.append(f"{(tokens - self._tokens) / elapsed:,.0f} tokens/s")
      parts.append(f"ETA {int(left) // 60}:{int(left) % 60:02d}")
    line = "  ".join(parts)
    if self._terminal:
      width = 20
      full = int(width * step / self._total)
      bar = "█" * full + "░" * (width - full)
      self._write(f"\r\x1b[K{bar} {line}")
    else:
      self._write(line + "\n")

  def _write(self, text: str) -> None:
    with contextlib.suppress(OSError):  # The terminal, or a disk, may be gone.
      self._stream.write(text)
      self._stream.flush()
