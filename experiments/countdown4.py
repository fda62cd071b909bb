"""Countdown with four numbers: longer answers, fifteen times the problems.

Purpose: the recipe with 64 nodes and a constant rate on a game whose tree is
too deep for 64 simulations to exhaust: 13 response tokens instead of 9, 88,353
problems instead of 5,757. The warm start is made by

  python -m experiments.recipes.warm_start --numbers=4 --steps=3000,1500
    --config.task.tuning_size=512

It printed for test: greedy .053, mean@16 .019, pass@16 .223.

Command: python -m launch.train --config=experiments/countdown4.py --workdir=DIR
Both methods: bash launch/local.sh --config=experiments/countdown4.py
"""

from tsd_jax.learning.config import LossConfig
from tsd_jax.models import presets
from tsd_jax.run.experiment import Experiment
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.countdown import CountdownConfig


def get_config() -> Experiment:
  """The run."""
  return Experiment(
    task=CountdownConfig(numbers=4),
    model=presets.TINY,
    init="experiments/starts/warm_start_4.safetensors",
    search=SearchConfig(slot_reuse=True),
    loss=LossConfig(success_weight=0.1),  # As in its tables.
  )
