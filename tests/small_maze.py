"""The toy run on another task."""

import dataclasses

from tests import small_experiment
from tsd_jax.run.experiment import Experiment
from tsd_jax.tasks.maze import MazeConfig


def get_config() -> Experiment:
  """The run."""
  task = MazeConfig(
    size=4, walls=4, min_moves=4, max_moves=6, count=300,
    validation_size=40, test_size=30,
  )  # fmt: skip
  return dataclasses.replace(
    small_experiment.get_config(), task=task, iterations=2
  )
