"""All methods on the maze, the task without arithmetic.

Purpose: the same table as for Countdown on a game of another family, so that no
claim rests on one game. Same learning rates, seeds and splits as there.

Command: python -m launch.compare --config=experiments/compare_maze.py
  --workdir=DIR
"""

from experiments import maze
from tsd_jax.judge import Comparison


def get_config() -> Comparison:
  """The comparison."""
  return Comparison(experiment=maze.get_config())
