"""Countdown with three numbers, where some things may not be said.

Purpose: the small twin of a safety rule. A response may not subtract a number
of one digit: of the start's samples about a third do, and so does the only
solution of some problems. Whoever says it has -1, whatever the result. A search
closes such moves before they are made, so that no champion says it; the
policy's own samples are punished where they do.

Command: python -m launch.train --config=experiments/safety.py --workdir=DIR
Baselines: add --config.algorithm=expert_iteration, or ppo with
--config.optimizer.learning_rate=3e-4.
"""

import dataclasses

from experiments import countdown_balanced
from tsd_jax.models.phrases import Phrases
from tsd_jax.rewards.algebra import TaskReward
from tsd_jax.rewards.constrained import Constrained
from tsd_jax.run.experiment import Experiment

# Whole words: "- 12" may be said.
FORBIDDEN = Phrases(
  tuple(f"- {digit}" for digit in range(1, 10)), whole_words=True
)


def get_config() -> Experiment:
  """The run."""
  return dataclasses.replace(
    countdown_balanced.get_config(),
    reward=Constrained(TaskReward(), FORBIDDEN, worth=-1.0),
  )
