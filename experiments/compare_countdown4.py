"""All methods on Countdown with four numbers.

Purpose: as compare_countdown.py, on the game whose answers are rarely found by
sampling: 88,353 problems instead of 5,757, 13 tokens instead of 9.

Command: python -m launch.compare --config=experiments/compare_countdown4.py
  --workdir=DIR
"""

import dataclasses

from experiments import countdown4
from tsd_jax.comparison.config import Comparison

_SCORE = "greedy,mean@16,pass@16"


def get_config() -> Comparison:
  """The comparison."""
  found = countdown4.get_config()
  return Comparison(
    experiment=dataclasses.replace(
      found,
      task=dataclasses.replace(found.task, tuning_size=512),
      eval=dataclasses.replace(found.eval, modes=_SCORE),
    ),
    score=_SCORE,
    shifted="min_target=101,max_target=199",
    tokens=7.5e6,
    methods=(
      "tsd", "expert_iteration", "ppo", "grpo", "dapo", "cispo", "best_of_n",
      "wide_best_of_n", "filtered_best_of_n",
    ),
    knobs=(
      "optimizer.learning_rate", "optimizer.linear_decay",
      "optimizer.minibatches",
    ),
  )  # fmt: skip
