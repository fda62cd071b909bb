"""Several trainings at a time, each in a process of its own.

One small model fills neither the cores of a host nor an accelerator. Every
process is bound to its share of the cores, and takes its share of the memory of
the accelerators, which all of them see; of the host's memory each counts the
whole. They save and end when this process is asked to, and die with it.
"""

import concurrent.futures
import json
import os
import pathlib
import queue
import subprocess
import sys
from collections.abc import Mapping, Sequence

from tsd_jax.base import (
  compilation_cache,
  config_json,
  names,
  output_files,
  progress,
  signals,
)
from tsd_jax.base import config as config_lib
from tsd_jax.base.errors import UserError
from tsd_jax.comparison import counts
from tsd_jax.comparison.counts import Plan
from tsd_jax.parallel import supervisor
from tsd_jax.run import directory, train
from tsd_jax.run.experiment import Experiment

# Of an accelerator's memory, for all processes; what a runtime needs is beside.
_MEMORY = 0.9
_FRACTIONS = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION")

Runs = Mapping[pathlib.Path, Experiment]  # By folder: runs of one program.


def train_all(
  groups: Sequence[Runs],
  jobs: int,
  plan: Plan | None = None,
  *,
  alone: bool = False,
) -> None:
  """Trains where that is not done yet, and says what is begun or done.

  Args:
    groups: the runs.
    jobs: processes at a time; one group after another in this process if 1. A
      process prints to FOLDER.log beside its first folder.
    plan: what is measured of every run at its end; nothing if None.
    alone: one process at a time, with the cores of one of the jobs: its seconds
      are then its own.

  Raises:
    UserError: for runs that failed, after all others are done.
    KeyboardInterrupt, SystemExit: after SIGINT and SIGTERM, once all processes
      have saved a checkpoint.
  """
  todo = [runs for runs in groups if not all(map(_done(plan), runs.items()))]
  if not todo:
    return
  if jobs == 1:
    for runs in todo:
      print(*runs, sep="\n", flush=True)
      _train(runs, plan)
    return
  with signals.requests(lambda: "the runs that are going on") as asked:
    at_a_time = 1 if alone else min(jobs, len(todo))
    cores = shares(jobs if alone else at_a_time)[:at_a_time]
    failed = _Processes(cores, asked, plan).run(todo)
  if asked:
    signals.end(asked)
  if failed:
    raise UserError(f"{len(failed)} of {len(todo)} runs failed: {failed[0]}")


def _train(runs: Runs, plan: Plan | None) -> None:
  """Trains and measures the runs of a program."""
  train.train_vmapped(list(runs.values()), list(runs))
  if plan:
    for folder in runs:
      counts.measure(folder, plan)


def _done(plan: Plan | None):
  """Whether nothing is left to do of a run."""

  def done(item: tuple[pathlib.Path, Experiment]) -> bool:
    folder, run = item
    if directory.results(run, folder) is None:
      return False
    return plan is None or counts.read(folder, plan) is not None

  return done


def shares(jobs: int) -> list[list[int]]:
  """Cores for each of some processes; none where a system cannot bind them."""
  if not hasattr(os, "sched_setaffinity"):
    return [[]] * jobs
  cores = sorted(os.sched_getaffinity(0))
  size = max(1, len(cores) // jobs)
  return [
    [cores[(job * size + i) % len(cores)] for i in range(size)]
    for job in range(jobs)
  ]


class _Processes:
  """Processes that train, and the cores that are free for the next."""

  def __init__(
    self, cores: list[list[int]], asked: list[int], plan: Plan | None
  ):
    """Starts none.

    Args:
      cores: of each that runs at a time.
      asked: filled by signals: then all are asked to save and end.
      plan: what they measure at their end.
    """
    self._jobs, self._asked, self._plan = len(cores), asked, plan
    self._running: set[subprocess.Popen] = set()
    self._free: queue.Queue[list[int]] = queue.Queue()
    for share in cores:
      self._free.put(share)

  def run(self, todo: Sequence[Runs]) -> list[str]:
    """Trains all; gives what went wrong, where something did."""
    failed, count, told = [], 0, False
    with concurrent.futures.ThreadPoolExecutor(self._jobs) as pool:
      waiting = {pool.submit(self._train, runs): runs for runs in todo}
      while waiting:
        # Signals are only handled between two waits.
        done, _ = concurrent.futures.wait(waiting, timeout=0.5)
        if self._asked and not told:
          print("asked to stop: the runs save a checkpoint", flush=True)
          told = True
          for process in list(self._running):
            process.send_signal(self._asked[0])
        for future in done:
          names = " ".join(map(str, waiting.pop(future)))
          failure, count = future.result(), count + 1
          if not self._asked:
            end = " FAILED" if failure else ""
            print(f"{count}/{len(todo)} {names}{end}", flush=True)
          if failure:
            failed.append(f"{names}: {failure}")
    return failed

  def _train(self, runs: Runs) -> str | None:
    """Trains a group; gives what went wrong."""
    if self._asked:
      return None
    first = next(iter(runs))
    log = first.with_name(first.name + ".log")
    with output_files.writing(log):
      log.parent.mkdir(parents=True, exist_ok=True)
      log.touch()
    before = log.stat().st_size if log.exists() else 0
    cores = self._free.get()
    saved = {str(f): config_json.to_dict(run) for f, run in runs.items()}
    order = {"cores": cores, "runs": saved, "imports": names.allowed()}
    order["plan"] = self._plan
    try:
      with open(log, "ab") as out:
        # Its own session: a terminal's Ctrl-C reaches it once, through us.
        process = subprocess.Popen(
          supervisor.tied(
            [sys.executable, "-m", "tsd_jax.comparison.jobs"],
            parent=os.getpid(),
          ),
          stdin=subprocess.PIPE,
          stdout=out,
          stderr=subprocess.STDOUT,
          env=self._environment(),
          start_new_session=True,
        )
        self._running.add(process)
        if self._asked:  # The others were told before it was there.
          process.send_signal(self._asked[0])
        process.communicate(json.dumps(order).encode())
        self._running.discard(process)
    finally:
      self._free.put(cores)
    if process.returncode == 0:
      return None
    said = log.read_bytes()[before:].decode(errors="replace").strip()
    last = said.splitlines()[-1:] or ["it said nothing"]
    return f"exit code {process.returncode}, {last[0]} ({log})"

  def _environment(self) -> dict[str, str]:
    """Of a process: what this one imports, and a part of the memory."""
    found = dict(os.environ, PYTHONPATH=supervisor.import_path())
    if not any(name in found for name in _FRACTIONS):
      found[_FRACTIONS[0]] = f"{_MEMORY / self._jobs:.3f}"
    return found


def main(overrides) -> None:
  """Trains the runs that standard input names."""
  del overrides
  order = json.load(sys.stdin)
  if order["cores"]:  # Before JAX counts them.
    os.sched_setaffinity(0, order["cores"])
  progress.quiet_libraries()
  compilation_cache.enable()
  names.allow(order["imports"])
  runs = {
    pathlib.Path(folder): config_json.from_dict(Experiment, saved)
    for folder, saved in order["runs"].items()
  }
  _train(runs, Plan(*order["plan"]) if order["plan"] else None)


if __name__ == "__main__":
  config_lib.run(main)
