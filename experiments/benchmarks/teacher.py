"""Who searches: the policy's snapshot, or a smaller model of its own.

Lines, each held against the default, where the policy itself searches and is
taken anew every iteration: its first parameters (`frozen`), a model of half the
size from a warm start (`small`), the same after it had learned by its own
search (`learned`; what that cost is not in its tokens). A token of the smaller
model counts by its operations, so that equal tokens are equal FLOPs.

Command (a minute a run):

  python -m experiments.benchmarks.teacher --workdir=DIR [--seeds=0,1,2]
"""

import dataclasses
import pathlib

from experiments import countdown_balanced, countdown_teacher
from experiments.benchmarks import ablations
from tsd_jax.base import config as config_lib

WORKDIR, SEEDS = ablations.WORKDIR, ablations.SEEDS


def configs(learned: str, seeds):
  """Runs by name, one a seed.

  Args:
    learned: parameters of the smaller model after its own run.
    seeds: numbers, as text.
  """
  base, small = countdown_balanced.get_config(), countdown_teacher.get_config()
  kinds = {
    "default": base,
    "frozen": dataclasses.replace(base, refresh_every=0),
    "small": small,
    "learned": dataclasses.replace(small, search_init=learned),
  }
  return {
    kind: [dataclasses.replace(run, seed=int(seed)) for seed in seeds]
    for kind, run in kinds.items()
  }


def teach(folder: pathlib.Path) -> str:
  """Trains the smaller model by its own search; gives its parameters' file."""
  from tsd_jax.models import weights
  from tsd_jax.run import load, train

  small = countdown_teacher.get_config()
  train.train(
    dataclasses.replace(
      countdown_balanced.get_config(),
      model=small.search_model,
      init=small.search_init,
    ),
    folder,
  )
  file = folder / "params.safetensors"
  if not file.is_file():
    weights.save(str(file), load.open_run(folder).params, metadata={})
  return str(file)


def main(overrides):
  """Trains all, prints the table, writes teacher.json."""
  if overrides:
    raise config_lib.UserError("this benchmark has no --config")
  if ablations.JOBS.value > 1:
    raise config_lib.UserError("this benchmark trains one run after another")
  folder = pathlib.Path(config_lib.required(WORKDIR))
  todo = configs(teach(folder / "teacher"), SEEDS.value)
  command = config_lib.command("experiments.benchmarks.teacher")
  changes = {
    "frozen": {"refresh_every": "0"},
    "small": {"search_init": countdown_teacher.get_config().search_init},
    "learned": {"search_init": "teacher/params.safetensors"},
  }
  ablations.measure(todo, changes, folder, command, name="teacher")


if __name__ == "__main__":
  config_lib.run(main)
