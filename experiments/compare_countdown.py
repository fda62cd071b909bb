"""All methods on Countdown with three numbers.

Purpose: one table that says what the search buys at equal tokens. Every method
tries as many settings of its own on tuning problems, one seed, and is judged by
the mean of greedy, mean@16 and pass@16, so that none is driven to sharpen what
it can do already; what is reported are five other seeds on test problems that
chose nothing.

Command: python -m launch.compare --workdir=DIR
"""

import dataclasses

from experiments import countdown
from tsd_jax.comparison.config import Comparison

_SCORE = "greedy,mean@16,pass@16"


def get_config() -> Comparison:
  """The comparison."""
  found = countdown.get_config()
  return Comparison(
    experiment=dataclasses.replace(
      found,
      task=dataclasses.replace(found.task, tuning_size=512),
      eval=dataclasses.replace(found.eval, modes=_SCORE),
    ),
    score=_SCORE,
    shifted="min_target=101,max_target=199",
    tokens=3.2e6,
    methods=(
      "tsd", "expert_iteration", "ppo", "grpo", "dapo", "cispo", "best_of_n",
      "wide_best_of_n", "filtered_best_of_n",
    ),
    knobs=(
      "optimizer.learning_rate", "optimizer.linear_decay",
      "optimizer.minibatches",
    ),
  )  # fmt: skip
