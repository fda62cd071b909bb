"""Curves of runs side by side: at equal updates, tokens, seconds and calls.

A statistic of two mean curves has an interval over seeds by the jackknife: each
run is left out in turn, which gives the variance, and Student's t the quantile,
with the degrees of freedom of Welch's test. For a difference of means that is
Welch's interval itself. A percentile bootstrap, which is common here, covers
too little of a nominal .95 with five seeds (`tests/intervals_test.py`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from tsd_jax.base.ledger import BACKWARD_COST
from tsd_jax.run.curves import Curve, at


def mean_curve(curves: Sequence[Curve]) -> Curve:
  """Mean over seeds of runs that were evaluated at the same iterations."""
  stacked = Curve(*map(np.stack, zip(*curves, strict=True)))
  mean = Curve(*(a.mean(axis=0) for a in stacked))
  spread = stacked.accuracy.std(axis=0, ddof=min(1, len(curves) - 1))
  return mean._replace(stderr=spread / np.sqrt(len(curves)))


def first_at(curve: Curve, target: float, axis: str = "updated") -> float:
  """Where the accuracy first reaches a target; inf if it never does.

  Linear between two evaluations.

  Args:
    curve: of a run, or a mean.
    target: the accuracy.
    axis: of the curve, such as iterations or tokens.
  """
  x_I = getattr(curve, axis)
  reached = np.flatnonzero(curve.accuracy >= target)
  if not reached.size:
    return math.inf
  i = int(reached[0])
  if i == 0:
    return float(x_I[0])
  y = curve.accuracy[i - 1 : i + 1]
  return float(np.interp(target, y, x_I[i - 1 : i + 1]))


def area(curve: Curve, end: float | None = None) -> float:
  """Mean accuracy over the tokens spent (area under the curve), up to `end`."""
  end = float(curve.tokens[-1]) if end is None else end
  x = np.append(curve.tokens[curve.tokens < end], end)
  y = np.interp(x, curve.tokens, curve.accuracy)
  return float(np.trapezoid(y, x) / max(end - x[0], 1))


class Statistic(NamedTuple):
  """A number of two mean curves."""

  of: Callable[[Curve, Curve], float]
  ratio: bool  # Its logarithm is what errs alike on both sides.


def jackknife(
  ours: Sequence[Curve], theirs: Sequence[Curve], statistic: Statistic
) -> dict[str, Any]:
  """A statistic of two mean curves, with a 95 % interval over seeds.

  Args:
    ours: one curve a seed.
    theirs: the other method's, independent of ours.
    statistic: of the two means.

  Returns:
    value and ci95; what is not finite is None. A ratio of which nothing is
    known lies between 0 and None.
  """

  def value(a: Sequence[Curve], b: Sequence[Curve]) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
      return statistic.of(mean_curve(a), mean_curve(b))

  def scaled(x: float) -> float:
    if not statistic.ratio:
      return x
    return math.log(x) if x > 0 else -math.inf if x == 0 else math.nan

  whole = value(ours, theirs)
  left_out = [
    np.array([scaled(value(a, theirs)) for a in _without_one(ours)]),
    np.array([scaled(value(ours, b)) for b in _without_one(theirs)]),
  ]
  half = _half_width(left_out)
  bounds = (-math.inf, math.inf)
  if math.isfinite(half) and math.isfinite(scaled(whole)):
    bounds = scaled(whole) - half, scaled(whole) + half
  if statistic.ratio:
    low, high = (math.exp(min(b, 700.0)) for b in bounds)
    bounds = low, high if bounds[1] < 700 else math.inf
  return {"value": _finite(whole), "ci95": [*map(_finite, bounds)]}


def _without_one(runs: Sequence[Curve]) -> list[list[Curve]]:
  return [
    [*runs[:i], *runs[i + 1 :]] for i in range(len(runs) if runs[1:] else 0)
  ]


def _half_width(left_out: Sequence[np.ndarray]) -> float:
  """Half of an interval, from a statistic without each run of each method."""
  if not all(x.size and np.isfinite(x).all() for x in left_out):
    return math.inf
  variances = [(x.size - 1) * np.var(x) for x in left_out]
  if not sum(variances):
    return 0.0
  freedom = sum(variances) ** 2 / sum(
    v**2 / (x.size - 1) for v, x in zip(variances, left_out, strict=True)
  )
  return float(stats.t.ppf(0.975, freedom) * math.sqrt(sum(variances)))


def _finite(x: float) -> float | None:
  return float(x) if math.isfinite(x) else None


def probability_of_improvement(
  ours: Sequence[float], theirs: Sequence[float]
) -> float:
  """P(a run of ours beats one of theirs) over all pairs; a tie is half."""
  difference = np.subtract.outer(np.asarray(ours), np.asarray(theirs))
  return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def contrast(
  runs: Mapping[str, Sequence[Curve]], ours: str = "tsd"
) -> dict[str, dict[str, Any]]:
  """What one method gains on each other one.

  Args:
    runs: curves by method, one a seed.
    ours: the method.

  Returns:
    `steps_to_target`: tokens that the update steps of `ours` read until it has
    the other's last accuracy, as a fraction of those that the other reads until
    then: where all steps are of one size, the ratio of their numbers;
    `accuracy_at_equal_tokens`, `accuracy_at_equal_seconds`,
    `accuracy_at_equal_calls` (of the reward) and `accuracy_at_equal_prompts`:
    the ratio of accuracies at the end of the shorter run,
    `accuracy_at_half_the_tokens` at half of its tokens;
    `difference_at_equal_tokens`, `difference_at_equal_steps` and
    `difference_of_area`: differences; `probability_of_improvement` at equal
    tokens.
  """

  def steps(a: Curve, b: Curve) -> float:
    target = b.accuracy[-1]
    # A method that never leaves its start reaches that at once.
    return first_at(a, target) / max(first_at(b, target), 1e-9)

  def at_equal(
    axis: str, combine: Callable[[float, float], float], share: float = 1.0
  ):
    def statistic(a: Curve, b: Curve) -> float:
      end = share * min(getattr(c, axis)[-1] for c in (a, b))
      return combine(*(at(c, axis, end) for c in (a, b)))

    return Statistic(statistic, ratio=combine is np.divide)

  def areas(a: Curve, b: Curve) -> float:
    end = min(a.tokens[-1], b.tokens[-1])
    return area(a, end) - area(b, end)

  statistics = {
    "steps_to_target": Statistic(steps, ratio=True),
    "accuracy_at_equal_tokens": at_equal("tokens", np.divide),
    "accuracy_at_half_the_tokens": at_equal("tokens", np.divide, 0.5),
    "accuracy_at_equal_seconds": at_equal("seconds", np.divide),
    "accuracy_at_equal_calls": at_equal("scored", np.divide),
    "accuracy_at_equal_prompts": at_equal("prompts", np.divide),
    "difference_at_equal_tokens": at_equal("tokens", np.subtract),
    "difference_at_equal_steps": at_equal("updated", np.subtract),
    "difference_of_area": Statistic(areas, ratio=False),
  }
  found: dict[str, dict[str, Any]] = {}
  for name, theirs in runs.items():
    if name == ours:
      continue
    pair, mine = f"{ours}/{name}", runs[ours]
    for key, statistic in statistics.items():
      found.setdefault(key, {})[pair] = jackknife(mine, theirs, statistic)
    tokens = min(c.tokens[-1] for c in (*mine, *theirs))
    found.setdefault("probability_of_improvement", {})[pair] = (
      probability_of_improvement(
        [at(c, "tokens", tokens) for c in mine],
        [at(c, "tokens", tokens) for c in theirs],
      )
    )
  return found


def table(content: dict[str, Any]) -> str:
  """A compare.json as lines of text."""
  return "\n\n".join([heading(content), *map(_aligned, tables(content))])


def heading(content: Mapping[str, Any]) -> str:
  """What a compare.json compares, in a sentence."""
  seeds = len(next(iter(content["methods"].values()))["seeds"])
  return (
    f"{content['task']}, {content['tokens'] / 1e6:g} M ledger tokens a run "
    f"({BACKWARD_COST} are one token forward and backward), {seeds} seeds, "
    f"each method at the best of {content['trials']} settings by "
    f"{content['score']}; curves are {content['mode']} of "
    f"{content['curves_of']} problems, columns of {content['split']} problems; "
    "95 % intervals in brackets."
  )


Rows = list[list[str]]  # Of a table, its head first.


def tables(content: Mapping[str, Any]) -> list[Rows]:
  """A compare.json as tables, each with its head."""
  found = [_spent_rows(content)]
  if "columns" in content:
    found += [_column_rows(content), *_column_ratio_rows(content)]
  return [*found, _ratio_rows(content)]


def _aligned(rows: Rows) -> str:
  """A table as lines, their cells at the right of as wide columns."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    "  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True))
    for row in rows
  )


