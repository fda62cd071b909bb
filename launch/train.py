"""Trains an experiment; resumes where its workdir has a checkpoint.

python -m launch.train --config=experiments/countdown.py --workdir=runs/tsd
"""

from absl import flags

from tsd_jax import config as config_lib

_CONFIG = flags.DEFINE_string(
  "config", "experiments/countdown.py", "Experiment file."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")


def main(overrides):
  """Loads the config and trains."""
  folder = config_lib.required(_WORKDIR)
  config = config_lib.from_flags(_CONFIG.value, overrides)
  # Imported late: a bad flag is refused before JAX starts.
  from tsd_jax import evaluate, progress, train

  progress.quiet_libraries()
  results = train.train(config, folder)
  print(evaluate.table(results))


if __name__ == "__main__":
  config_lib.run(main)
