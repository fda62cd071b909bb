"""Trains an experiment with TSD and with PPO, and compares the two.

bash launch/local.sh [--config.iterations=20] [--workdir=DIR]
"""

import pathlib

from absl import flags

from tsd_jax import config as config_lib

_CONFIG = flags.DEFINE_string(
  "config", "experiments/countdown.py", "Experiment file."
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/local", "Folder of the runs.")
_METHODS = ("tsd", "ppo")


def main(overrides):
  """Trains both, or resumes, and prints a table."""
  if "algorithm" in overrides:
    raise config_lib.UserError(
      "local trains tsd and ppo: for one alone, use python -m launch.train "
      f"--config.algorithm={overrides['algorithm']}"
    )
  base = config_lib.load(_CONFIG.value)
  configs = {
    name: config_lib.override(base, overrides | {"algorithm": name})
    for name in _METHODS
  }
  # Imported late: a bad flag is refused before JAX starts.
  from tsd_jax import compare, progress, train

  progress.quiet_libraries()
  workdir = pathlib.Path(_WORKDIR.value)
  for name, config in configs.items():
    print(f"{name}: {workdir / name}", flush=True)
    train.train(config, workdir / name)
  modes = [m.strip() for m in base.eval.modes.split(",")]
  mode = next((m for m in modes if m.startswith("mean@")), modes[0])
  curves = {n: compare.read_curve(workdir / n, mode) for n in _METHODS}
  print("\n" + compare.summary(curves, mode))


if __name__ == "__main__":
  config_lib.run(main)
