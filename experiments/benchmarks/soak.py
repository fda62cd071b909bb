"""Long trials of what must not happen, and a table of how often it did.

Damaged and hostile files (`fuzz`), reward functions that were taken over
(tests/hostile_test.py), a run that is killed again and again, the memory of one
that goes on for thousands of iterations, and that of checkpoints; how much
sooner a run goes on with compiled programs than without. A number of 0 leaves a
part out.

python -m experiments.benchmarks.soak --out=experiments/results/soak.json
"""

import collections
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.benchmarks import fuzz, graded_calls, host_memory
from tsd_jax.base import config as config_lib
from tsd_jax.base import progress
from tsd_jax.models import weights
from tsd_jax.run import checkpoint, directory, load

ROOT = pathlib.Path(__file__).resolve().parents[2]
_ROWS_A_KILL = 60  # Iterations of a run that is killed, for each kill.
_START_SECONDS = 20.0  # Within which a run is killed that has no rows yet.
_HANG_SECONDS = 300.0
_SETTLED = 0.2  # Of a run: what its memory is measured against.


def train(
  config: str,
  workdir: pathlib.Path,
  iterations: int,
  environment: Mapping[str, str] = types.MappingProxyType({}),
  **changes,
):
  """Starts a run, or goes on with it, as a process of its own."""
  settings = dict(iterations=iterations, iterations_per_call=1) | changes
  with open(f"{workdir}.log", "a") as log:
    return subprocess.Popen(
      [
        sys.executable, "-m", "launch.train", f"--config={config}",
        f"--workdir={workdir}", "--config.eval.every=0",
        *(f"--config.{name}={value}" for name, value in settings.items()),
      ],
      cwd=ROOT, stdout=log, stderr=log, env=os.environ | environment,
    )  # fmt: skip


def rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """A run's metrics, less the time they took."""
  file = workdir / directory.METRICS
  lines = file.read_text().splitlines() if file.exists() else []
  found = []
  for line in lines:
    try:
      found.append(json.loads(line))
    except json.JSONDecodeError:  # It is being written.
      break
  return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


def rows_made(workdir: pathlib.Path) -> int:
  """How many rows a run has written; cheap, for it is asked all the time."""
  file = workdir / directory.METRICS
  return file.read_bytes().count(b"\n") if file.exists() else 0


def kill_once(process, workdir: pathlib.Path, rng: random.Random) -> None:
  """Kills a run while it starts, or some rows after it went on.

  Raises:
    RuntimeError: it ended before.
  """
  before, start = rows_made(workdir), time.monotonic()
  while_starting = rng.random() < 0.25
  patience = _START_SECONDS * rng.random() if while_starting else _HANG_SECONDS
  while rows_made(workdir) <= before and time.monotonic() - start < patience:
    if process.poll() is not None:
      raise RuntimeError(f"the run ended by itself: {workdir}.log")
    time.sleep(0.01)
  if not while_starting:
    time.sleep(rng.random())
  process.kill()
  process.wait()


def compare(
  expected: list[dict[str, Any]], found: list[dict[str, Any]]
) -> tuple[int, int]:
  """Counts rows that are lost or there twice, and rows that differ."""
  steps = {row["step"]: row for row in found}
  lost = sum(row["step"] not in steps for row in expected)
  different = sum(steps.get(row["step"], row) != row for row in expected)
  return lost + len(found) - len(steps), different


def kills(
  config: str, times: int, seed: int, folder: pathlib.Path
) -> dict[str, int]:
  """Kills a run, goes on with it, and compares it with one left in peace.

  Args:
    config: the runs' config file.
    times: how often it is killed.
    seed: decides when.
    folder: where the runs are kept.

  Returns:
    Counts: `kills`, `rows`, `lost`, `different`, and `parameters` that differ.
  """
  calm, stormy = folder / "calm", folder / "stormy"
  iterations, rng = _ROWS_A_KILL * times, random.Random(seed)
  for _ in range(times):
    kill_once(train(config, stormy, iterations), stormy, rng)
  for workdir in (stormy, calm):
    if train(config, workdir, iterations).wait():
      raise RuntimeError(f"the run failed: {workdir}.log")
  lost, different = compare(rows(calm), rows(stormy))
  one, other = (
    weights.flatten(load.open_run(workdir).params) for workdir in (calm, stormy)
  )
  return dict(
    kills=times,
    rows=len(rows(calm)),
    lost=lost,
    different=different,
    parameters=sum(not np.array_equal(one[name], other[name]) for name in one),
  )


