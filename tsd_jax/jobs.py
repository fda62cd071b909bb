"""Several trainings at a time, each in a process of its own.

One small model fills neither the cores of a host nor an accelerator. Every
process gets its share of the cores that may be used, and of an accelerator's
memory. Processes die with the one that asked for them.
"""

import concurrent.futures
import json
import os
import pathlib
import queue
import subprocess
import sys
from collections.abc import Mapping, Sequence

from tsd_jax import config as config_lib
from tsd_jax import config_json, progress, supervisor, train, workdir
from tsd_jax.config import UserError
from tsd_jax.experiment import Experiment

# Of an accelerator's memory, for all processes; what a runtime needs is beside.
MEMORY = 0.9


def train_all(groups: Sequence[Mapping[pathlib.Path, Experiment]], jobs: int):
  """Trains where that is not done yet, and says what is begun and done.

  Args:
    groups: runs by folder; those of a group are lanes of one program.
    jobs: processes at a time; one group after another in this process if 1.
      A process prints to FOLDER.log beside its first folder.

  Raises:
    UserError: for runs that failed, after all others are done.
    KeyboardInterrupt: once all processes have saved a checkpoint.
  """
  if jobs == 1:
    for runs in groups:
      print(*runs, sep="\n", flush=True)
      train.train_together(list(runs.values()), list(runs))
    return
  todo = [
    runs
    for runs in groups
    if any(workdir.results(run, folder) is None for folder, run in runs.items())
  ]
  slots: queue.Queue[list[int]] = queue.Queue()
  for cores in shares(jobs):
    slots.put(cores)
  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    waiting = [pool.submit(_in_process, runs, slots, jobs) for runs in todo]
    try:
      failed = []
      ended = concurrent.futures.as_completed(waiting)
      for count, future in enumerate(ended, 1):
        text, failure = future.result()
        print(f"{count}/{len(todo)} {text}", flush=True)
        failed += [failure] if failure else []
    except BaseException:
      for future in waiting:
        future.cancel()
      raise
  if failed:
    raise UserError(f"{len(failed)} of {len(todo)} runs failed: {failed[0]}")


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


def _in_process(runs, slots, jobs) -> tuple[str, str | None]:
  """Runs a group; gives what became of it, and what went wrong."""
  first = next(iter(runs))
  log = first.with_name(first.name + ".log")
  log.parent.mkdir(parents=True, exist_ok=True)
  cores = slots.get()
  order = {
    "cores": cores,
    "runs": {str(f): config_json.to_dict(run) for f, run in runs.items()},
  }
  share = f"{MEMORY / jobs:.3f}"
  try:
    with open(log, "ab") as out:
      # The terminal's Ctrl-C reaches them too: they save, then this one ends.
      done = subprocess.run(
        supervisor.tied(
          [sys.executable, "-m", "tsd_jax.jobs"], parent=os.getpid()
        ),
        input=json.dumps(order).encode(),
        stdout=out,
        stderr=subprocess.STDOUT,
        env={"XLA_PYTHON_CLIENT_MEM_FRACTION": share} | os.environ,
        check=False,
      )
  finally:
    slots.put(cores)
  names = " ".join(map(str, runs))
  if done.returncode == 0:
    return names, None
  lines = log.read_text(errors="replace").strip().splitlines() or [""]
  failure = f"{names} (exit code {done.returncode}, {log}): {lines[-1]}"
  return f"{names} FAILED", failure


def main(overrides) -> None:
  """Trains the runs that standard input names."""
  del overrides
  order = json.load(sys.stdin)
  if order["cores"]:  # Before JAX counts them.
    os.sched_setaffinity(0, order["cores"])
  progress.quiet_libraries()
  runs = {
    folder: config_json.from_dict(Experiment, saved)
    for folder, saved in order["runs"].items()
  }
  train.train_together(list(runs.values()), list(runs))


if __name__ == "__main__":
  config_lib.run(main)
