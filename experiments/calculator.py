"""Countdown with a calculator: several turns with a tool.

Purpose: the default recipe on a task whose environment writes a part of every
answer. The model writes `a op b =`, the calculator the result; that token is no
move of the tree and no part of any loss. Numbers and problems are those of
`experiments/countdown.py`; an answer has 11 tokens instead of 9, so that the
tree has 20 nodes instead of 16. The warm start is made by

  python -m experiments.recipes.warm_start --config=experiments/calculator.py
    --config.task.tuning_size=512 --steps=400,300

It printed for test: greedy .080, mean@16 .061, pass@16 .529. From the start of
before families were held out (.062), mean@16 on validation, seed 0, 30
iterations (`--config.iterations=30 --config.eval.every=30
--config.checkpoint_every=30`): tsd .210 on 2.03 M ledger tokens; ppo .116 on
1.46 M, .096 with a learning rate of 3e-4, and .129 after 45 iterations on
2.19 M. No other seed was tried.

Command: python -m launch.train --config=experiments/calculator.py --workdir=DIR
Baseline: add --config.algorithm=ppo (the same loop without search).
"""

from tsd_jax.learning.config import OptimizerConfig
from tsd_jax.models import presets
from tsd_jax.run.experiment import Experiment
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.calculator import CalculatorConfig


def get_config() -> Experiment:
  """The run."""
  return Experiment(
    task=CalculatorConfig(numbers=3),
    model=presets.TINY,
    init="experiments/starts/warm_start_calculator.safetensors",
    search=SearchConfig(num_simulations=20),
    optimizer=OptimizerConfig(learning_rate=8e-4, linear_decay=True),
  )
