"""A table's columns: what runs answer, from counts, over seeds and problems."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tsd_jax.comparison import counts, intervals
from tsd_jax.comparison.intervals import Interval

PASSES = (16, 64)
GREEDY, MEAN, COOLED, DISTINCT = "greedy", "mean", "mean, cooled", "distinct"
SHIFTED = ", shifted"  # Of problems unlike those of train.


def pass_at(right_Q: np.ndarray, samples: int, k: int) -> np.ndarray:
  """Chance that one of k samples is right, 1 - C(n - c, k) / C(n, k).

  Args:
    right_Q: c, of n samples of each problem.
    samples: n.
    k: at most n.
  """
  wrong_Q1 = samples - right_Q[:, None]
  at_k = np.arange(k)
  left_Qk = np.maximum(wrong_Q1 - at_k, 0) / (samples - at_k)
  return 1.0 - np.prod(left_Qk, axis=1)


def scores(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """What a run scores on each problem, by column.

  Args:
    found: a run's counts.json; its own temperature is the last one there.
  """
  samples = found["plan"]["samples"]
  drawn = list(found["samples"].values())
  right = [counts.unpack(part["right"]) for part in drawn]
  columns = {
    GREEDY: counts.unpack(found["greedy"]),
    MEAN: right[0] / samples,
    COOLED: right[-1] / samples,
  }
  for k in PASSES:
    if k <= samples:
      columns[f"pass@{k}"] = pass_at(right[0], samples, k)
  columns[DISTINCT] = counts.unpack(drawn[0]["distinct"])
  if "shifted" in found:
    columns[GREEDY + SHIFTED] = counts.unpack(found["shifted"]["greedy"])
    right_Q = counts.unpack(found["shifted"]["right"])
    columns[MEAN + SHIFTED] = right_Q / samples
  return columns


class Groups(NamedTuple):
  """A number for each problem, equal where two are of one group."""

  test: Sequence[int] | None = None
  shifted: Sequence[int] | None = None

  def of(self, column: str) -> np.ndarray | None:
    """Those of the problems of a column."""
    found = self.shifted if column.endswith(SHIFTED) else self.test
    return None if found is None else np.asarray(found)


EACH_ALONE = Groups()


def of_method(
  runs: Sequence[Mapping[str, Any]], groups: Groups = EACH_ALONE
) -> dict[str, Any]:
  """Columns of a method with intervals, and means of what has none.

  Args:
    runs: a counts.json a seed.
    groups: of the problems.
  """

  def share(values: Sequence[float | None]) -> float | None:
    return None if None in values else float(np.mean(np.array(values)))

  found: dict[str, Any] = {
    name: written(intervals.mean(y_SP, groups.of(name)))
    if len(runs) > 1
    else plain(y_SP)
    for name, y_SP in _stacked(runs).items()
  }
  first = [next(iter(run["samples"].values())) for run in runs]
  found["legal"] = share([part["legal"] for part in first])
  found["greedy legal"] = share([run["greedy_legal"] for run in runs])
  found["constant answer"] = share([run["constant"] for run in runs])
  for name, of_train in ((GREEDY, "greedy"), (MEAN, "mean")):
    trained = share([run["train"][of_train] for run in runs])
    assert trained is not None
    found[f"{name}, gap to train"] = trained - found[name]["value"]
  return found


def contrast(
  runs: Mapping[str, Sequence[Mapping[str, Any]]],
  groups: Groups = EACH_ALONE,
  ours: str = "tsd",
) -> dict[str, dict[str, Any]]:
  """By column and pair of methods, their ratio and difference on the problems.

  Args:
    runs: a counts.json a seed, by method; seed by seed.
    groups: of the problems.
    ours: the method that the others are compared with.
  """
  mine = _stacked(runs[ours])
  found: dict[str, dict[str, Any]] = {name: {} for name in mine}
  for other, theirs in runs.items():
    if other == ours or len(theirs) < 2:
      continue
    for name, y_SP in _stacked(theirs).items():
      found[name][f"{ours}/{other}"] = {
        "ratio": written(intervals.ratio(mine[name], y_SP, groups.of(name))),
        "difference": written(
          intervals.difference(mine[name], y_SP, groups.of(name))
        ),
      }
  return found


def _stacked(runs: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  each = [scores(run) for run in runs]
  return {name: np.stack([s[name] for s in each]) for name in each[0]}


def written(found: Interval) -> dict[str, Any]:
  """An interval as JSON; what is not finite is None."""
  value, low, high = (float(x) if np.isfinite(x) else None for x in found)
  return {"value": value, "ci95": [low, high]}


def plain(y_SP: np.ndarray) -> dict[str, Any]:
  """A mean of which one run tells no interval."""
  return {"value": float(np.mean(y_SP)), "ci95": [None, None]}
