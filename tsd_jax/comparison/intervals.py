"""Intervals for means over seeds and problems, both of them samples.

A figure of a comparison is a mean over S runs and P problems. Another table
would have other runs and other problems: an interval that resamples seeds alone
is too narrow, and a bootstrap of five seeds covers too little as well. Here the
variance of both is taken apart, as where several readers judge several cases,

    y_sp = mean + seed_s + problem_p + rest_sp
    Var(mean) = (MS_seed + MS_problem - MS_rest) / (S P)

with Satterthwaite's degrees of freedom for the quantile of Student's t
(doi:10.2307/3002019). A component below zero counts as zero, which errs on the
wide side. Problems of a group, such as those with the same numbers, are no
independent samples: with groups named, these take the place of the problems.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from tsd_jax.base.errors import UserError


class Interval(NamedTuple):
  """A value between its bounds."""

  value: float
  low: float
  high: float


def mean(
  y_SP: np.ndarray, group_P: np.ndarray | None = None, level: float = 0.95
) -> Interval:
  """Mean of what each run scores on each problem.

  Args:
    y_SP: of S runs on the same P problems: whether right, a share of samples, a
      chance to be right within k of them.
    group_P: a number for each problem, equal where two are of one group; each
      is a group of its own if None.
    level: how often such intervals hold the mean of all runs and problems.

  Raises:
    UserError: there are fewer than two runs or two groups.
  """
  value = float(np.mean(y_SP))
  half = _half_width(y_SP, group_P, level)
  return Interval(value, value - half, value + half)


def difference(
  ours_SP: np.ndarray,
  theirs_SP: np.ndarray,
  group_P: np.ndarray | None = None,
  level: float = 0.95,
) -> Interval:
  """Difference of two means on the same problems, run by run.

  Runs of a seed have their start and their order of problems in common; where
  they have nothing in common, pairing them costs degrees of freedom alone.

  Raises:
    UserError: the arrays are not alike, or too small.
  """
  _check_alike(ours_SP, theirs_SP)
  return mean(np.subtract(ours_SP, theirs_SP), group_P, level)


def ratio(
  ours_SP: np.ndarray,
  theirs_SP: np.ndarray,
  group_P: np.ndarray | None = None,
  level: float = 0.95,
) -> Interval:
  """Ratio of two means on the same problems, run by run.

  The logarithm's variance is that of the mean of y / mean(y) - z / mean(z).

  Returns:
    The ratio; from 0 to infinity where one of the means is 0.

  Raises:
    UserError: the arrays are not alike, or too small.
  """
  _check_alike(ours_SP, theirs_SP)
  ours, theirs = float(np.mean(ours_SP)), float(np.mean(theirs_SP))
  if ours <= 0 or theirs <= 0:
    value = ours / theirs if theirs else math.inf if ours else math.nan
    return Interval(value, 0.0, math.inf)
  relative_SP = np.asarray(ours_SP) / ours - np.asarray(theirs_SP) / theirs
  factor = math.exp(_half_width(relative_SP, group_P, level))
  return Interval(ours / theirs, ours / theirs / factor, ours / theirs * factor)


def _check_alike(ours_SP: np.ndarray, theirs_SP: np.ndarray) -> None:
  if np.shape(ours_SP) != np.shape(theirs_SP):
    raise UserError(
      f"runs x problems are {np.shape(ours_SP)} and {np.shape(theirs_SP)}: "
      "compare methods with the same seeds on the same problems"
    )


def _by_group(y_SP: np.ndarray, group_P: np.ndarray) -> np.ndarray:
  """A value for each group, of which the mean is that of all problems.

  What the problems of a group have above the mean is added up, as where a mean
  is taken of clusters of unequal size.
  """
  mean_S1 = y_SP.mean(axis=1, keepdims=True)
  index_P = np.unique(group_P, return_inverse=True)[1]
  above_SG = np.zeros((len(y_SP), index_P.max() + 1))
  for above_P, row_G in zip(y_SP - mean_S1, above_SG, strict=True):
    np.add.at(row_G, index_P, above_P)
  return mean_S1 + above_SG * (above_SG.shape[1] / y_SP.shape[1])


def _half_width(
  y_SP: np.ndarray, group_P: np.ndarray | None, level: float
) -> float:
  """Half of the interval of a mean."""
  y_SP = np.asarray(y_SP, float)
  if group_P is not None:
    y_SP = _by_group(y_SP, group_P)
  S, P = y_SP.shape
  if S < 2 or P < 2:
    of = "problems" if group_P is None else "groups of problems"
    raise UserError(
      f"{S} runs on {P} {of} give no interval: it takes two of each"
    )
  row_S, column_P = y_SP.mean(axis=1), y_SP.mean(axis=0)
  rest_SP = y_SP - row_S[:, None] - column_P[None] + y_SP.mean()
  seed = P * row_S.var(ddof=1)
  problem = S * column_P.var(ddof=1)
  rest = np.sum(rest_SP**2) / ((S - 1) * (P - 1))
  seed, problem = max(seed, rest), max(problem, rest)
  total = seed + problem - rest
  if total <= 0:  # All alike.
    return 0.0
  freedom = total**2 / (
    seed**2 / (S - 1) + problem**2 / (P - 1) + rest**2 / ((S - 1) * (P - 1))
  )
  quantile = stats.t.ppf(0.5 + level / 2, freedom)
  return float(quantile * math.sqrt(total / (S * P)))
