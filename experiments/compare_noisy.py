"""All methods on three numbers, with a verifier that errs.

Purpose: who learns from a verifier that accepts 15 % of the legal answers that
are wrong, always the same ones. Settings are chosen and answers are judged by
the verifier that does not err, for all methods alike.

Command: python -m launch.compare --config=experiments/compare_noisy.py
  --workdir=DIR
Errors made anew at each judgement, and three judgements of a response:
  --config.experiment.reward.reward.fixed=false
  --config.experiment.reward.calls=3
"""

from experiments import compare_countdown, noisy
from tsd_jax.comparison.config import Comparison


def get_config() -> Comparison:
  """The comparison."""
  return compare_countdown.comparison(
    noisy.get_config(), 2.4e6, "min_target=101,max_target=199"
  )
