"""TSD, PPO and GRPO on Countdown in words, from SmolLM2-135M-Instruct.

Purpose: what the search buys a published language model at equal ledger tokens.
Two seeds at one learning rate, the same for all: a run takes a quarter of
an hour on one core.

Command: python -m launch.compare --config=experiments/compare_smollm2.py
  --workdir=DIR
"""

from experiments import smollm2_countdown
from tsd_jax.comparison.config import Comparison


def get_config() -> Comparison:
  """The comparison."""
  return Comparison(
    experiment=smollm2_countdown.get_config(),
    tokens=1.5e5,
    methods=("tsd", "ppo", "grpo"),
    seeds=(0, 1),
    trials=1,
    samples=16,
    temperatures=(1.0,),
  )
