"""Trains an experiment; resumes where its workdir has a checkpoint.

python -m launch.train --config=experiments/countdown.py --workdir=runs/tsd

With --max_restarts=N a parent process starts the run again when it dies. With
--distributed the same command runs on every host of a pod (TPU, GKE, Slurm).

Exit codes: 0 finished; 2 bad input, a broken loss, or a reward function whose
calls all failed; 143 after SIGTERM, 129 after SIGHUP and 130 after Ctrl-C, with
a checkpoint written: the same command goes on. A second such signal ends at
once, without.
"""

import pathlib
import sys

from absl import flags

from tsd_jax.base import config as config_lib
from tsd_jax.parallel import supervisor

_CONFIG = flags.DEFINE_string(
  "config", "experiments/countdown.py", "Experiment file."
)
_WORKDIR = config_lib.path_flag("workdir", None, "Folder of the run.")
_RESTARTS = flags.DEFINE_integer(
  "max_restarts",
  0,
  "How often a run that died is started again.",
  lower_bound=0,
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "One of several processes that train together."
)

_JOIN = flags.DEFINE_integer(
  "join_seconds", 300, "How long to wait for the other processes at the start."
)
_HEARTBEAT = flags.DEFINE_integer(
  "heartbeat_seconds", 20, "A process silent for so long ends the others."
)


def main(overrides):
  """Loads the config and trains, or looks after a process that does."""
  folder = config_lib.required(_WORKDIR)
  if _RESTARTS.value:
    command = [sys.executable, *sys.orig_argv[1:], "--max_restarts=0"]
    return supervisor.supervise(command, _RESTARTS.value)
  # Imported late: a bad flag is refused before JAX starts.
  config = config_lib.from_flags(_CONFIG.value, overrides, "Experiment")
  from tsd_jax.base import compilation_cache, progress
  from tsd_jax.parallel import processes
  from tsd_jax.run import directory, evaluation, train

  progress.quiet_libraries()
  compilation_cache.enable()
  results = None
  if _DISTRIBUTED.value:
    # One that died when the others were done finds nobody to join.
    results = directory.results(config, pathlib.Path(folder))
    if results is None:
      processes.initialize(_HEARTBEAT.value, _JOIN.value)
  if results is None:
    with processes.ending_at_once():
      results = train.train(config, folder)
  if results:  # Of several processes only the leader has them.
    print(evaluation.table(results))
    print(f"plots and samples: {pathlib.Path(folder) / directory.REPORT}")


if __name__ == "__main__":
  config_lib.run(main)