def _spent_rows(content: Mapping[str, Any]) -> Rows:
  """What each method's runs have spent, and where their curves end."""
  head = [
    "method", "last of the curve", "area", "iterations", "M tokens",
    "M tokens updated", "M calls", "M prompts", "seconds", "edges",
  ]  # fmt: skip
  rows = []
  for name, row in content["methods"].items():
    last = [accuracy[-1] for accuracy in row[content["mode"]]]
    spent = row["seconds_of_runs"]
    rows.append([
      name,
      f"{np.mean(last):.3f} {min(last):.3f}-{max(last):.3f}",
      f"{np.mean(row['area']):.3f}",
      f"{row['iterations'][-1]:.0f}",
      *(f"{row[x][-1] / 1e6:.2f}" for x in ("tokens", "updated", "scored")),
      f"{row['prompts'][-1] / 1e6:.3f}",
      f"{np.mean(spent):.0f} {min(spent):.0f}-{max(spent):.0f}",
      ", ".join(field.rsplit(".", 1)[-1] for field in row["edges"]) or "none",
    ])  # fmt: skip
  return [head, *rows]


def _column_rows(content: Mapping[str, Any]) -> Rows:
  """Test problems: what the start and each method answer."""
  start = {"start": {"temperature": 1.0, "columns": content["start"]}}
  rows = []
  for name, row in (start | content["methods"]).items():
    found = row["columns"]
    cells = {"method": name, "temperature": f"{row['temperature']:g}"}
    for column, value in found.items():
      if isinstance(value, Mapping):
        form = ".2f" if column == "distinct" else ".3f"
        cells[column] = interval(value, form)
      else:
        cells[column] = "–" if value is None else f"{value:.3f}"
    rows.append(cells)
  return [list(rows[0]), *(list(cells.values()) for cells in rows)]


