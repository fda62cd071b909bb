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
from tsd_jax.run.experiment import Experiment

_SCORE = "greedy,mean@16,pass@16"


def comparison(
  experiment: Experiment,
  tokens: float,
  shifted: str,
  gradient_rate: float = 2.4e-4,
) -> Comparison:
  """The methods on a game, each at the best of as many settings.

  Args:
    experiment: the game's.
    tokens: of the ledger, that every run spends.
    shifted: what test problems unlike those of train have.
    gradient_rate: near the best of policy gradients alone, by earlier sweeps.
  """
  return Comparison(
    experiment=dataclasses.replace(
      experiment,
      task=dataclasses.replace(experiment.task, tuning_size=512),
      eval=dataclasses.replace(experiment.eval, modes=_SCORE),
    ),
    score=_SCORE,
    shifted=shifted,
    tokens=tokens,
    gradient_rate=gradient_rate,
    methods=(
      "tsd", "expert_iteration", "ppo", "grpo", "dapo", "cispo", "best_of_n",
      "wide_best_of_n", "filtered_best_of_n", "stopped_best_of_n",
    ),
    knobs=(
      "optimizer.learning_rate", "optimizer.linear_decay",
      "optimizer.minibatches",
    ),
  )  # fmt: skip


def get_config() -> Comparison:
  """The comparison."""
  return comparison(
    countdown.get_config(), 3.2e6, "min_target=101,max_target=199"
  )
