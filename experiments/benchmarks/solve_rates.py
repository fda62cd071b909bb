"""Curves of the fraction solved against tokens spent, with intervals.

A method is measured as the tokens that it spent on each prompt before its first
correct answer, inf if it found none: `tokens_XXQ`, whose axes are settings of
the method, of which each point of a curve takes the best; repetitions with
other random numbers; prompts. What else leads with X has an entry for every
bootstrap resample of the prompts (the same ones for all methods, so that ratios
are of pairs).
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tsd_jax.run import figures

RATES = {"at_50": 0.5, "at_80": 0.8}
BASELINES = ("best_of_n", "cached_sampling")
_DRAWS = 1000
_THICK = (*BASELINES, "best_first", "best_first_value", "best_first_oracle")
_STYLES = ("-", "--", ":")


def resamples(prompts: int, draws: int = _DRAWS) -> np.ndarray:
  """Prompts of each resample; the first one is all prompts once."""
  rng = np.random.default_rng(0)
  picks_XQ = rng.integers(0, prompts, (draws, prompts))
  return np.concatenate([np.arange(prompts)[None], picks_XQ])


def solve_rate(
  tokens_XXQ: np.ndarray, points: Sequence[int], picks_XQ: np.ndarray
) -> np.ndarray:
  """Fraction solved within so many tokens by the best setting, by points."""
  solved_XQX = (tokens_XXQ[..., None] <= np.asarray(points)).mean(axis=1)
  return np.stack(
    [solved_XQX[:, picks_Q].mean(axis=1).max(axis=0) for picks_Q in picks_XQ]
  )


def tokens_at(
  tokens_XXQ: np.ndarray, rate: float, picks_XQ: np.ndarray
) -> np.ndarray:
  """Tokens a prompt at which the best setting has solved a fraction.

  Stopping every prompt at so many tokens solves the fraction; inf if never.
  """
  settings, repetitions, Q = tokens_XXQ.shape
  rank = max(int(np.ceil(rate * repetitions * Q - 1e-9)) - 1, 0)

  def one(picks_Q):
    rows_XX = tokens_XXQ[:, :, picks_Q].reshape(settings, -1)
    return np.partition(rows_XX, rank, axis=1)[:, rank].min()

  return np.array([one(picks_Q) for picks_Q in picks_XQ])


def estimate(value_X: np.ndarray) -> dict[str, Any]:
  """Value and 95 % interval; None where it is not finite."""
  with np.errstate(invalid="ignore"):
    low, high = np.quantile(value_X[1:], [0.025, 0.975], method="nearest")

  def finite(x):
    return round(float(x), 4) if np.isfinite(x) else None

  return {"value": finite(value_X[0]), "ci95": [finite(low), finite(high)]}


def ratio(
  ours_X: np.ndarray, theirs_X: np.ndarray, budget: int
) -> dict[str, Any] | None:
  """Our tokens as a fraction of theirs, both at an equal solve rate.

  Where one of both never gets there, the budget stands for its tokens and
  `bound` says what that makes of the ratio; None where neither does.
  """
  missed = [bool(a[0] > budget) for a in (ours_X, theirs_X)]
  if all(missed):
    return None
  result = estimate(np.minimum(ours_X, budget) / np.minimum(theirs_X, budget))
  if any(missed):
    result["bound"] = "at least" if missed[0] else "at most"
  return result


def summarise(
  methods: dict[str, np.ndarray], points: Sequence[int]
) -> dict[str, dict[str, Any]]:
  """All figures of some methods on the same prompts.

  Args:
    methods: tokens_XXQ by name. All are held against `best_of_n` and
      `cached_sampling`, and `best_first` with its kin against every other.
    points: tokens of the curve; the last one is the budget.

  Returns:
    By method: `solve_rate`, `tokens_at_50`, `tokens_at_80`, and the ratios.
  """
  budget = points[-1]
  prompts = next(iter(methods.values())).shape[-1]
  picks_XQ = resamples(prompts)

  @functools.cache
  def at(name, rate):
    return tokens_at(methods[name], rate, picks_XQ)

  @functools.cache
  def reached(name):
    """What a method solves with the whole budget."""
    return float(solve_rate(methods[name], [budget], picks_XQ[:1])[0, 0])

  def against(name, other):
    return {
      key: ratio(at(name, rate), at(other, rate), budget)
      for key, rate in RATES.items()
    }

  rows = {}
  for name, tokens_XXQ in methods.items():
    curve_XX = solve_rate(tokens_XXQ, points, picks_XQ)
    ends_2X = np.quantile(curve_XX[1:], [0.025, 0.975], axis=0)
    row: dict[str, Any] = {
      "solve_rate": {
        "tokens": list(points),
        "value": curve_XX[0].round(4).tolist(),
        "ci95": ends_2X.T.round(4).tolist(),
      }
    }
    for key, rate in RATES.items():
      at_X = at(name, rate)
      row[f"tokens_{key}"] = estimate(np.where(at_X > budget, np.inf, at_X))
    for other in BASELINES:
      if other in methods and other != name:
        row[f"tokens_ratio_vs_{other}"] = found = against(name, other)
        # The most that both of them solve.
        if rate := min(reached(name), reached(other)):
          pair = at(name, rate), at(other, rate)
          found["at_highest_common"] = {"solve_rate": round(rate, 4)}
          found["at_highest_common"] |= ratio(*pair, budget)
    if name.startswith("best_first"):
      row["tokens_ratio_vs"] = {
        other: against(name, other)
        for other in methods
        if other != name and other not in BASELINES
      }
    rows[name] = row
  return rows


def table(rows: dict[str, dict[str, Any]], points: Sequence[int]) -> str:
  """Lines of text, one a method."""

  def number(found, form="{:.0f}"):
    if not found or found["value"] is None:
      return "–"
    mark = {"at most": "≤", "at least": "≥"}.get(found.get("bound"), "")
    return mark + form.format(found["value"])

  width = max(map(len, rows))
  shown = [p for p in points if p & (p - 1) == 0]
  lines = [
    f"{'':{width}} "
    + "".join(f"{p:>7}" for p in shown)
    + f"{'50 %':>8}{'80 %':>6}{'/best-of-N':>13}{'/cached':>13}"
  ]
  for name, row in rows.items():
    curve = row["solve_rate"]
    at = [curve["value"][curve["tokens"].index(p)] for p in shown]
    against = []
    for other in BASELINES:
      found = row.get(f"tokens_ratio_vs_{other}", {})
      pair = (number(found.get(key), "{:.2f}") for key in RATES)
      against.append(" ".join(pair))
    lines.append(
      f"{name:>{width}} "
      + "".join(f"{x:7.2f}" for x in at)
      + f"{number(row['tokens_at_50']):>8}{number(row['tokens_at_80']):>6}"
      + f"{against[0]:>13}{against[1]:>13}"
    )
  return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]]) -> str:
  """Curves of rows with task, policy and method as SVG, one line a task.

  What a table is read for is drawn thick, with its intervals.
  """
  panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
  for row in rows:
    panels.setdefault((row["task"], row["policy"]), []).append(row)
  places = zip(*panels, strict=True)
  tasks, policies = (list(dict.fromkeys(names)) for names in places)
  figure = Figure(
    figsize=(3.2 * len(policies) + 2, 2.8 * len(tasks)), layout="constrained"
  )
  all_axes = figure.subplots(len(tasks), len(policies), squeeze=False)
  names = list(dict.fromkeys(row["method"] for row in rows))
  for (task, policy), curves in panels.items():
    axes = all_axes[tasks.index(task), policies.index(policy)]
    for row in curves:
      i, curve = names.index(row["method"]), row["solve_rate"]
      thick = row["method"] in _THICK
      color, style = f"C{i % 10}", _STYLES[i // 10 % len(_STYLES)]
      axes.plot(
        curve["tokens"], curve["value"], style, color=color,
        label=row["method"], lw=2.2 if thick else 0.8,
      )  # fmt: skip
      if thick:
        low, high = zip(*curve["ci95"], strict=True)
        axes.fill_between(curve["tokens"], low, high, color=color, alpha=0.12)
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 1)
    axes.set_title(f"{task}, {policy}", fontsize=10, loc="left")
    axes.set_xlabel("tokens a prompt", fontsize=9)
    axes.set_ylabel("prompts solved", fontsize=9)
    axes.grid(alpha=0.25)
  all_axes = all_axes.ravel()
  for axes in all_axes:
    axes.set_visible(bool(axes.lines))
  lines = {line.get_label(): line for axes in all_axes for line in axes.lines}
  figure.legend(
    lines.values(), lines, fontsize=8, frameon=False, loc="outside right upper"
  )
  return figures.to_svg(figure)
