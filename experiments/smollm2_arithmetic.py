"""SmolLM2-135M-Instruct learns a reasoning-gym task: sums of digits.

Purpose: tree search distillation on a task that somebody else wrote, with its
own verifier: chain_sum, two or three terms of one digit, after six worked
examples. mean@16 of 64 validation problems goes from .034 to .199, with PPO to
.047 and, at a rate of 1e-5, .094 (`tsd_jax/models/README.md`).

Cost: 10 GiB of memory, and half a minute an iteration on one core.

Command:
  pip install -e '.[text]' reasoning-gym==0.1.25
  python -m experiments.recipes.fetch_smollm2
  python -m launch.train --config=experiments/smollm2_arithmetic.py
    --workdir=DIR
Baseline: add --config.algorithm=ppo (the same loop without search).
"""

import dataclasses

from experiments import smollm2_countdown
from experiments.recipes import reasoning_gym_lines
from tsd_jax.run.experiment import Experiment

SYSTEM = "Answer with the number alone."
OPTIONS = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}


def get_config() -> Experiment:
  """The run."""
  base = smollm2_countdown.get_config()
  file = reasoning_gym_lines.problems_file(
    "chain_sum", OPTIONS, 2_000, SYSTEM, shots=6
  )
  task = dataclasses.replace(
    base.task,
    file=str(file),
    reward=reasoning_gym_lines.reward,
    prompt_length=224,
    response_length=6,
  )
  return dataclasses.replace(
    base,
    task=task,
    search=dataclasses.replace(base.search, num_simulations=16),
    optimizer=dataclasses.replace(base.optimizer, learning_rate=3e-5),
  )
