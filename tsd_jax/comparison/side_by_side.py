"""Runs beside each other: groups of seeds, their figures and answers.

Runs whose settings differ in the seed alone are one line with an interval.
Everything is read from the runs' folders, and no code that they name is run.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from tsd_jax.base import outside_files
from tsd_jax.base.errors import UserError
from tsd_jax.comparison import statistics
from tsd_jax.run import curves as curves_lib
from tsd_jax.run import drawing, evaluation, plots, report
from tsd_jax.run.curves import Curve
from tsd_jax.run.plots import Log
from tsd_jax.run.problems import Problems
from tsd_jax.run.problems import read as read_problems

_APART = ("seed", "mesh", "log")  # Fields in which runs of a group may differ.
_NAMED_BY = 3  # Fields that name a group, at most.


class Run(NamedTuple):
  """A run's folder, read."""

  folder: pathlib.Path
  log: Log
  curve: Curve
  problems: Problems | None

  @property
  def seed(self) -> int:
    """Of the run."""
    seed = self.log.config.get("seed", 0)
    return outside_files.integer(seed, f"{self.folder}: seed", low=-(2**63))


class Group(NamedTuple):
  """Runs that differ in their seeds alone, by seed."""

  name: str
  runs: Sequence[Run]

  @property
  def curves(self) -> list[Curve]:
    """The runs' curves at the iterations that all were evaluated at."""
    common = set.intersection(
      *(set(run.curve.iterations.tolist()) for run in self.runs)
    )
    return [
      Curve(*(a[np.isin(r.curve.iterations, list(common))] for a in r.curve))
      for r in self.runs
    ]


def read(
  folders: Sequence[str | pathlib.Path], mode: str | None = None
) -> tuple[str, list[Group]]:
  """Reads runs and puts those of the same settings together.

  Args:
    folders: of the runs.
    mode: of evaluation; the first run's headline if None.

  Raises:
    UserError: as `write`.
  """
  runs: dict[str, list[Run]] = {}
  for folder in map(pathlib.Path, folders):
    log = report.read_log(folder)
    mode = mode or evaluation.headline(_modes(log))
    curve = curves_lib.read_curve(folder, mode)
    run = Run(folder, log, curve, read_problems(folder))
    runs.setdefault(_settings(log.config), []).append(run)
  if mode is None:
    raise UserError("no run is named: name the folders of some")
  for alike in runs.values():
    alike.sort(key=lambda run: run.seed)
    for one, other in zip(alike, alike[1:], strict=False):
      if one.seed == other.seed:
        raise UserError(
          f"{one.folder} and {other.folder} have the same settings and seed: "
          "name one of them"
        )
  names = _names(list(runs.values()))
  return mode, [Group(*pair) for pair in zip(names, runs.values(), strict=True)]


def _modes(log: Log) -> str:
  settings = log.config.get("eval")
  modes = settings.get("modes") if isinstance(settings, Mapping) else None
  return modes if isinstance(modes, str) else "greedy"


