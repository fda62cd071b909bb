"""Reads many damaged and hostile files, and counts what must not happen.

Model folders, tokenizers, chat templates, GGUF files, problem files, run
folders, config files and flags, each spoilt as its number decides, are read as
the commands read them. An input may be accepted, or refused by a line
(`UserError`); anything else is counted: a traceback, an answer of more than ten
seconds (twice, for other work may be in the way), a process of more than 2 GB.

python -m experiments.benchmarks.fuzz --inputs=20000
python -m experiments.benchmarks.fuzz --inputs=20000 --first=4711 --seconds=600
"""

import collections
import contextlib
import multiprocessing
import pathlib
import random
import shutil
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from typing import NamedTuple

from absl import flags

from tsd_jax.base import config as config_lib
from tsd_jax.base.errors import UserError

SLOW = 10.0  # Seconds.
LARGE = 2 * 10**9  # Bytes.
_START_SECONDS = 300
_ROUND = 2_000  # Inputs of a process.
ACCEPTED, REFUSED = "accepted", "refused"
FAULTS = TRACEBACK, TOO_SLOW, TOO_LARGE, DIED = (
  "traceback", "too slow", "too large", "died",
)  # fmt: skip


class Outcome(NamedTuple):
  """What became of an input."""

  number: int
  kind: str
  what: str  # One of the words above.
  detail: str = ""  # Of an error.
  seconds: float = 0.0


def kind_of(number: int) -> str:
  """The kind of input that a number stands for."""
  from experiments.benchmarks import fuzz_inputs

  return fuzz_inputs.KINDS[number % len(fuzz_inputs.KINDS)]


def read_one(whole: pathlib.Path, folder: pathlib.Path, number: int) -> Outcome:
  """Spoils a copy of a whole input, and reads it.

  Args:
    whole: folder of the whole inputs.
    folder: a new one, for the copy.
    number: of the input.
  """
  from experiments.benchmarks import fuzz_inputs

  kind, rng, start = kind_of(number), random.Random(number), time.monotonic()
  shutil.copytree(whole / kind, folder)
  fuzz_inputs.spoil(folder, kind, rng)
  what, detail = ACCEPTED, ""
  try:
    fuzz_inputs.read(folder, kind, rng)
  except UserError as error:
    what, detail = REFUSED, str(error)
  except BaseException as error:
    lines = traceback.format_tb(error.__traceback__)
    what, detail = TRACEBACK, f"{error!r:.300} {' '.join(lines[-1].split())}"
  return Outcome(number, kind, what, detail, time.monotonic() - start)


def work(pipe: Connection, whole: str) -> None:
  """A process that reads the inputs whose numbers it is sent."""
  from experiments.benchmarks import fuzz_inputs, host_memory
  from tsd_jax.base import progress

  progress.quiet_libraries()
  with tempfile.TemporaryDirectory() as home:
    for kind in fuzz_inputs.KINDS:  # What it compiles is no input's time.
      copied = pathlib.Path(home) / kind
      shutil.copytree(pathlib.Path(whole) / kind, copied)
      with contextlib.suppress(UserError):  # Flags are never whole.
        fuzz_inputs.read(copied, kind, random.Random(0))
    pipe.send(None)
    for number in iter(pipe.recv, None):
      folder = pathlib.Path(home) / str(number)
      outcome = read_one(pathlib.Path(whole), folder, number)
      shutil.rmtree(folder, ignore_errors=True)
      pipe.send((outcome, host_memory.peak()))


class Reader:
  """A process that reads inputs, and is replaced when it is lost."""

  def __init__(self, whole: pathlib.Path):
    self._whole, self._process, self._read = whole, None, 0

  def __call__(self, number: int) -> Outcome:
    """What becomes of an input; a process that was hurt is replaced."""
    if self._process is None:
      self._start()
    start = time.monotonic()
    self._pipe.send(number)
    self._read += 1
    try:
      if not self._pipe.poll(2 * SLOW):
        self.close()
        return Outcome(number, kind_of(number), TOO_SLOW, "killed", 2 * SLOW)
      outcome, peak = self._pipe.recv()
    except (EOFError, OSError):
      self.close()
      spent = time.monotonic() - start
      return Outcome(number, kind_of(number), DIED, "", spent)
    if outcome.seconds > SLOW:
      outcome = outcome._replace(what=TOO_SLOW)
    if peak > LARGE:
      outcome = outcome._replace(what=TOO_LARGE, detail=f"{peak:,} bytes")
    if peak > LARGE or self._read >= _ROUND:
      self.close()
    return outcome

  def _start(self) -> None:
    context = multiprocessing.get_context("spawn")
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(
      target=work, args=(theirs, str(self._whole)), daemon=True
    )
    self._process.start()
    theirs.close()
    self._read = 0
    if not self._pipe.poll(_START_SECONDS):
      raise RuntimeError("the reading process does not start")
    try:
      self._pipe.recv()
    except EOFError as error:
      raise RuntimeError("the reading process ended at its start") from error

  def close(self) -> None:
    """Ends the process."""
    if self._process is not None:
      self._process.kill()
      self._process.join()
      self._pipe.close()
      self._process = None


def fuzz(
  inputs: int, first: int = 0, seconds: float = float("inf")
) -> list[Outcome]:
  """Reads inputs one after the other.

  Args:
    inputs: how many.
    first: number of the first.
    seconds: when to stop early.
  """
  from experiments.benchmarks import fuzz_inputs

  outcomes, start = [], time.monotonic()
  with tempfile.TemporaryDirectory() as home:
    whole = pathlib.Path(home)
    fuzz_inputs.write_all(whole)
    reader = Reader(whole)
    try:
      for number in range(first, first + inputs):
        if time.monotonic() - start > seconds:
          break
        outcome = reader(number)
        if outcome.what == TOO_SLOW:  # Once more: the machine may be busy.
          outcome = reader(number)
        outcomes.append(outcome)
    finally:
      reader.close()
  return outcomes


def table(outcomes: list[Outcome]) -> str:
  """Lines of text: counts by kind, then every fault."""
  columns = (ACCEPTED, REFUSED, *FAULTS)
  counts = collections.Counter((o.kind, o.what) for o in outcomes)
  lines = [f"{'':>10}" + "".join(f"{what:>11}" for what in columns)]
  for kind in dict.fromkeys(o.kind for o in outcomes):
    row = "".join(f"{counts[kind, what]:>11,}" for what in columns)
    lines.append(f"{kind:>10}{row}")
  total = collections.Counter(o.what for o in outcomes)
  lines.append(f"{'all':>10}" + "".join(f"{total[w]:>11,}" for w in columns))
  slowest = max(o.seconds for o in outcomes)
  lines.append(f"{len(outcomes):,} inputs, the slowest {slowest:.1f} s")
  for o in outcomes:
    if o.what in FAULTS:
      lines.append(f"{o.number} {o.kind}: {o.what}, {o.detail}")
  return "\n".join(lines)


def main(overrides):
  """Prints the table; exit code 1 where something must not have happened."""
  del overrides
  outcomes = fuzz(_INPUTS.value, _FIRST.value, _SECONDS.value)
  print(table(outcomes))
  return int(any(o.what in FAULTS for o in outcomes))


if __name__ == "__main__":  # Others import this module: no flags for them.
  _INPUTS = flags.DEFINE_integer("inputs", 20_000, "How many.", lower_bound=1)
  _FIRST = flags.DEFINE_integer("first", 0, "Number of the first input.")
  _SECONDS = flags.DEFINE_float("seconds", float("inf"), "When to stop early.")
  config_lib.run(main)
