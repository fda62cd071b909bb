"""Countdown with a calculator: several turns with a tool.

Purpose: the default recipe on a task whose environment writes a part of every
answer. The model writes `a op b =`, the calculator the result; that token is no
move of the tree and no part of any loss. Numbers and problems are those of
`experiments/countdown.py`; an answer has 11 tokens instead of 9, so that the
tree has 20 nodes instead of 16. The warm start is made by

  python -m experiments.warm_start --config=experiments/calculator.py

Command: python -m launch.train --config=experiments/calculator.py --workdir=DIR
Baseline: add --config.algorithm=ppo (the same loop without search).
"""

from tsd_jax.experiment import Experiment
from tsd_jax.methods import OptimizerConfig
from tsd_jax.models import presets
from tsd_jax.search.tree import SearchConfig
from tsd_jax.tasks.calculator import CalculatorConfig


def get_config() -> Experiment:
  """The run."""
  return Experiment(
    task=CalculatorConfig(numbers=3),
    model=presets.TINY,
    init="experiments/warm_start_calculator.safetensors",
    search=SearchConfig(num_simulations=20),
    optimizer=OptimizerConfig(learning_rate=8e-4, linear_decay=True),
  )
