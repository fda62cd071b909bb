"""The comparison of methods: which runs it takes, and what they add up to.

Every method first tries as many settings, on tuning problems (`tuning`). Once
all have chosen, each trains with all seeds; their curves are of validation
problems, and test problems are read once, at the end of each run.
"""

import dataclasses
import datetime
import json
import pathlib
import platform
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from tsd_jax.base.errors import UserError
from tsd_jax.comparison import columns, counts, statistics, tuning
from tsd_jax.comparison.config import CURVES, TUNING, Comparison
from tsd_jax.comparison.counts import Plan
from tsd_jax.comparison.entrants import FOLLOWERS, Method, Spent
from tsd_jax.comparison.jobs import train_all
from tsd_jax.comparison.tuning import Point
from tsd_jax.models.flops import flops_per_token
from tsd_jax.run import costs, directory, report
from tsd_jax.run import curves as curves_lib
from tsd_jax.run.curves import Curve
from tsd_jax.run.experiment import Experiment
from tsd_jax.tasks import data

_TUNED = "tuned.json"  # What was chosen, before a test problem was read.
# Of the tokens that a trial may leave unspent, and spend beside.
_CLOSE, _OVER = 0.03, 0.1
_LATE = 0.25  # Of the tokens: where trials are judged.
_CORRECTIONS = 3  # Times that a trial is made longer or shorter.


def judge(
  config: Comparison,
  folder: str | pathlib.Path,
  *,
  command: str = "",
  jobs: int = 1,
  timed: bool = False,
) -> str:
  """Runs all that is missing and writes compare.json and compare.html.

  Args:
    config: what is compared.
    folder: holds sweep/METHOD/SETTINGS, runs/METHOD/SEED and start.
    command: what made it, for the record.
    jobs: processes that train at a time (`jobs.train_all`).
    timed: runs that are reported train one at a time, on the cores that one of
      the jobs has, so that their seconds can be compared.

  Returns:
    A table of text.

  Raises:
    UserError: if the folder holds runs of another comparison.
  """
  folder, begun = pathlib.Path(folder), time.monotonic()
  task = config.experiment.task
  digests = data.digests(task, data.load_splits(task))
  more = ("methods", "runs", "seeds")  # Of which a folder may get more.
  directory.prepare(config, folder, digests, ignore=more)
  if plan := _plan(config, temperature=1.0):
    counts.rehearse(config.experiment, plan)
  tuned = _tune(config, folder, jobs)
  finished = _close_tuning(config, folder, tuned)
  timed |= jobs == 1
  start = None
  if plan:
    start = counts.measure_start(config.experiment, folder / "start", plan)
  ended = _train(config, folder, tuned, jobs, timed=timed)
  content = {
    "command": command,
    "tuning_finished": finished,
    **_content(config, tuned, ended, start, timed=timed),
    "session_seconds": round(time.monotonic() - begun, 1),
    "versions": {"jax": jax.__version__, "python": platform.python_version()},
    "device": f"{jax.devices()[0].device_kind}, {jax.device_count()} device(s)",
  }
  text = json.dumps(content, indent=1, allow_nan=False) + "\n"
  directory.write_whole(folder / "compare.json", text)
  shown = statistics.table(content)
  of_token = {
    name: row["flops"][-1] / row["tokens"][-1]
    for name, row in content["methods"].items()
  }
  page = report.comparison_page(
    shown, curves(content), config.mode, of_token, timed=timed
  )
  directory.write_whole(folder / "compare.html", page)
  return shown


@dataclasses.dataclass
class Tuned:
  """What a method's trials gave."""

  scores: dict[Point, float] = dataclasses.field(default_factory=dict)
  # Ledger tokens that an iteration took; where the trial's run is.
  each: dict[Point, float] = dataclasses.field(default_factory=dict)
  places: dict[Point, pathlib.Path] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0  # Of training.
  # Ledger tokens of an iteration of the last trial, over what its settings say:
  # below 1 where solved trees make room.
  forecast: float = 1.0
  temperature: float = 1.0
  edges: list[str] = dataclasses.field(default_factory=list)
  spent: Spent = Spent(0, 0)  # By an iteration with the best settings.

  @property
  def point(self) -> Point:
    """The settings that are best, of those whose numbers did not break."""
    return tuning.best({p: self.scores[p] for p in self.places})


Trial = tuple[pathlib.Path, Experiment]


