"""All methods on Countdown with four numbers.

Purpose: as compare_countdown.py, on the game whose answers are rarely found by
sampling: 88,353 problems instead of 5,757, 13 tokens instead of 9.

Command: python -m launch.compare --config=experiments/compare_countdown4.py
  --workdir=DIR
"""

from experiments import compare_countdown, countdown4
from tsd_jax.comparison.config import Comparison


def get_config() -> Comparison:
  """The comparison."""
  return compare_countdown.comparison(
    countdown4.get_config(), 7.5e6, "min_target=101,max_target=199"
  )
