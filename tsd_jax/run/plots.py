"""What a run's numbers look like: curves, bars, and what they mean in words."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tsd_jax.base import outside_files
from tsd_jax.base.ledger import BACKWARD_COST
from tsd_jax.run import drawing
from tsd_jax.run.curves import Curve
from tsd_jax.run.drawing import Bars, Level, Line, Mark, Plot

Rows = Sequence[Mapping[str, Any]]


class Log(NamedTuple):
  """A run's folder as a page needs it."""

  rows: Rows
  config: Mapping[str, Any]
  samples: Sequence[Mapping[str, Any]] = ()
  floor: float | None = None  # What the best constant answer solves.
  finished: bool = True
  # The best-paid answers that a second verifier rejects.
  rejected: Sequence[Mapping[str, Any]] = ()


def _values_leaves(log: Log) -> bool:
  """Whether V_search of a run is trained, or its search values leaves."""
  search = log.config.get("search", {})
  leaf = search.get("leaf") if isinstance(search, Mapping) else None
  trained = any("success_loss" in row for row in log.rows[-1:])
  return trained or leaf in ("value", "mix", "progress")


class _Metrics(NamedTuple):
  """Metrics that share axes."""

  key: str
  title: str
  y_label: str
  names: Mapping[str, str]  # Of each metric, in words.
  note: str = ""
  shown: Callable[[Log], bool] = lambda log: True
  known: Callable[[Mapping[str, Any]], bool] = lambda row: True


# A run shows one if it has the first of its metrics.
_TRAINING = (
  _Metrics(
    "reward", "Reward in training", "mean reward",
    {"reward": "samples", "search_reward": "best of each tree"},
  ),
  _Metrics(
    "solved", "Solved in training", "fraction of answers",
    {"correct": "samples", "search_correct": "best of each tree"},
  ),
  _Metrics(
    "search_gain", "What the search adds",
    "reward of a tree's best answer, less the greedy one's",
    {"search_gain": "gain"},
  ),
  _Metrics(
    "champion_ce", "Champions under the policy",
    "−log-likelihood of a token (nats)", {"champion_ce": "champions"},
    "Mean over the tokens of the answers that are distilled; 0: certain.",
    known=lambda row: row.get("champion_rate") != 0,
  ),
  _Metrics(
    "soft_kl", "Soft targets", "KL to the tree's moves (nats)",
    {"soft_kl": "policy"},
  ),
  _Metrics(
    "policy_loss", "Policy loss", "clipped surrogate (reward)",
    {"policy_loss": "samples"}, "It is minimised; its mean is near 0.",
  ),
  _Metrics(
    "value_loss", "Loss of the value head V_π", "squared error (reward²)",
    {"value_loss": "samples"},
  ),
  _Metrics(
    "success_loss", "Loss of the success head V_search",
    "cross-entropy (nats)", {"success_loss": "samples"},
    "At ln 2 = 0.693 the head knows no more than a coin.",
  ),
  _Metrics(
    "search_value", "V_search of prompts", "probability of success",
    {"search_root_value": "as V_search says", "correct": "samples solved"},
    "Where the head is right, both curves lie on each other.",
    _values_leaves,
  ),
  _Metrics(
    "learning_rate", "Learning rate", "step size of Adam",
    {"learning_rate": "learning rate"},
  ),
  _Metrics(
    "grad_norm", "Gradient norm", "Euclidean norm, before clipping",
    {"grad_norm": "gradient"},
  ),
  _Metrics(
    "entropy", "Entropy of the policy", "nats a token", {"entropy": "policy"},
  ),
  _Metrics(
    "approx_kl", "Policy against the one that sampled", "KL (nats a token)",
    {"approx_kl": "estimate"},
  ),
  _Metrics(
    "kl_reference", "Policy against the start", "KL (nats a token)",
    {"kl_reference": "exact"},
  ),
  _Metrics(
    "clip_fraction", "Clipped tokens", "fraction of tokens",
    {"clip_fraction": "clipped"},
  ),
  _Metrics(
    "champion_rate", "Distilled prompts", "fraction that has a champion",
    {"champion_rate": "prompts"},
  ),
  _Metrics(
    "response_length", "Length of responses", "tokens",
    {"response_length": "samples"},
  ),
  _Metrics(
    "search_depth", "Depth of a node", "tokens from the prompt",
    {"search_depth": "mean"},
  ),
  _Metrics(
    "search_answers", "Distinct answers in a tree", "answers",
    {"search_answers": "mean"},
  ),
  _Metrics(
    "search_shares", "How simulations were spent", "fraction",
    {
      "search_wasted": "found nothing to grow",
      "search_duplicates": "answers found before",
      "search_cut_off": "nodes without an answer",
    },
  ),
  _Metrics(
    "search_visits", "Entropy of the root's visits", "nats",
    {"search_visit_entropy": "mean"},
  ),
  _Metrics(
    "search_age", "Age of the search model", "iterations since its refresh",
    {"search_age": "age"},
    shown=lambda log: any(row.get("search_age") for row in log.rows),
  ),
)  # fmt: skip