@dataclasses.dataclass
class Ended:
  """What a method's runs gave, seed by seed."""

  curves: list[Curve]
  ledgers: list[dict[str, int]]
  counts: list[dict[str, Any]]  # None where nobody knows what is right.


def _tune(
  config: Comparison, folder: pathlib.Path, jobs: int
) -> dict[Method, Tuned]:
  """Tries settings of every method; last of those that spend what tsd does."""
  found: dict[Method, Tuned] = {}
  spent = config.forecast
  for follow in (False, True):
    tuned: dict[Method, Tuned] = {
      m: Tuned() for m in config.methods if (m in FOLLOWERS) == follow
    }
    for _ in range(config.trials):
      points = {}
      for method, of in tuned.items():
        point = tuning.next_point(
          len(config.fields(method)), of.scores, _exists(config, method, spent)
        )
        if point is not None:
          points[method] = point
      _try(config, folder, tuned, points, spent, jobs)
    for method, of in tuned.items():
      _choose(config, method, of, spent)
    found |= tuned
    spent = found["tsd"].spent
  return {method: found[method] for method in config.methods}


def _exists(config: Comparison, method: Method, spent: Spent):
  return lambda point: config.exists(method, point, spent)


def _try(
  config: Comparison,
  folder: pathlib.Path,
  tuned: Mapping[Method, Tuned],
  points: Mapping[Method, Point],
  spent: Spent,
  jobs: int,
) -> None:
  """One more trial of each method: runs that spend what they may."""
  left: dict[Method, Trial] = {}
  for method, point in points.items():
    run = config.run(method, point, config.sweep_seed, _tuned_on(config), spent)
    each = costs.iteration_tokens(run) * tuned[method].forecast
    place = folder / "sweep" / method / config.name(method, point)
    left[method] = place, _lasting(config, run, each)
  trained: dict[Method, Trial] = {}
  broken: set[Method] = set()
  for _ in range(1 + _CORRECTIONS):
    broken |= _train_trials(left, jobs)
    trained |= left  # Corrections may come to no end: the last one counts.
    corrected: dict[Method, Trial] = {}
    for method, trial in left.items():
      if method not in broken and (other := _corrected(config, *trial)):
        corrected[method] = other
    if not (left := corrected):
      break
  for method, point in points.items():
    of = tuned[method]
    if method in broken:
      of.scores[point] = 0.0  # Whatever it might have learned is lost.
      continue
    place, run = trained[method]
    row = directory.read_rows(place)[-1]
    of.places[point] = place
    of.scores[point] = score(config, place)
    of.each[point] = row["ledger"]["total"] / row["step"]
    of.forecast = of.each[point] / costs.iteration_tokens(run)
    of.seconds += row["seconds"]


def _train_trials(trials: Mapping[Method, Trial], jobs: int) -> set[Method]:
  """Trains trials; gives the methods whose numbers broke there.

  Raises:
    UserError: a trial failed for another reason.
  """
  left, broken = dict(trials), set()
  while left:
    try:
      train_all([{place: run} for place, run in left.values()], jobs)
      break
    except UserError:
      found = {m for m, (place, _) in left.items() if _broke(place)}
      if not found:
        raise
      broken |= found
      left = {m: trial for m, trial in left.items() if m not in found}
  return broken


def _broke(place: pathlib.Path) -> bool:
  return (place / directory.BROKEN).is_file()


def _lasting(config: Comparison, run: Experiment, each: float) -> Experiment:
  """A run that spends the comparison's tokens, in whole calls."""
  grid = run.iterations_per_call
  calls = max(1, round(config.tokens / each / grid))
  return dataclasses.replace(run, iterations=calls * grid)


def _corrected(
  config: Comparison, place: pathlib.Path, run: Experiment
) -> Trial | None:
  """A longer run, if this one has left tokens, or a shorter one.

  It is made anew, unless it may go on: where its rate has not fallen.
  """
  row = directory.read_rows(place)[-1]
  other = _lasting(config, run, row["ledger"]["total"] / row["step"])
  spent, more = row["ledger"]["total"], other.iterations > row["step"]
  if more and spent >= (1 - _CLOSE) * config.tokens:
    return None
  if not more and spent <= (1 + _OVER) * config.tokens:
    return None
  if other.iterations == row["step"]:
    return None
  if run.optimizer.linear_decay or not more:
    place = place.with_name(f"{place.name},iterations={other.iterations}")
  return place, other


