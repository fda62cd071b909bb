"""Countdown with three numbers, half of the update on the policy's own samples.

Purpose: the recipe before trees of 64 nodes: 16 nodes for each of 1,024
prompts, champions of 448, and PPO on 64 prompts. On plain games the few samples
of `countdown.py` do as well for fewer tokens; what only samples can teach
(safety.py, noisy.py) is built on this one, and earlier tables were made by it.

Command: python -m launch.train --config=experiments/countdown_balanced.py
  --workdir=DIR
"""

import dataclasses

from experiments import countdown
from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.learning.config import LossConfig
from tsd_jax.run.experiment import Experiment
from tsd_jax.search.config import SearchConfig


def get_config() -> Experiment:
  """The run."""
  run = countdown.get_config()
  return dataclasses.replace(
    run,
    search=SearchConfig(num_simulations=16, slot_reuse=True),
    rollout=RolloutConfig(),
    loss=LossConfig(success_weight=0.1),  # As in its tables.
    optimizer=dataclasses.replace(run.optimizer, learning_rate=8e-4),
  )
