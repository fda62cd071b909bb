"""Countdown with three numbers, where "I don't know" is an answer.

Purpose: teach a model to solve what it can, and to say `?` where it would be
wrong. A right answer earns 1, a `?` a half, anything else nothing. Search says
how to answer: trees and champions know no `?`. On-policy samples of random
prompts say whether to: they answer, and every token of theirs is asked whether
stopping there would have earned more. PPO and GRPO, which sample the `?` as any
other token, end by saying nothing else.

Command: python -m launch.train --config=experiments/abstention.py --workdir=DIR
Baselines: add --config.algorithm=ppo, grpo or expert_iteration, and
--config.optimizer.learning_rate=3e-4 for the first two.
"""

import dataclasses

from experiments import countdown_balanced
from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.models import symbols
from tsd_jax.rewards.abstention import Abstention
from tsd_jax.rewards.algebra import TaskReward
from tsd_jax.run.experiment import Experiment


def get_config() -> Experiment:
  """The run."""
  experiment = countdown_balanced.get_config()
  return dataclasses.replace(
    experiment,
    task=dataclasses.replace(experiment.task, tuning_size=512),
    init="experiments/starts/abstention_3.safetensors",
    reward=Abstention(TaskReward(), mark=symbols.UNSURE),
    rollout=RolloutConfig(prompts=128, samples=8, forks=0, choose="first"),
    search=dataclasses.replace(experiment.search, num_simulations=64, width=8),
    loss=dataclasses.replace(
      experiment.loss, policy_weight=0.0, champion_weight=1.0
    ),
  )
