"""All methods on Countdown with three numbers in words, from SmolLM2-135M.

Purpose: what the search buys a published language model that hardly ever
succeeds, at equal ledger tokens, every method at the best of three rates.

Command, on one accelerator of 80 GB:
  python -m launch.compare --config=experiments/compare_smollm2_countdown3.py
    --workdir=DIR
"""

from experiments import smollm2_countdown3
from tsd_jax.comparison.judge import Comparison


def get_config() -> Comparison:
  """The comparison."""
  return Comparison(
    experiment=smollm2_countdown3.get_config(),
    methods=("tsd", "ppo", "grpo", "cispo", "best_of_n", "expert_iteration"),
    seeds=(0, 1, 2),
    values=("1e-5", "3e-5", "1e-4"),
    runs=3,
  )