def _column_ratio_rows(content: Mapping[str, Any]) -> list[Rows]:
  """Test problems: tsd's columns over those of the others."""
  found = content["columns"]
  pairs = next(iter(found.values()))
  if not pairs:  # One seed tells no interval.
    return []
  head = ["tsd over", *found]
  rows = [
    [
      pair.split("/")[1],
      *(interval(found[name][pair]["ratio"], ".2f") for name in found),
    ]
    for pair in pairs
  ]
  return [[head, *rows]]


def _ratio_rows(content: Mapping[str, Any]) -> Rows:
  """Curves: what tsd needs for what the others reach."""
  ratios = content["ratios"]
  shown = {
    "steps to its last": ("steps_to_target", "never"),
    "x at equal tokens": ("accuracy_at_equal_tokens", "none"),
    "x at equal calls": ("accuracy_at_equal_calls", "none"),
    "x at equal prompts": ("accuracy_at_equal_prompts", "none"),
    "x at equal seconds": ("accuracy_at_equal_seconds", "none"),
  }
  shown = {name: key for name, key in shown.items() if key[0] in ratios}
  rows = [["tsd against", *shown, "P"]]
  for pair, better in ratios["probability_of_improvement"].items():
    cells = (
      interval(ratios[key][pair], ".2f", word) for key, word in shown.values()
    )
    rows.append([pair.split("/")[1], *cells, f"{better:.2f}"])
  return rows


def interval(found: Mapping[str, Any], form: str, missing: str = "–") -> str:
  """A value with its interval; what is not finite has a word of its own.

  One run tells no interval, and none is written.
  """
  if found["value"] is not None and found["ci95"] == [None, None]:
    return format(found["value"], form)
  value, low, high = (
    missing if x is None else format(x, form)
    for x in (found["value"], *found["ci95"])
  )
  return f"{value} [{low}, {high}]"
