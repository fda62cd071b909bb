"""Judges methods at equal iterations, tokens and seconds, over several seeds.

python -m launch.compare --config=experiments/compare_countdown.py --workdir=DIR

First every method is run with each setting of a short sweep, one seed, on the
validation split; then at its best setting with all seeds, on the test split. A
killed comparison goes on with the same command. `--jobs=N` makes N runs at a
time, each with its share of the cores, or of one accelerator's memory; seconds
are then not compared.

A small one (no sweep, two seeds, a third of the iterations; 8.5 minutes on one
core):

  python -m launch.compare --workdir=DIR --config.values=3e-4
    --config.seeds=0,1 --config.experiment.iterations=20
    --config.methods=tsd,ppo,grpo,cispo,best_of_n,expert_iteration,wide_best_of_n
"""

from absl import flags

from tsd_jax.base import config as config_lib

_CONFIG = flags.DEFINE_string(
  "config", "experiments/compare_countdown.py", "Comparison file."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs.")
_JOBS = flags.DEFINE_integer(
  "jobs", 1, "Runs at a time, each a process.", lower_bound=1
)


def main(overrides):
  """Runs what is missing, prints the table, writes compare.json and .html."""
  folder = config_lib.required(_WORKDIR)
  config = config_lib.from_flags(_CONFIG.value, overrides)
  # Imported late: a bad flag is refused before JAX starts.
  from tsd_jax.base import compilation_cache, progress
  from tsd_jax.comparison import judge

  progress.quiet_libraries()
  compilation_cache.enable()
  command = config_lib.command("launch.compare")
  print(judge.judge(config, folder, command=command, jobs=_JOBS.value))


if __name__ == "__main__":
  config_lib.run(main)
