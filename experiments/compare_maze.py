"""All methods on the maze, the task without arithmetic.

Purpose: the same table as for Countdown on a game of another family, so that no
claim rests on one game.

Command: python -m launch.compare --config=experiments/compare_maze.py
  --workdir=DIR
"""

from experiments import compare_countdown, maze
from tsd_jax.comparison.config import Comparison


def get_config() -> Comparison:
  """The comparison."""
  return compare_countdown.comparison(maze.get_config(), 4.4e6, "walls=8", 4e-4)