def resumes(config: str, times: int, folder: pathlib.Path) -> dict[str, float]:
  """Goes on with a killed run, by turns with compiled programs and without.

  Args:
    config: its config file.
    times: how often each.
    folder: where it is kept, with the programs.

  Returns:
    `cached`, `compiled`: seconds from the start of the process to its first
    row, medians; `cached_program`, `compiled_program`: those of them until its
    program is there, as the run says them; `times`.
  """
  workdir, cache = folder / "resumed", folder / "programs"
  names = ("cached", "compiled", "cached_program", "compiled_program")
  seconds: dict[str, list[float]] = {name: [] for name in names}
  for name in ["begun"] + ["cached", "compiled"] * times:
    place = folder / "none" if name == "compiled" else cache
    shutil.rmtree(folder / "none", ignore_errors=True)
    environment = {"JAX_COMPILATION_CACHE_DIR": str(place)}
    before, start = rows_made(workdir), time.monotonic()
    process = train(
      config, workdir, 1000, environment=environment, checkpoint_every=1
    )
    while rows_made(workdir) <= before:
      if process.poll() is not None:
        raise RuntimeError(f"the run ended by itself: {workdir}.log")
      time.sleep(0.01)
    if name in seconds:
      seconds[name].append(time.monotonic() - start)
      log = pathlib.Path(f"{workdir}.log").read_text()
      program = re.findall(r"compiling took (\d+) s", log)[-1]
      seconds[f"{name}_program"].append(float(program))
    # With a checkpoint on disk, and all programs that it has compiled.
    process.send_signal(signal.SIGTERM)
    process.wait()
  medians = {name: float(np.median(s)) for name, s in seconds.items()}
  return dict(times=times, **medians)


def growth(
  config: str, iterations: int, folder: pathlib.Path
) -> dict[str, float]:
  """Watches the memory of a run.

  Args:
    config: its config file.
    iterations: how many it makes, with 50 checkpoints.
    folder: where it is kept.

  Returns:
    `iterations`, `seconds`, and `settled` and `ended`: MiB, medians over a
    tenth of the run, the first after a fifth of it.
  """
  workdir, start = folder / "long", time.monotonic()
  process = train(
    config, workdir, iterations, checkpoint_every=iterations // 50
  )
  held = np.zeros(iterations + 1)
  while process.poll() is None:
    held[rows_made(workdir) - 1] = host_memory.held(process.pid)
    time.sleep(0.05)
  if process.returncode:
    raise RuntimeError(f"the run failed: {workdir}.log")
  tenth = iterations // 10
  first = int(_SETTLED * iterations)
  settled, ended = (
    float(np.median(part[part > 0])) / 2**20
    for part in (held[first : first + tenth], held[-tenth - 1 : -1])
  )
  return dict(
    iterations=iterations,
    seconds=time.monotonic() - start,
    settled=settled,
    ended=ended,
  )


