"""Trains an experiment with TSD and with PPO, and compares the two.

bash launch/local.sh --config.iterations=20 --workdir=DIR

TSD has the learning rate of the experiment, PPO --ppo_learning_rate;
--config.optimizer.learning_rate is for both.
"""

import pathlib

from absl import flags

from tsd_jax.base import config as config_lib
from tsd_jax.run import curves as curves_lib

_CONFIG = flags.DEFINE_string(
  "config", "experiments/countdown.py", "Experiment file."
)
_WORKDIR = config_lib.path_flag("workdir", "runs/local", "Folder of the runs.")
_PPO_RATE = flags.DEFINE_string(
  "ppo_learning_rate",
  None,
  "PPO's; by default the experiment's, or for the default experiment 3e-4.",
)
_METHODS = ("tsd", "ppo")


def main(overrides):
  """Trains both, or resumes, and prints a table."""
  if "algorithm" in overrides:
    raise config_lib.UserError(
      "local trains tsd and ppo: for one alone, use python -m launch.train "
      f"--config.algorithm={overrides['algorithm']}"
    )
  base = config_lib.from_flags(_CONFIG.value, {}, "Experiment")
  rate = _PPO_RATE.value
  if rate is None and _CONFIG.value == _CONFIG.default:
    rate = "3e-4"  # The recipe's 1.2e-3 is far too high for it.
  own = {"tsd": {}, "ppo": {"optimizer.learning_rate": rate} if rate else {}}
  configs = {
    name: config_lib.override(base, own[name] | overrides | {"algorithm": name})
    for name in _METHODS
  }
  # Imported late: a bad flag is refused before JAX starts.
  from tsd_jax.base import compilation_cache, progress
  from tsd_jax.comparison import side_by_side_page
  from tsd_jax.run import evaluation, train

  progress.quiet_libraries()
  compilation_cache.enable()
  workdir = pathlib.Path(_WORKDIR.value)
  for name, config in configs.items():
    print(f"{name}: {workdir / name}", flush=True)
    train.train(config, workdir / name)
  mode = evaluation.headline(configs["tsd"].eval.modes)
  folders = {name: workdir / name for name in _METHODS}
  curves = {n: curves_lib.read_curve(f, mode) for n, f in folders.items()}
  print("\n" + curves_lib.summary(curves, mode))
  side_by_side_page.write(workdir / "report.html", list(folders.values()), mode)
  print(f"plots and samples: {workdir / 'report.html'}")


if __name__ == "__main__":
  config_lib.run(main)
