"""Trains a policy on pairs of responses by direct preference optimisation.

python -m launch.train_dpo --pairs=FILE --model=FOLDER --workdir=DIR
python -m launch.train_dpo --pairs=FILE --model=FOLDER --workdir=DIR --beta=0.3

The reference is the model that it starts from. DIR/model is a language model,
which `launch.generate`, an experiment's `init` and transformers read.
"""

from absl import flags

from launch import pair_flags
from tsd_jax.base import config as config_lib

_RATE = flags.DEFINE_float("learning_rate", 1e-6, "Its peak.")
_BETA = flags.DEFINE_float("beta", 0.1, "Weight of the KL to the reference.")


def main(overrides):
  """Trains, prints what was measured, writes the folder."""
  del overrides
  files, fit = pair_flags.read(_RATE.value)
  from tsd_jax.base import compilation_cache, progress
  from tsd_jax.run import pair_measures, preferences

  progress.quiet_libraries()
  compilation_cache.enable()
  measured = preferences.train_dpo(files, fit, _BETA.value)
  print(pair_measures.table(measured))
  print(f"wrote {files.workdir}")


if __name__ == "__main__":
  config_lib.run(main)