def _choose(
  config: Comparison, method: Method, of: Tuned, spent: Spent
) -> None:
  """Fills in what follows from a method's trials.

  Raises:
    UserError: the numbers of all of them broke.
  """
  if not of.places:
    raise UserError(
      f"all {len(of.scores)} trials of {method} ended in numbers that are no "
      "numbers: begin with a lower experiment.optimizer.learning_rate"
    )
  place = of.places[of.point]
  row = directory.read_rows(place)[-1]
  of.spent = Spent(
    row["ledger"]["search"] / row["step"], row["ledger"]["total"] / row["step"]
  )
  fields = config.fields(method)
  edges = tuning.edges(of.scores, _exists(config, method, spent))
  of.edges = [fields[i] for i in edges]
  if _plan(config, of.temperature):
    of.temperature = counts.best_temperature(
      place, _tuned_on(config), config.temperatures
    )


def _plan(config: Comparison, temperature: float) -> Plan | None:
  """What is measured of a run; None where nobody knows what is right."""
  if not config.experiment.make_task().reward.knows_correct:
    return None
  return Plan(config.split, config.samples, temperature, config.shifted)


def _tuned_on(config: Comparison) -> str:
  return TUNING if config.experiment.task.tuning_size else CURVES


def score(config: Comparison, place: pathlib.Path) -> float:
  """What a setting is chosen by: the mean over a run's last quarter of tokens.

  The last evaluation alone is too noisy. It is tokens that are looked back on,
  not evaluations: settings whose iterations are dear have fewer of these.
  """
  late = np.linspace(1 - _LATE, 1, 9) * config.tokens
  curves = [
    curves_lib.read_curve(place, mode) for mode in config.score.split(",")
  ]
  return float(
    np.mean([curves_lib.at(c, "tokens", x) for c in curves for x in late])
  )


def _close_tuning(
  config: Comparison, folder: pathlib.Path, tuned: Mapping[Method, Tuned]
) -> dict[Method, str]:
  """Writes down what each method has chosen, once; says when.

  Raises:
    UserError: something else was chosen when test problems were read.
  """
  chosen: dict[Method, dict[str, str]] = {
    method: config.values(method, of.point)
    | {"temperature": f"{of.temperature:g}"}
    for method, of in tuned.items()
  }
  file, before = folder / _TUNED, {}
  if file.exists():
    before = directory.read_json(folder, _TUNED)["chosen"]
  if any(before[m]["settings"] != chosen[m] for m in before if m in chosen):
    raise UserError(
      f"{file}: test problems were read with other settings than the trials "
      "choose now: use a new folder"
    )
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  found = {m: {"settings": s, "finished": now} for m, s in chosen.items()}
  text = json.dumps({"chosen": found | before}, indent=1) + "\n"
  directory.write_whole(file, text)
  return {m: (found | before)[m]["finished"] for m in chosen}


def _train(
  config: Comparison,
  folder: pathlib.Path,
  tuned: Mapping[Method, Tuned],
  jobs: int,
  *,
  timed: bool,
) -> dict[Method, Ended]:
  """Trains every method with all seeds, and reads the test problems."""
  spent = tuned["tsd"].spent
  found = {}
  for method, of in tuned.items():
    runs = {
      folder / "runs" / method / str(seed): config.run(
        method, of.point, seed, CURVES, spent, each=of.each[of.point]
      )
      for seed in config.seeds
    }
    places = list(runs)
    groups = [
      {place: runs[place] for place in places[i : i + config.runs]}
      for i in range(0, len(places), config.runs)
    ]
    plan = _plan(config, of.temperature)
    train_all(groups, jobs, plan, alone=timed)
    found[method] = Ended(
      [
        curves_lib.read_curve(place, config.mode, run.learner_config().prompts)
        for place, run in runs.items()
      ],
      [directory.read_rows(place)[-1]["ledger"] for place in places],
      [counts.measure(place, plan) for place in places] if plan else [],
    )
  return found


