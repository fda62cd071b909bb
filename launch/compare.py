"""Judges methods at equal iterations, tokens and seconds, over several seeds.

python -m launch.compare --config=experiments/compare_countdown.py --workdir=DIR

First every method tries as many settings, one seed, on tuning problems; then it
trains at its best one with all seeds, and answers the test problems. A killed
comparison goes on with the same command. `--jobs=N` makes N runs at a time,
each with its share of the cores, or of one accelerator's memory; seconds are
then compared with `--timed` alone, which trains the seeds one at a time.

A small one (the recipes' settings, two seeds, a third of the tokens):

  python -m launch.compare --workdir=DIR --config.trials=1
    --config.seeds=0,1 --config.tokens=1e6
    --config.methods=tsd,ppo,grpo,cispo,best_of_n,filtered_best_of_n
"""

from absl import flags

from tsd_jax.base import config as config_lib

_CONFIG = flags.DEFINE_string(
  "config", "experiments/compare_countdown.py", "Comparison file."
)
_WORKDIR = config_lib.path_flag("workdir", None, "Folder of all runs.")
_JOBS = flags.DEFINE_integer(
  "jobs", 1, "Runs at a time, each a process.", lower_bound=1
)

_TIMED = flags.DEFINE_bool(
  "timed", False, "With --jobs: reported runs train one at a time."
)


def main(overrides):
  """Runs what is missing, prints the table, writes compare.json and .html."""
  folder = config_lib.required(_WORKDIR)
  config = config_lib.from_flags(_CONFIG.value, overrides, "Comparison")
  # Imported late: a bad flag is refused before JAX starts.
  from tsd_jax.base import compilation_cache, progress
  from tsd_jax.comparison import judge

  progress.quiet_libraries()
  compilation_cache.enable()
  command = config_lib.command("launch.compare")
  shown = judge.judge(
    config, folder, command=command, jobs=_JOBS.value, timed=_TIMED.value
  )
  print(shown)


if __name__ == "__main__":
  config_lib.run(main)