def saves(
  times: int, arrays: int, side: int, folder: pathlib.Path
) -> dict[str, float]:
  """Writes checkpoints, and watches this process.

  Args:
    times: how many.
    arrays: of the state, float32.
    side: of each, which is a square.
    folder: where they are kept.

  Returns:
    What was asked, and `kib`: growth a checkpoint, the first quarter left out.
  """
  checkpointer = checkpoint.Checkpointer(folder)
  state = {f"{i}": jnp.ones((side, side)) for i in range(arrays)}
  for step in range(times):
    checkpointer.save_now(step, state, {"step": step})
    if step == times // 4:
      before = host_memory.held()
  grown = host_memory.held() - before
  checkpointer.close()
  kib = grown / 1024 / (times - 1 - times // 4)
  return dict(times=times, arrays=arrays, side=side, kib=kib)


def inputs(count: int) -> dict[str, float]:
  """Reads damaged inputs; counts by what became of them."""
  outcomes = fuzz.fuzz(count)
  print(fuzz.table(outcomes), file=sys.stderr)
  counts = collections.Counter(o.what for o in outcomes)
  words = (fuzz.ACCEPTED, fuzz.REFUSED, *fuzz.FAULTS)
  slowest = max(o.seconds for o in outcomes)
  return {word: counts[word] for word in words} | dict(slowest=slowest)


def hostile(seconds: int) -> dict[str, float]:
  """Grades beside functions that were taken over.

  Args:
    seconds: of each seed of the suite's long test.

  Returns:
    Counts: calls `graded` in that test, `tests`, and those that `failed`, which
    one wrong reward or one call that does not end is enough for.
  """
  with tempfile.TemporaryDirectory() as home:
    file = pathlib.Path(home) / "junit.xml"
    subprocess.run(
      [sys.executable, "-m", "pytest", "-q", "-m", "", f"--junitxml={file}",
       "tests/hostile_test.py"],
      cwd=ROOT, check=False, stdout=sys.stderr,
      env=os.environ | {"TSD_JAX_HOSTILE_SECONDS": str(seconds)},
    )  # fmt: skip
    suite = ET.parse(file).getroot()[0]
  graded = [int(p.attrib["value"]) for p in suite.iter("property")]
  return dict(
    graded=sum(graded),
    tests=int(suite.attrib["tests"]),
    failed=int(suite.attrib["failures"]) + int(suite.attrib["errors"]),
  )


def main(overrides):
  """Prints the table; writes it as JSON."""
  del overrides
  progress.quiet_libraries()
  found: dict[str, Any] = {}
  with tempfile.TemporaryDirectory() as home:
    folder = pathlib.Path(home)
    if _KILLS.value:
      found["kills"] = kills(_RUN.value, _KILLS.value, _SEED.value, folder)
      _tell(found)
    if _ITERATIONS.value:
      found["memory"] = growth(_RUN.value, _ITERATIONS.value, folder)
      _tell(found)
    if _RESUMES.value:
      found["resumes"] = resumes(
        "experiments/countdown.py", _RESUMES.value, folder
      )
      _tell(found)
    if _SAVES.value:
      found["saves"] = saves(
        _SAVES.value, _ARRAYS.value, _SIDE.value, folder / "saves"
      )
      _tell(found)
  if _SECONDS.value:
    found["hostile"] = hostile(_SECONDS.value)
    calls = graded_calls.measure(graded_calls.shared, 2_000, 5, 2)
    found["graded_calls"] = calls
    _tell(found)
  if _INPUTS.value:
    found["inputs"] = inputs(_INPUTS.value)
    _tell(found)
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(json.dumps(found, indent=1) + "\n")


def _tell(found: dict[str, Any]) -> None:
  name = next(reversed(found))
  print(name, json.dumps(found[name]), flush=True)


if __name__ == "__main__":
  _INPUTS = flags.DEFINE_integer("inputs", 20_000, "Damaged inputs.")
  _SECONDS = flags.DEFINE_integer("hostile_seconds", 120, "Of each of 4 seeds.")
  _KILLS = flags.DEFINE_integer("kills", 30, "Kills of a run.")
  _ITERATIONS = flags.DEFINE_integer("iterations", 5_000, "Of the run watched.")
  _RESUMES = flags.DEFINE_integer("resumes", 3, "Of the default experiment.")
  _SAVES = flags.DEFINE_integer("saves", 200, "Checkpoints in a row.")
  _ARRAYS = flags.DEFINE_integer("arrays", 20, "Of such a checkpoint.")
  _SIDE = flags.DEFINE_integer("side", 64, "Of such an array.")
  _RUN = flags.DEFINE_string(
    "run", "tests/small_experiment.py", "Config of the runs."
  )
  _SEED = flags.DEFINE_integer("seed", 0, "Of the moments of the kills.")
  _OUT = flags.DEFINE_string("out", None, "JSON file to write.")
  config_lib.run(main)