def _settings(config: Mapping[str, Any]) -> str:
  """What runs of a group have in common."""
  rest = {name: v for name, v in config.items() if name not in _APART}
  return json.dumps(rest, sort_keys=True)


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Fields of a config by their dotted names."""
  if not isinstance(config, Mapping):
    yield prefix.removesuffix("."), config
    return
  for name, value in config.items():
    yield from _leaves(value, f"{prefix}{name}.")


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
  """Fields in which some runs differ, with the value of each."""
  configs = [dict(_leaves(run.log.config)) for run in runs]
  fields = dict.fromkeys(name for config in configs for name in config)
  found = {
    field: [config.get(field) for config in configs]
    for field in fields
    if field.partition(".")[0] not in _APART
  }
  return {
    field: values
    for field, values in found.items()
    if any(value != values[0] for value in values)
  }


def _names(runs: Sequence[Sequence[Run]]) -> list[str]:
  """Names of groups: the algorithm, or what differs, or the folder."""
  firsts = [alike[0] for alike in runs]
  algorithms = [str(run.log.config.get("algorithm", "run")) for run in firsts]
  if len(set(algorithms)) == len(runs):
    return algorithms
  differ = differences(firsts)
  differ.pop("algorithm", None)
  if len(differ) > _NAMED_BY or any(
    isinstance(value, list | Mapping) for v in differ.values() for value in v
  ):
    return _unlike([run.folder.name for run in firsts], firsts)
  names = [
    ", ".join(
      [algorithms[i]] * (len(set(algorithms)) > 1)
      + [f"{field.rpartition('.')[2]}={v[i]}" for field, v in differ.items()]
    )
    for i in range(len(runs))
  ]
  return _unlike(names, firsts)


def _unlike(names: list[str], firsts: Sequence[Run]) -> list[str]:
  if len(set(names)) == len(names):
    return names
  return [str(run.folder) for run in firsts]


def _half_width(curves: Sequence[Curve]) -> np.ndarray:
  """Half of a band over seeds, at every evaluation."""
  accuracy = np.stack([curve.accuracy for curve in curves])
  count = len(curves)
  if count == 1:
    return curves[0].stderr
  if count == 2:  # An interval of two is wider than the axes.
    return np.ptp(accuracy, axis=0) / 2
  quantile = stats.t.ppf(0.975, count - 1)
  return quantile * accuracy.std(axis=0, ddof=1) / np.sqrt(count)


_BANDS = {
  1: "A band of one run is a standard error over problems.",
  2: "A band of two seeds reaches from the lower to the higher.",
  3: "Bands are 95 % intervals over seeds (Student's t).",
}


def accuracy(groups: Sequence[Group], mode: str) -> list[drawing.Plot]:
  """Held-out accuracy, with bands over seeds."""
  mean = {}
  for group in groups:
    curves = group.curves
    mean[_counted(group)] = statistics.mean_curve(curves)._replace(
      stderr=_half_width(curves)
    )
  floors = {
    group.name: run.log.floor
    for group in groups
    for run in group.runs
    if run.log.floor is not None
  }
  kinds = sorted({min(len(group.runs), 3) for group in groups}, reverse=True)
  bands = " ".join(_BANDS[kind] for kind in kinds)
  return plots.held_out(mean, mode, bands=bands, floors=floors)


def _counted(group: Group) -> str:
  seeds = len(group.runs)
  return group.name + f" ({seeds} seeds)" * (seeds > 1)


def training(groups: Sequence[Group]) -> list[drawing.Figure]:
  """Training metrics and tokens, in the mean over seeds."""
  logs = {group.name: mean_log([r.log for r in group.runs]) for group in groups}
  return [
    *plots.training(logs),
    *plots.reward_parts(logs),
    plots.ledger(logs),
  ]


def mean_log(logs: Sequence[Log]) -> Log:
  """Means of the numbers of several runs, at the iterations that all made."""
  by_step = [{row["step"]: row for row in log.rows} for log in logs]
  common = sorted(set.intersection(*map(set, by_step)))
  rows = [_mean_row([rows[step] for rows in by_step]) for step in common]
  return logs[0]._replace(rows=rows)


def _mean_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  def mean(of: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    shared = [
      name
      for name in of[0]
      if all(outside_files.is_number(row.get(name)) for row in of)
    ]
    return {name: float(np.mean([r[name] for r in of])) for name in shared}

  ledger = mean([row["ledger"] for row in rows])
  return mean(rows) | {"step": rows[0]["step"], "ledger": ledger}


class Answers(NamedTuple):
  """How far S runs solve P problems."""

  prompts: Sequence[str]
  y_SP: np.ndarray
  start_SP: np.ndarray | None
  group_P: np.ndarray


def answers(group: Group, mode: str) -> Answers | None:
  """The last answers of a group's runs, where all have kept them."""
  kept = [run.problems for run in group.runs]
  first = kept[0]
  if first is None:
    return None
  found = [p for p in kept if p is not None and p.prompts == first.prompts]
  if len(found) < len(kept) or any(mode not in p.last for p in found):
    return None
  starts = [p.solved[0][mode] for p in found if mode in p.solved.get(0, {})]
  return Answers(
    first.prompts,
    np.stack([p.last[mode] for p in found]),
    np.stack(starts) if len(starts) == len(found) else None,
    first.group_P,
  )
