"""All methods on the maze, the task without arithmetic.

Purpose: the same table as for Countdown on a game of another family, so that no
claim rests on one game. Learning rates that stay and that fall are both tried:
here methods differ in which of them they need. 75 iterations of the searches
cost what 60 did when solved trees still grew (`search.slot_reuse`).

Command: python -m launch.compare --config=experiments/compare_maze.py
  --workdir=DIR
"""

import dataclasses

from experiments import maze
from tsd_jax.comparison.judge import Comparison


def get_config() -> Comparison:
  """The comparison."""
  return Comparison(
    experiment=dataclasses.replace(maze.get_config(), iterations=75),
    swept="optimizer.learning_rate+optimizer.linear_decay",
    values=(
      "3e-4+false",
      "5e-4+false",
      "4e-4+true",
      "8e-4+true",
      "1.2e-3+true",
      "1.6e-3+true",
    ),
  )
