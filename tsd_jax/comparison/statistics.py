"""Runs side by side: at equal iterations and at equal ledger tokens.

Statistics over seeds follow arXiv:2108.13264: bootstrap intervals that resample
seeds, and the probability that a run of one method beats one of another.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tsd_jax.base.ledger import BACKWARD_COST
from tsd_jax.run.curves import Curve, at


def mean_curve(curves: Sequence[Curve]) -> Curve:
  """Mean over seeds of runs that were evaluated at the same iterations."""
  stacked = Curve(*map(np.stack, zip(*curves, strict=True)))
  mean = Curve(*(a.mean(axis=0) for a in stacked))
  spread = stacked.accuracy.std(axis=0, ddof=min(1, len(curves) - 1))
  return mean._replace(stderr=spread / np.sqrt(len(curves)))


def steps_to(curve: Curve, target: float) -> float:
  """First iteration at which the accuracy reaches a target; inf if never.

  Linear between two evaluations.
  """
  reached = np.flatnonzero(curve.accuracy >= target)
  if not reached.size:
    return float("inf")
  i = int(reached[0])
  if i == 0:
    return float(curve.iterations[0])
  x, y = curve.iterations[i - 1 : i + 1], curve.accuracy[i - 1 : i + 1]
  return float(np.interp(target, y, x))


def area(curve: Curve, end: float | None = None) -> float:
  """Mean accuracy over the iterations (area under the curve), up to `end`."""
  end = float(curve.iterations[-1]) if end is None else end
  x = np.append(curve.iterations[curve.iterations < end], end)
  y = np.interp(x, curve.iterations, curve.accuracy)
  return float(np.trapezoid(y, x) / max(end - x[0], 1))


Statistic = Callable[[Curve, Curve], float]


def bootstrap(
  ours: Sequence[Curve],
  theirs: Sequence[Curve],
  statistics: Mapping[str, Statistic],
  *,
  draws: int = 2000,
) -> dict[str, dict[str, Any]]:
  """Statistics of two mean curves, with 95 % intervals over seeds.

  Args:
    ours: one curve a seed.
    theirs: the other method's.
    statistics: functions of the two means, by name.
    draws: resamples of the seeds, of both methods independently.

  Returns:
    For each statistic value (of all seeds), median and ci95 of the resamples;
    numbers that are not finite are None.
  """
  rng = np.random.default_rng(0)

  def resample(curves):
    picks = rng.integers(0, len(curves), len(curves))
    return mean_curve([curves[i] for i in picks])

  def finite(x):
    return float(x) if np.isfinite(x) else None

  pairs = [(resample(ours), resample(theirs)) for _ in range(draws)]
  whole = mean_curve(ours), mean_curve(theirs)
  found = {}
  with np.errstate(divide="ignore", invalid="ignore"):
    for name, statistic in statistics.items():
      values = [statistic(*pair) for pair in pairs]
      # By rank: an interpolation between infinities is no number.
      low, median, high = np.quantile(
        values, [0.025, 0.5, 0.975], method="lower"
      )
      found[name] = {
        "value": finite(statistic(*whole)),
        "median": finite(median),
        "ci95": [finite(low), finite(high)],
      }
  return found


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
    `steps_to_target`: iterations that `ours` needs for the other's last
    accuracy, as a fraction of the iterations that the other needs for it;
    `accuracy_at_equal_tokens` and `accuracy_at_equal_seconds`: the ratio of
    accuracies at the end of the shorter run, `accuracy_at_half_the_tokens` at
    half of its tokens; `difference_at_equal_tokens`,
    `difference_at_equal_steps` and `difference_of_area`: differences;
    `probability_of_improvement` at equal tokens.
  """

  def steps(a: Curve, b: Curve) -> float:
    target = b.accuracy[-1]
    # A method that never leaves its start reaches that at once.
    return steps_to(a, target) / max(steps_to(b, target), 1e-9)

  def at_equal(
    axis: str, combine: Callable[[float, float], float], share: float = 1.0
  ):
    def statistic(a: Curve, b: Curve) -> float:
      end = share * min(getattr(c, axis)[-1] for c in (a, b))
      return combine(*(at(c, axis, end) for c in (a, b)))

    return statistic

  def areas(a: Curve, b: Curve) -> float:
    end = min(a.iterations[-1], b.iterations[-1])
    return area(a, end) - area(b, end)

  statistics = {
    "steps_to_target": steps,
    "accuracy_at_equal_tokens": at_equal("tokens", np.divide),
    "accuracy_at_half_the_tokens": at_equal("tokens", np.divide, 0.5),
    "accuracy_at_equal_seconds": at_equal("seconds", np.divide),
    "difference_at_equal_tokens": at_equal("tokens", np.subtract),
    "difference_at_equal_steps": at_equal("iterations", np.subtract),
    "difference_of_area": areas,
  }
  found: dict[str, dict[str, Any]] = {}
  for name, theirs in runs.items():
    if name == ours:
      continue
    pair, mine = f"{ours}/{name}", runs[ours]
    for key, interval in bootstrap(mine, theirs, statistics).items():
      found.setdefault(key, {})[pair] = interval
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
  found, mode = content["methods"], content["mode"]
  seeds = len(next(iter(found.values()))["seeds"])
  names = max(map(len, found))
  lines = [
    f"{content['task']}, {content['split']}, {mode}, {seeds} seeds",
    f"{'':>{names}}  {'':>18}  {'':>5}   per update step: ledger     backward",
    f"{'method':>{names}}  {'last':>18}  {'area':>5}"
    f"  {'prompts searched':>16}  {'tokens':>7}  {'tokens':>11}",
  ]
  for name, row in found.items():
    last = [accuracy[-1] for accuracy in row[mode]]
    mean = sum(last) / len(last)
    area = sum(row["area"]) / len(row["area"])
    step = row["update_step"]
    spread = f"{mean:.3f} {min(last):.3f}-{max(last):.3f}"
    prompts = f"{step['prompts']:>7.0f} {step['searched_prompts']:>8.0f}"
    lines.append(
      f"{name:>{names}}  {spread:>18}  {area:>5.3f}  {prompts}"
      f"  {step['ledger_tokens']:>7,.0f}  {step['backward_tokens']:>11,.0f}"
    )
  ratios = content["ratios"]
  lines += [
    "",
    f"{'tsd against':>{names}}  {'steps to its last':>20}"
    f"  {'x at equal tokens':>20}  {'P':>4}  {'x tokens/step':>13}",
  ]
  ours = found["tsd"]["update_step"]["ledger_tokens"]
  for pair, steps in ratios["steps_to_target"].items():
    name = pair.split("/")[1]
    equal = ratios["accuracy_at_equal_tokens"][pair]
    better = ratios["probability_of_improvement"][pair]
    theirs = found[name]["update_step"]["ledger_tokens"]
    shown = interval(steps, ".2f", "never"), interval(equal, ".2f", "none")
    lines.append(
      f"{name:>{names}}  {shown[0]:>20}"
      f"  {shown[1]:>20}  {better:>4.2f}  {ours / theirs:>13.2f}"
    )
  lines.append(
    f"{BACKWARD_COST} tokens of the ledger are one token forward and backward"
  )
  return "\n".join(lines)


def interval(found: Mapping[str, Any], form: str, missing: str = "–") -> str:
  """A value with its interval; what is not finite has a word of its own."""
  value, low, high = (
    missing if x is None else format(x, form)
    for x in (found["value"], *found["ci95"])
  )
  return f"{value} [{low}, {high}]"
