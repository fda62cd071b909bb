"""All methods on Countdown with three numbers in words, from SmolLM2-135M.

Purpose: what the search buys a published language model that hardly ever
succeeds, at equal ledger tokens, every method at the best of as many settings.

Command, on one accelerator of 80 GB:
  python -m launch.compare --config=experiments/compare_smollm2_countdown3.py
    --workdir=DIR
"""

import dataclasses

from experiments import smollm2_countdown3
from tsd_jax.comparison.config import Comparison


def get_config() -> Comparison:
  """The comparison."""
  found = smollm2_countdown3.get_config()
  return Comparison(
    experiment=dataclasses.replace(
      found, task=dataclasses.replace(found.task, tuning_size=512)
    ),
    tokens=3e6,
    methods=("tsd", "ppo", "grpo", "cispo", "best_of_n", "expert_iteration"),
    seeds=(0, 1, 2),
    runs=3,
    knobs=("optimizer.learning_rate",),
    trials=4,
  )