def _content(
  config: Comparison,
  tuned: Mapping[Method, Tuned],
  ended: Mapping[Method, Ended],
  start: dict[str, Any] | None,
  *,
  timed: bool,
) -> dict[str, Any]:
  """What compare.json says of the methods.

  Args:
    config: what was compared.
    tuned: trials.
    ended: runs.
    start: what all began with answers to the same problems.
    timed: whether seconds may be compared: whether runs had as much of the
      machine at all times.
  """
  ratios = statistics.contrast({m: of.curves for m, of in ended.items()})
  if not timed:
    del ratios["accuracy_at_equal_seconds"]
  groups = columns.EACH_ALONE if start is None else _groups(config)
  seconds = sum(of.seconds for of in tuned.values())
  seconds += sum(c.seconds[-1] for of in ended.values() for c in of.curves)
  found = {
    "task": config.experiment.make_task().name,
    "split": config.split,
    "mode": config.mode,
    "curves_of": CURVES,
    "tokens": config.tokens,
    "trials": config.trials,
    "score": config.score,
    "methods": {
      method: _row(
        config, method, tuned[method], of, tuned["tsd"].spent, groups
      )
      for method, of in ended.items()
    },
    "ratios": ratios,
    "flops_per_token": flops_per_token(config.experiment.shape),
    "training_seconds": round(float(seconds), 1),
  }
  if start is not None:
    found["start"] = columns.of_method([start], groups)
    found["start_counts"] = start
    counted = {m: of.counts for m, of in ended.items()}
    # All runs have it in common: its answers vary between problems alone.
    counted["start"] = [start] * len(config.seeds)
    found["columns"] = columns.contrast(counted, groups)
    found["groups"] = groups._asdict()
  return found


def _groups(config: Comparison) -> columns.Groups:
  """Which of the problems that are answered belong together."""
  task = config.experiment.task
  tasks = [task]
  if config.shifted:
    tasks.append(counts.shifted(task, config.shifted))
  return columns.Groups(
    *(data.groups(of, data.load_problems(of, config.split)) for of in tasks)
  )


def _row(
  config: Comparison,
  method: Method,
  tuned: Tuned,
  ended: Ended,
  spent: Spent,
  groups: columns.Groups,
) -> dict[str, Any]:
  """One method's part of compare.json."""
  mean = statistics.mean_curve(ended.curves)
  run = config.run(
    method, tuned.point, config.seeds[0], CURVES, spent,
    each=tuned.each[tuned.point],
  )  # fmt: skip
  step, iterations = costs.update_step(run), float(mean.iterations[-1])
  parts = {
    part: float(np.mean([ledger[part] for ledger in ended.ledgers]))
    / iterations
    for part in ended.ledgers[0]
  }
  steps = step["steps_an_iteration"]
  learner = run.learner_config()
  searched = learner.prompts / steps if learner.searches else 0
  total = sum(ledger["total"] for ledger in ended.ledgers)
  of_token = (
    sum(costs.flops(run, ledger, int(iterations)) for ledger in ended.ledgers)
    / total
  )
  found = {
    "settings": config.values(method, tuned.point),
    "temperature": tuned.temperature,
    "edges": tuned.edges,
    "sweep": {config.name(method, p): s for p, s in tuned.scores.items()},
    "seeds": list(config.seeds),
    "iterations": mean.iterations.tolist(),
    "tokens": mean.tokens.tolist(),
    "updated": mean.updated.tolist(),
    "scored": mean.scored.tolist(),
    "flops": (mean.tokens * of_token).tolist(),
    "seconds": mean.seconds.round(2).tolist(),
    "seconds_of_runs": [round(float(c.seconds[-1]), 2) for c in ended.curves],
    "prompts": mean.prompts.tolist(),
    config.mode: [curve.accuracy.tolist() for curve in ended.curves],
    "area": [statistics.area(curve, config.tokens) for curve in ended.curves],
    "an_iteration": parts,
    "update_step": step
    | {
      "searched_prompts": searched,
      "ledger_tokens": parts["total"] / steps,
    },
  }
  if ended.counts:
    found["columns"] = columns.of_method(ended.counts, groups)
    found["counts"] = ended.counts
  return found


def curves(content: dict[str, Any]) -> dict[str, Curve]:
  """Mean curves of a compare.json, with standard errors over seeds."""

  def curve(row):
    accuracy_XI = np.asarray(row[content["mode"]])
    shape = accuracy_XI.shape
    axes = {
      axis: np.broadcast_to(np.asarray(row[axis]), shape)
      for axis in Curve._fields
      if axis in row
    }
    axes |= {"accuracy": accuracy_XI, "stderr": 0 * accuracy_XI}
    runs = zip(*(axes[axis] for axis in Curve._fields), strict=True)
    return statistics.mean_curve([Curve(*run) for run in runs])

  return {name: curve(row) for name, row in content["methods"].items()}
