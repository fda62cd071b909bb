"""Runs side by side: at equal iterations and at equal ledger tokens.

Statistics over seeds follow arXiv:2108.13264: bootstrap intervals that resample
seeds, and the probability that a run of one method beats one of another.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tsd_jax.config import UserError
from tsd_jax.workdir import read_rows


class Curve(NamedTuple):
  """Held-out accuracy of one run at its evaluations, in order."""

  iterations: np.ndarray
  tokens: np.ndarray  # Ledger total.
  accuracy: np.ndarray
  stderr: np.ndarray  # Over prompts; over seeds in a mean of runs.
  seconds: np.ndarray  # Of training, without evaluation.


def read_curve(workdir: str | pathlib.Path, mode: str) -> Curve:
  """Reads a run's evaluations.

  Args:
    workdir: the run's folder.
    mode: such as mean@16.

  Raises:
    UserError: if there is no run, or it never evaluated this mode.
  """
  points = [
    (
      row["step"],
      row["ledger"]["total"],
      row["eval"][mode]["accuracy"],
      row["eval"][mode]["stderr"],
      row["seconds"],
    )
    for row in read_rows(workdir)
    if mode in row.get("eval", {})
  ]
  if not points:
    raise UserError(
      f"the run in {workdir} has no evaluation of {mode}: add it to "
      "--config.eval.modes"
    )
  return Curve(*map(np.asarray, zip(*points, strict=True)))


def at_tokens(curve: Curve, tokens: float) -> float:
  """Accuracy at a ledger total, linear between two evaluations."""
  return float(np.interp(tokens, curve.tokens, curve.accuracy))


def summary(curves: dict[str, Curve], mode: str) -> str:
  """A table of runs at equal iterations and at equal ledger tokens.

  Args:
    curves: by method.
    mode: the mode that they were read with, for the heading.

  Returns:
    Lines of text.
  """
  steps = min(c.iterations[-1] for c in curves.values())
  tokens = min(c.tokens[-1] for c in curves.values())
  lines = [
    f"held-out {mode}",
    f"{'method':>10}  {'start':>6}  {f'{steps} iterations':>20}  "
    f"{f'{tokens / 1e6:.2f} M tokens':>16}  {'tokens/iteration':>16}",
  ]
  for name, c in curves.items():
    at = int(np.searchsorted(c.iterations, steps, side="right")) - 1
    lines.append(
      f"{name:>10}  {c.accuracy[0]:>6.3f}  "
      f"{f'{c.accuracy[at]:.3f} ± {c.stderr[at]:.3f}':>20}  "
      f"{at_tokens(c, tokens):>16.3f}  "
      f"{c.tokens[-1] // max(c.iterations[-1], 1):>16,}"
    )
  return "\n".join(lines)


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


def area(curve: Curve) -> float:
  """Mean accuracy over a run's iterations (area under its curve)."""
  width = curve.iterations[-1] - curve.iterations[0]
  return float(np.trapezoid(curve.accuracy, curve.iterations) / max(width, 1))


def bootstrap(
  ours: Sequence[Curve],
  theirs: Sequence[Curve],
  statistic: Callable[[Curve, Curve], float],
  *,
  draws: int = 2000,
) -> dict[str, Any]:
  """A statistic of two mean curves, with a 95 % interval over seeds.

  Args:
    ours: one curve a seed.
    theirs: the other method's.
    statistic: of the two means.
    draws: resamples of the seeds, of both methods independently.

  Returns:
    value (of all seeds), median and ci95 of the resamples; numbers that are
    infinite are None.
  """
  rng = np.random.default_rng(0)

  def resample(curves):
    picks = rng.integers(0, len(curves), len(curves))
    return mean_curve([curves[i] for i in picks])

  with np.errstate(divide="ignore", invalid="ignore"):
    values = [statistic(resample(ours), resample(theirs)) for _ in range(draws)]
    # Quantiles by rank: an interpolation between infinities is no number.
    low, median, high = np.quantile(values, [0.025, 0.5, 0.975], method="lower")
  whole = statistic(mean_curve(ours), mean_curve(theirs))

  def finite(x):
    return float(x) if np.isfinite(x) else None

  return {
    "value": finite(whole),
    "median": finite(median),
    "ci95": [finite(low), finite(high)],
  }


def probability_of_improvement(
  ours: Sequence[float], theirs: Sequence[float]
) -> float:
  """P(a run of ours beats one of theirs) over all pairs; a tie is half."""
  difference = np.subtract.outer(np.asarray(ours), np.asarray(theirs))
  return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def contrast(
  runs: dict[str, Sequence[Curve]], ours: str = "tsd"
) -> dict[str, dict[str, Any]]:
  """What one method gains on each other one.

  Args:
    runs: curves by method, one a seed.
    ours: the method.

  Returns:
    `steps_to_target`: iterations that `ours` needs for the other's last
    accuracy, as a fraction of the iterations that the other needs for it;
    `accuracy_at_equal_tokens` and `accuracy_at_equal_steps`: differences, at
    the end of the shorter run; `probability_of_improvement` at equal tokens.
  """

  def ratio(a: Curve, b: Curve) -> float:
    target = b.accuracy[-1]
    return steps_to(a, target) / max(steps_to(b, target), 1e-9)

  def by_tokens(a: Curve, b: Curve) -> float:
    tokens = min(a.tokens[-1], b.tokens[-1])
    return at_tokens(a, tokens) - at_tokens(b, tokens)

  def by_steps(a: Curve, b: Curve) -> float:
    return float(a.accuracy[-1] - b.accuracy[-1])

  found: dict[str, dict[str, Any]] = {}
  for name, theirs in runs.items():
    if name == ours:
      continue
    pair, mine = f"{ours}/{name}", runs[ours]
    for key, statistic in (
      ("steps_to_target", ratio),
      ("accuracy_at_equal_tokens", by_tokens),
      ("accuracy_at_equal_steps", by_steps),
    ):
      found.setdefault(key, {})[pair] = bootstrap(mine, theirs, statistic)
    tokens = min(c.tokens[-1] for c in (*mine, *theirs))
    found.setdefault("probability_of_improvement", {})[pair] = (
      probability_of_improvement(
        [at_tokens(c, tokens) for c in mine],
        [at_tokens(c, tokens) for c in theirs],
      )
    )
  return found
