"""Countdown with three numbers: the default experiment.

Purpose: teach a 0.5 M parameter model by tree search to reach a target with
three numbers and + - * /, from a warm start that writes legal expressions but
rarely the right one. Per prompt the search model (the policy, refreshed every
iteration) runs discrepancy best-first search; a correct champion is distilled
with weight 0.5 beside PPO with tree advantages on 8 on-policy leaves.

Command: python -m launch.train --config=experiments/countdown.py --workdir=DIR
Baseline: add --config.algorithm=ppo (the same loop without search).
"""

from tsd_jax.models import presets
from tsd_jax.tasks.countdown import CountdownConfig
from tsd_jax.train import Experiment


def get_config() -> Experiment:
  """The run."""
  return Experiment(
    task=CountdownConfig(numbers=3),
    model=presets.TINY,
    init="experiments/warm_start_3.safetensors",
  )
