"""Maze: fetch a coin and go to the goal, in at most 12 moves."""

from tsd_jax.models import presets
from tsd_jax.tasks.maze import MazeConfig
from tsd_jax.train import Experiment


def get_config() -> Experiment:
  """The run."""
  return Experiment(
    task=MazeConfig(),
    model=presets.TINY,
    init="experiments/warm_start_maze.safetensors",
  )
