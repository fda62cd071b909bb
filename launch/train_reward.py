"""Trains a reward model on pairs of responses, measured on held-out ones.

python -m launch.train_reward --pairs=FILE --model=FOLDER --workdir=DIR
python -m launch.train_reward --pairs=FILE --held_out=FILE --model=FOLDER
  --workdir=DIR --heads=8

DIR/model is read by `RewardModel` and by transformers. What the files hold is
said in tsd_jax/tasks/pairs.py, what is measured in docs/rewards.md.
"""

from absl import flags

from launch import pair_flags
from tsd_jax.base import config as config_lib

_RATE = flags.DEFINE_float("learning_rate", 1e-5, "Its peak.")
_HEADS = flags.DEFINE_integer("heads", 1, "Members of an ensemble.")


def main(overrides):
  """Trains, prints what was measured, writes the folder."""
  del overrides
  files, fit = pair_flags.read(_RATE.value)
  from tsd_jax.base import compilation_cache, progress
  from tsd_jax.run import pair_measures, preferences

  progress.quiet_libraries()
  compilation_cache.enable()
  measured = preferences.train_reward(files, fit, _HEADS.value)
  print(pair_measures.table(measured))
  print(f"wrote {files.workdir}")


if __name__ == "__main__":
  config_lib.run(main)
