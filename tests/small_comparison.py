"""A comparison of toy runs: the real command in a minute."""

from tests import small_experiment
from tsd_jax.comparison.judge import Comparison


def get_config() -> Comparison:
  """The comparison."""
  return Comparison(
    experiment=small_experiment.get_config(),
    methods=("tsd", "grpo", "tree_prefix_values"),
    seeds=(0, 1),
    values=("1e-3", "1e-2"),
    mode="mean@2",
  )
