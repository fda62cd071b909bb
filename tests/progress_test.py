"""What a run says while it goes on, on a terminal and in a log."""

import io
import os
import re
import subprocess
import sys

import pytest

from tsd_jax.base import progress
from tsd_jax.base.paths import ROOT


class Terminal(io.StringIO):
  def isatty(self):
    return True


def row(step, accuracy=None):
  found = {"step": step, "reward": 0.5, "ledger": {"total": 100 * step}}
  if accuracy is not None:
    found["eval"] = {"mean@16": {"accuracy": accuracy}}
  return found


def last_line(text):
  """What a terminal shows."""
  return text.split("\r\x1b[K")[-1]


def test_an_accuracy_stands_beside_the_iteration_that_it_is_of():
  stream = io.StringIO()
  bar = progress.Progress(20, 0, stream)
  for shown in (row(0, 0.25), row(5), row(10, 0.5), row(15)):
    bar.show(shown)
  said = re.findall(
    r"^(\d+)/20 .*(mean@16.*?)(?:  |$)", stream.getvalue(), re.M
  )
  assert said == [
    ("0", "mean@16 0.250"),
    ("5", "mean@16 0.250 (iteration 0)"),
    ("10", "mean@16 0.500"),
    ("15", "mean@16 0.500 (iteration 10)"),
  ]


def test_a_phase_says_its_seconds_where_it_has_some(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  stream = io.StringIO()
  with progress.phase("compiling", stream=stream):
    now[0] += 62
    assert progress.current() == "compiling (62 s so far)"
    with progress.phase("tracing", stream=stream, quiet=True):
      assert progress.current() == "tracing (0 s so far)"
  with progress.phase("evaluating", stream=stream):
    now[0] += 0.5
  assert stream.getvalue() == ("compiling…\ncompiling took 62 s\nevaluating…\n")
  assert progress.current() == "what is being done"


def test_a_terminal_keeps_its_bar_beside_a_phase(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  stream = Terminal()
  bar = progress.Progress(20, 0, stream)
  with bar.phase("compiling"):
    assert last_line(stream.getvalue()) == "compiling…"
  bar.show(row(5, 0.25))
  shown = last_line(stream.getvalue())
  with bar.phase("evaluating"):
    assert last_line(stream.getvalue()) == f"{shown}  evaluating…"
    now[0] += 12
  assert last_line(stream.getvalue()) == f"evaluating took 12 s\n{shown}"
  bar.say("a line")
  assert last_line(stream.getvalue()) == f"a line\n{shown}"


def test_what_was_compiled_before_is_not_in_the_time_left(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  stream = io.StringIO()
  bar = progress.Progress(20, 0, stream)
  bar.show(row(0))
  now[0] += 60  # Compiles.
  bar.start()
  now[0] += 10
  bar.show(row(5))
  assert "50 tokens/s  ETA 0:30" in stream.getvalue()


def test_a_phase_that_fails_is_over():
  try:
    with progress.phase("compiling", quiet=True):
      raise ValueError
  except ValueError:
    pass
  assert progress.current() == "what is being done"


def test_nothing_is_said_of_a_tpu_that_is_not_there():
  pytest.importorskip("libtpu", reason="needs the extra: tpu")
  code = """
import jax
from tsd_jax.base import progress
progress.quiet_libraries()
print(jax.default_backend())
"""
  environment = dict(os.environ)
  environment.pop("JAX_PLATFORMS")  # As a user has it.
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, env=environment,
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  if done.stdout == "cpu\n":
    assert done.stderr == ""
