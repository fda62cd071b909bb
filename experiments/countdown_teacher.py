"""Countdown with three numbers, taught by a smaller model.

Purpose: the search model need not be the policy. Here it is one of half the
size (one layer), fixed, from a warm start of its own; its trees cost half, and
find what a model that learns nothing can find. What that is worth at equal
operations: `experiments/benchmarks/teacher.py`.

Command: python -m launch.train --config=experiments/countdown_teacher.py
  --workdir=DIR
The teacher:
  python -m experiments.recipes.warm_start --config.task.tuning_size=512
    --config.model.num_layers=1 --config.model.unroll_layers=1
    --output=experiments/starts/warm_start_3_small.safetensors
"""

import dataclasses

from experiments import countdown_balanced
from tsd_jax.run.experiment import Experiment


def get_config() -> Experiment:
  """The run."""
  base = countdown_balanced.get_config()
  return dataclasses.replace(
    base,
    search_init="experiments/starts/warm_start_3_small.safetensors",
    search_model=dataclasses.replace(base.model, num_layers=1, unroll_layers=1),
    refresh_every=0,
  )
