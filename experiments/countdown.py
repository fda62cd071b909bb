"""Countdown with three numbers: the default experiment.

Purpose: teach a 0.5 M parameter model by tree search to reach a target with
three numbers and + - * /, from a warm start that writes legal expressions but
rarely the right one. An iteration searches 1,024 prompts with the policy itself
(best first, up to 64 nodes each), distils the champions of 448 that were
solved, with 32 times the weight of the PPO steps beside it, which have tree
advantages and the 16 prompts whose success the trees found least certain. A
tree is deep enough to solve nearly all of its prompts: one that solves the easy
half teaches what the policy does already, and narrows it (docs/knobs.md).

Command: python -m launch.train --config=experiments/countdown.py --workdir=DIR
Baseline: add --config.algorithm=ppo --config.optimizer.learning_rate=3e-4 (the
same loop without search, at a rate that suits it).
"""

from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.learning.config import LossConfig, OptimizerConfig
from tsd_jax.models import presets
from tsd_jax.run.experiment import Experiment
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.countdown import CountdownConfig


def get_config() -> Experiment:
  """The run."""
  return Experiment(
    task=CountdownConfig(numbers=3),
    model=presets.TINY,
    init="experiments/starts/warm_start_3.safetensors",
    search=SearchConfig(num_simulations=64, width=64, slot_reuse=True),
    rollout=RolloutConfig(prompts=16),
    loss=LossConfig(champion_weight=32),
    optimizer=OptimizerConfig(learning_rate=1.2e-3, linear_decay=True),
  )
