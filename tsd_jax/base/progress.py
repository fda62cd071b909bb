"""A progress bar on a terminal, plain lines elsewhere, and what takes long."""

import contextlib
import importlib.util
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

import jax

_CLEAR = "\r\x1b[K"  # Empties the line of a terminal.
_phases: list[tuple[str, float]] = []  # That are going on, the innermost last.


def current() -> str:
  """Names what is being done, with its seconds so far."""
  if not _phases:
    return "what is being done"
  name, start = _phases[-1]
  return f"{name} ({time.monotonic() - start:.0f} s so far)"


@contextlib.contextmanager
def phase(
  name: str,
  *,
  quiet: bool = False,
  stream: TextIO | None = None,
  bar: str = "",
) -> Iterator[None]:
  """Says what begins, and how long it took where that was a second or more.

  Args:
    name: such as "compiling".
    quiet: whether to say nothing; `current` knows of it all the same.
    stream: where to write; standard error by default.
    bar: what stands in the line of a terminal.
  """
  out = stream or sys.stderr
  terminal, start = out.isatty(), time.monotonic()

  def write(text: str) -> None:
    if text and not quiet:
      out.write(text)
      out.flush()

  begin, end = (f"{_CLEAR}{bar}  ", _CLEAR) if terminal else ("", "")
  write(f"{begin if bar else end}{name}…{'' if terminal else chr(10)}")
  _phases.append((name, start))
  try:
    yield
  finally:
    _phases.pop()
    seconds = time.monotonic() - start
    took = f"{name} took {seconds:.0f} s\n" if seconds >= 1 else ""
    write(f"{end}{took}{bar}")


def quiet_libraries() -> None:
  """Hides what Orbax, tensorflow-datasets and JAX say of no use to a user.

  The first two log through absl, one line a file; our own warnings stay
  visible. Where JAX has seen no chip of a TPU and has no plugin for another
  accelerator, libtpu is not asked, which would print errors. What fails in
  Orbax is raised too, and told by whoever asked for it.
  """
  plugins = importlib.util.find_spec("jax_plugins")
  said = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
  if not said and plugins is None:
    jax.config.update("jax_platforms", "cpu")
  # It tells of every backend that is not there.
  logging.getLogger("jax").setLevel(logging.WARNING)

  def wanted(record: logging.LogRecord) -> bool:
    if "orbax" in record.pathname:
      return False
    return record.levelno >= logging.ERROR or "datasets" not in record.pathname

  logging.getLogger("absl").addFilter(wanted)
  # Of Orbax, which alone uses it here: why a save has failed, task by task.
  logging.getLogger("asyncio").addFilter(
    lambda record: "never retrieved" not in record.getMessage()
  )
  warnings.filterwarnings("ignore", "coroutine .* was never awaited")
  hook = sys.unraisablehook

  def told(failure) -> None:
    # Of writes that end after their save has failed, or after everything.
    if str(failure.exc_value) not in _ENDED:
      hook(failure)

  sys.unraisablehook = told


_ENDED = (
  "Event loop is closed",
  "sys.meta_path is None, Python is likely shutting down",
)


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
    self._accuracy, self._measured = "", 0
    self._bar = ""

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
      self._write((_CLEAR if self._terminal else "") + text + "\n" + self._bar)

  def start(self) -> None:
    """Starts the clock anew: what was compiled before counts no longer."""
    self._start = time.monotonic()

  def phase(self, name: str, *, quiet: bool = False):
    """Says what begins, and how long it took; see `phase`."""
    return phase(name, quiet=quiet, stream=self._stream, bar=self._bar)

  def show(self, row: dict[str, Any]) -> None:
    """Shows a metrics row."""
    step, tokens = row["step"], row["ledger"]["total"]
    elapsed = time.monotonic() - self._start
    for mode, result in row.get("eval", {}).items():
      if mode.startswith("mean@"):
        self._accuracy = f"{mode} {result['accuracy']:.3f}"
        self._measured = step
    if self._tokens is None:
      self._tokens = tokens if step == self._first else 0
    parts = [f"{step}/{self._total}"]
    if "reward" in row:
      parts.append(f"reward {row['reward']:.3f}")
    if self._accuracy:
      then = f" (iteration {self._measured})" * (step != self._measured)
      parts.append(self._accuracy + then)
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
      self._bar = f"{bar} {line}"
      self._write(_CLEAR + self._bar)
    else:
      self._write(line + "\n")

  def _write(self, text: str) -> None:
    with contextlib.suppress(OSError):  # The terminal, or a disk, may be gone.
      self._stream.write(text)
      self._stream.flush()