_STROKES = ("-", ":", "--")
_PARTS = {
  "prefill": "prompts",
  "search": "search",
  "rollout": "samples",
  "rescore": "reference and old policies",
  "update": f"updates (×{BACKWARD_COST})",
  "reward": "reward models",
}


def training(logs: Mapping[str, Log]) -> list[Plot]:
  """One plot for each group of metrics that some run has."""
  plots = [_of_group(group, logs) for group in _TRAINING]
  return [plot for plot in plots if plot.lines]


_PART, _CHAMPION = "reward_", "champion_"


def reward_parts(logs: Mapping[str, Log]) -> list[Plot]:
  """One plot for each part that some run's reward is made of."""
  rows = [row for log in logs.values() for row in log.rows]
  names = {key: None for row in rows for key in row if key.startswith(_PART)}
  groups = [
    _Metrics(
      name, f"Part of the reward: {name.removeprefix(_PART)}", "mean",
      {name: "samples", _CHAMPION + name: "champions"},
    )
    for name in names
  ]  # fmt: skip
  plots = [_of_group(group, logs) for group in groups]
  return [plot for plot in plots if plot.lines]


def _of_group(group: _Metrics, logs: Mapping[str, Log]) -> Plot:
  lines = _lines(group, logs)
  return Plot(
    group.key, group.title, "iterations", group.y_label, lines,
    note=group.note, named=len(logs) > 1 or len(lines) > 1,
  )  # fmt: skip


# What an audit found at evaluations, and what it says of each iteration.
_AUDIT = (
  _Metrics(
    "audit_accepted", "Samples that the audit accepts, held out", "fraction",
    {"audit.accepted": "all", "audit.accepted_best_paid": "best paid"},
    "Best paid: of a problem's samples that with the highest reward.",
  ),
  _Metrics(
    "audit_champion", "Champions that the audit accepts, held out", "fraction",
    {
      "audit.accepted_champion": "champions",
      "audit.accepted_greedy": "greedy answers",
    },
    "Champions are what a search finds in place of greedy answers.",
  ),
  _Metrics(
    "audit_training", "What the audit accepts in training", "fraction",
    {"accepted": "samples", "champion_accepted": "champions distilled"},
  ),
  _Metrics(
    "audit_reward", "Paid reward, held out", "mean reward",
    {"audit.reward": "all", "audit.reward_of_rejected": "rejected answers"},
  ),
  _Metrics(
    "audit_disagreement", "Disagreement of the ensemble, held out",
    "standard deviation over members", {"audit.disagreement": "answers"},
  ),
  _Metrics(
    "audit_length", "Length of answers, held out", "tokens",
    {"audit.length": "answers"},
  ),
  _Metrics(
    "audit_kl", "Policy against the start, held out", "KL (nats a token)",
    {"audit.kl": "estimate"},
  ),
)  # fmt: skip


def audit(log: Log) -> list[Plot]:
  """What a run's audit found, with a mark where it warned; nothing without."""
  rows = [
    {**row} | {f"audit.{name}": x for name, x in row.get("audit", {}).items()}
    for row in log.rows
  ]
  warned = alarms(log)
  marks = [Mark("audit warns", warned[0][0])] if warned else []
  logs = {"audit": log._replace(rows=rows)}
  plots = [_of_group(group, logs) for group in _AUDIT]
  return [plot._replace(marks=marks) for plot in plots if plot.lines]


def alarms(log: Log) -> list[tuple[int, str]]:
  """What spoke for hacking, each rule once: iteration, and why."""
  first: dict[str, tuple[int, str]] = {}
  for row in log.rows:
    for rule, why in row.get("audit", {}).get("alarms", {}).items():
      first.setdefault(rule, (row["step"], why))
  return list(first.values())


def _lines(group: _Metrics, logs: Mapping[str, Log]) -> list[Line]:
  lines, first = [], next(iter(group.names))
  for i, (run, log) in enumerate(logs.items()):
    rows = [row for row in log.rows if group.known(row)]
    if not group.shown(log) or not len(_points(rows, first)[0]):
      continue
    strokes = _STROKES if len(group.names) > 1 else (past_colours(i),)
    for (metric, name), stroke in zip(
      group.names.items(), strokes, strict=False
    ):
      x, y = _points(rows, metric)
      said = " · ".join(
        [run] * (len(logs) > 1 or len(group.names) < 2)
        + [name] * (len(group.names) > 1)
      )
      if len(x):
        lines.append(Line(said, x, y, colour=i, stroke=stroke))
  return lines


