"""A comparison of toy runs: the real command in a minute."""

import dataclasses

from tests import small_experiment
from tsd_jax.comparison.config import Comparison


def get_config() -> Comparison:
  """The comparison."""
  found = small_experiment.get_config()
  return Comparison(
    experiment=dataclasses.replace(
      found, task=dataclasses.replace(found.task, tuning_size=64)
    ),
    tokens=2e4,
    methods=("tsd", "filtered_best_of_n"),
    seeds=(0, 1),
    trials=2,
    score="greedy,mean@2",
    mode="mean@2",
    samples=16,
    shifted="min_target=101,max_target=199",
    temperatures=(0.6, 1.0),
  )
