"""All methods on the maze, the task without arithmetic.

Purpose: the same table as for Countdown on a game of another family, so that no
claim rests on one game.

Command: python -m launch.compare --config=experiments/compare_maze.py
  --workdir=DIR
"""

import dataclasses

from experiments import maze
from tsd_jax.comparison.config import Comparison

_SCORE = "greedy,mean@16,pass@16"


def get_config() -> Comparison:
  """The comparison."""
  found = maze.get_config()
  return Comparison(
    experiment=dataclasses.replace(
      found,
      task=dataclasses.replace(found.task, tuning_size=512),
      eval=dataclasses.replace(found.eval, modes=_SCORE),
    ),
    score=_SCORE,
    shifted="walls=8",
    tokens=4.4e6,
    methods=(
      "tsd", "expert_iteration", "ppo", "grpo", "dapo", "cispo", "best_of_n",
      "wide_best_of_n", "filtered_best_of_n",
    ),
    knobs=(
      "optimizer.learning_rate", "optimizer.linear_decay",
      "optimizer.minibatches",
    ),
  )  # fmt: skip