def _points(rows: Rows, metric: str) -> tuple[np.ndarray, np.ndarray]:
  found = [
    (row["step"], row[metric])
    for row in rows
    if outside_files.is_number(row.get(metric))
  ]
  x, y = zip(*found, strict=True) if found else ((), ())
  return np.asarray(x, float), np.asarray(y, float)


# What held-out accuracy is drawn against: the axis, its unit and its label.
_AGAINST = {
  "iterations": ("iterations", 1.0, "iterations"),
  "tokens": ("tokens", 1e6, "million ledger tokens"),
  "seconds": ("seconds", 1.0, "seconds of training"),
}


def held_out(
  curves: Mapping[str, Curve],
  mode: str,
  *,
  bands: str = "The band is one standard error over prompts.",
  floors: Mapping[str, float] | None = None,
  flops_per_token: Mapping[str, float] | None = None,
  timed: bool = True,
) -> list[Plot]:
  """Held-out accuracy against iterations, tokens, seconds and operations.

  Args:
    curves: by name; their `stderr` is half of the band, where it is finite.
    mode: what the accuracy is, such as mean@16.
    bands: what they are, in words.
    floors: accuracy of the best constant answer, by name, where it is known.
    flops_per_token: by name, if known.
    timed: whether seconds may be compared.
  """
  against = {k: v for k, v in _AGAINST.items() if timed or k != "seconds"}
  levels = _levels(curves, floors or {})
  plots = [
    Plot(
      f"accuracy_{key}", f"Accuracy against {key}", label, f"accuracy, {mode}",
      _accuracy_lines(
        curves, lambda c, _, a=axis, u=unit: getattr(c, a) / u
      ),
      levels, from_zero=True, note=bands, named=len(curves) > 1,
    )
    for key, (axis, unit, label) in against.items()
  ]  # fmt: skip
  if flops_per_token:
    of = flops_per_token
    lines = _accuracy_lines(curves, lambda c, n: c.tokens * of[n] / 1e12)
    plots.append(
      plots[0]._replace(
        key="accuracy_flops", title="Accuracy against operations",
        x_label="FLOPs (10¹²)", lines=lines,
      )
    )  # fmt: skip
  return plots


def _accuracy_lines(
  curves: Mapping[str, Curve], x_of: Callable[[Curve, str], np.ndarray]
) -> list[Line]:
  lines = []
  for i, (name, c) in enumerate(curves.items()):
    low = high = None
    if np.isfinite(c.stderr).all() and np.any(c.stderr):
      low = np.clip(c.accuracy - c.stderr, 0.0, 1.0)
      high = np.clip(c.accuracy + c.stderr, 0.0, 1.0)
    x = x_of(c, name)
    lines.append(Line(name, x, c.accuracy, low, high, i, past_colours(i)))
  return lines


def past_colours(place: int) -> str:
  """The stroke of a run by its place, another one once colours go round."""
  return ("-", "--", ":")[min(place // len(drawing.LIGHT), 2)]


_SAME_START = 0.02


def _levels(
  curves: Mapping[str, Curve], floors: Mapping[str, float]
) -> list[Level]:
  """Where all runs start, and what the best constant answer solves."""
  starts = [c.accuracy[0] for c in curves.values() if c.iterations[0] == 0]
  levels = []
  # One start is measured with each run's own seed.
  if len(starts) == len(curves) and np.ptp(starts) < _SAME_START:
    levels.append(Level("start", float(np.mean(starts))))
  if floors:
    levels.append(Level("best constant answer", max(floors.values())))
  return levels


def ledger(logs: Mapping[str, Log]) -> Bars:
  """Where the runs' tokens went, in millions."""
  parts = {
    name: [spent(log.rows[-1], part) / 1e6 for log in logs.values()]
    for part, name in _PARTS.items()
  }
  return Bars(
    "ledger", "Ledger tokens by part", "million tokens", list(logs),
    {name: row for name, row in parts.items() if any(row)},
    f"A token of an update counts {BACKWARD_COST}: forward and backward.",
  )  # fmt: skip


def spent(row: Mapping[str, Any], part: str) -> int:
  """Ledger tokens of a part that a run has spent until a row."""
  weight = BACKWARD_COST if part == "update" else 1
  return weight * row["ledger"].get(part, 0)
