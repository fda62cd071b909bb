"""Intervals over runs and problems cover what they say, few runs or many."""

import math

import numpy as np
import pytest
from scipy import stats

from tsd_jax.base.errors import UserError
from tsd_jax.comparison import intervals

P = 128


def draw(rng, seeds, base=0.3, spread=0.15):
  """Shares of 16 samples that are right, of runs on problems that differ."""
  problem_P = stats.norm.ppf(rng.beta(0.5, 0.5 / base - 0.5, P).clip(1e-6, 1))
  run_S = rng.normal(0, spread, seeds)
  rest_SP = rng.normal(0, 0.5, (seeds, P))
  chance_SP = stats.norm.cdf(
    np.minimum(problem_P[None], 6) + run_S[:, None] + rest_SP
  )
  return rng.binomial(16, chance_SP) / 16


def truth(**options):
  rng = np.random.default_rng(1)
  return np.mean([draw(rng, 40, **options).mean() for _ in range(100)])


def coverage(make, true, trials=400):
  rng = np.random.default_rng(0)
  found = [make(rng) for _ in range(trials)]
  return np.mean([i.low <= true <= i.high for i in found])


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_intervals_of_a_mean_cover_it(seeds):
  covered = coverage(lambda rng: intervals.mean(draw(rng, seeds)), truth())
  assert covered >= 0.93


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("combine", ["difference", "ratio"])
def test_intervals_of_two_methods_cover_what_they_differ_in(seeds, combine):
  """Harder and easier problems are so for both."""

  def pair(rng):
    easy_P = rng.beta(0.5, 1.0, P)
    both = []
    for shift, spread in ((0.4, 0.1), (0.0, 0.15)):
      run_S1 = rng.normal(shift, spread, (seeds, 1))
      rest_SP = rng.normal(0, 0.5, (seeds, P))
      score_SP = stats.norm.ppf(easy_P.clip(1e-6, 1 - 1e-6)) + run_S1 + rest_SP
      both.append(rng.binomial(16, stats.norm.cdf(score_SP)) / 16)
    return both

  rng = np.random.default_rng(2)
  means = np.mean([[y.mean() for y in pair(rng)] for _ in range(4000)], axis=0)
  true = means[0] - means[1] if combine == "difference" else means[0] / means[1]
  make = getattr(intervals, combine)
  assert coverage(lambda rng: make(*pair(rng)), true) >= 0.93


def test_problems_of_a_group_count_as_one():
  """Numbers of which a model makes one target are easy for others as well."""
  size_G = np.random.default_rng(5).integers(1, 9, 40)
  group_P = np.repeat(np.arange(40), size_G)

  def grouped(rng):
    easy_P = rng.normal(-0.5, 1.0, 40)[group_P] + rng.normal(
      0, 0.3, len(group_P)
    )
    run_S1 = rng.normal(0, 0.1, (5, 1))
    return rng.binomial(16, stats.norm.cdf(easy_P + run_S1)) / 16

  rng = np.random.default_rng(6)
  true = np.mean([grouped(rng).mean() for _ in range(4000)])
  # With 40 groups of unequal size the variance itself is not well known.
  assert coverage(lambda r: intervals.mean(grouped(r), group_P), true) >= 0.92
  assert coverage(lambda r: intervals.mean(grouped(r)), true) < 0.8
  y_SP = grouped(rng)
  alone = intervals.mean(y_SP, np.arange(len(group_P)))
  np.testing.assert_allclose(alone, intervals.mean(y_SP), rtol=1e-9)


def test_resampling_five_seeds_covers_too_little():
  """Why there is this module."""

  def percentile(rng):
    y_S = draw(rng, 5).mean(axis=1)
    picked = rng.integers(0, 5, (500, 5))
    low, high = np.quantile(y_S[picked].mean(axis=1), [0.025, 0.975])
    return intervals.Interval(y_S.mean(), low, high)

  assert coverage(percentile, truth()) < 0.9


def test_without_differences_between_runs_it_is_the_interval_of_problems():
  rng = np.random.default_rng(3)
  y_P = rng.random(P)
  found = intervals.mean(np.stack([y_P, y_P, y_P]))
  low, high = stats.t.interval(0.95, P - 1, y_P.mean(), stats.sem(y_P))
  np.testing.assert_allclose(found, (y_P.mean(), low, high), rtol=1e-6)


def test_without_differences_between_problems_it_is_the_interval_of_runs():
  y_S = np.array([0.2, 0.3, 0.25, 0.4])
  found = intervals.mean(np.repeat(y_S[:, None], P, axis=1))
  low, high = stats.t.interval(0.95, 3, y_S.mean(), stats.sem(y_S))
  np.testing.assert_allclose(found, (y_S.mean(), low, high), rtol=1e-6)


def test_a_ratio_and_its_inverse_agree():
  rng = np.random.default_rng(4)
  a, b = draw(rng, 5, base=0.4), draw(rng, 5)
  one, other = intervals.ratio(a, b), intervals.ratio(b, a)
  np.testing.assert_allclose(one.low, 1 / other.high, rtol=1e-9)
  np.testing.assert_allclose(one.value, 1 / other.value, rtol=1e-9)


def test_what_has_no_interval_is_refused_or_says_so():
  zero, one = np.zeros((3, P)), np.ones((3, P))
  assert intervals.ratio(one, zero) == (math.inf, 0, math.inf)
  assert intervals.mean(one) == (1, 1, 1)
  for few in (np.ones((1, P)), np.ones((3, 1))):
    with pytest.raises(UserError, match="give no interval"):
      intervals.mean(few)
  with pytest.raises(UserError, match="same seeds on the same problems"):
    intervals.difference(one, np.ones((2, P)))
