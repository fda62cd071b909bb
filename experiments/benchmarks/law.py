"""When a tree pays: methods side by side, from starts of graded strength.

A start that solves one problem in three hundred by sampling, and one that
solves a third of them, are not taught alike: the rarer a right answer is among
samples, the more a search that keeps what it has seen is worth. For each start
of a task this makes a comparison (`launch.compare`) of TSD, champions alone,
filtered sampling and GRPO, every one with as many trials of its rate and of its
own knobs, a tree's nodes and a sampler's draws among them. What comes out is a
point: the start's mean accuracy, and what TSD has over each other method at
equal tokens.

Command (three hours of one core a task; it goes on after a kill):

  python -m experiments.benchmarks.law --workdir=DIR --task=countdown3 --jobs=2

More methods from a start that is there: --starts=a --more=ppo,stopped_best_of_n
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from scipy import stats

from experiments import (
  calculator,
  compare_countdown,
  compare_countdown4,
  compare_maze,
)
from experiments.recipes import starts
from experiments.recipes.starts import Examples
from tsd_jax.base import config as config_lib
from tsd_jax.base import progress
from tsd_jax.base.paths import ROOT
from tsd_jax.comparison import columns, intervals
from tsd_jax.comparison.config import Comparison
from tsd_jax.comparison.entrants import Method
from tsd_jax.comparison.law import Law, logit
from tsd_jax.run import directory

METHODS: tuple[Method, ...] = (
  "tsd", "expert_iteration", "filtered_best_of_n", "grpo",
)  # fmt: skip
COLUMNS = ("greedy", "mean", "pass@16")
SCORE = "score"  # Their mean: what settings were chosen by.
SECONDS = "seconds"  # Curves of the mean, at equal seconds of a core.


class Study(NamedTuple):
  """A task, and how its starts are taught, from the weakest on."""

  comparison: Comparison
  starts: Mapping[str, Examples | None]  # None: the experiment's own.


_FOUR = compare_countdown4.get_config()
STUDIES = {
  "countdown3": Study(
    compare_countdown.get_config(),
    {
      "a": Examples((200, 0), 0.0),
      "b": Examples((500, 0), 0.0),
      "c": Examples((500, 700), 1.0, batch=64),
      "d": Examples((500, 2500), 1.0, batch=64),
    },
  ),
  "countdown4": Study(
    _FOUR,
    {
      "a": Examples((1500, 0), 0.0, batch=64),
      "b": Examples((500, 1000), 1.0, batch=64),
      "c": Examples((500, 3000), 1.0, batch=64),
    },
  ),
  "countdown5": Study(
    dataclasses.replace(
      _FOUR,
      experiment=dataclasses.replace(
        _FOUR.experiment,
        task=dataclasses.replace(
          _FOUR.experiment.task, numbers=5, max_number=9
        ),
        init=None,
      ),
      tokens=1e7,
    ),
    {
      "a": Examples((1500, 0), 0.0, batch=64),
      "b": Examples((500, 1500), 1.0, batch=64),
    },
  ),
  "maze": Study(
    compare_maze.get_config(),
    {
      "a": Examples((300, 0), 0.0),
      "b": Examples((400, 150), 1.0, batch=64),
      "c": Examples((400, 600), 1.0, batch=64),
      "d": Examples((400, 2000), 1.0, batch=64),
    },
  ),
  "calculator": Study(
    compare_countdown.comparison(
      calculator.get_config(), 3.2e6, "min_target=101,max_target=199"
    ),
    {"own": None},
  ),
}
UNSEEN = ("calculator",)  # No part of any fit: the law is to foretell it.
# Two starts differ in more than their success: by about so much, the standard
# deviation of a log ratio, beside what the interval of each says.
_BETWEEN = 0.2
_WIDTH = 2 * stats.norm.ppf(0.975)  # Of an interval, in standard errors.


def comparison(
  study: Study, start: pathlib.Path, methods: Sequence[Method] = METHODS
) -> Comparison:
  """The comparison of one start: half of the tokens, three seeds, six trials.

  Args:
    study: the task.
    start: file of the start's weights.
    methods: those of the law, and perhaps more.
  """
  whole = study.comparison
  return dataclasses.replace(
    whole,
    experiment=dataclasses.replace(whole.experiment, init=str(start)),
    methods=tuple(methods),
    tokens=whole.tokens / 2,
    knobs=("optimizer.learning_rate",),
    trials=6,
    seeds=(0, 1, 2),
  )


def point(name: str, start: str, content: Mapping[str, Any]) -> dict[str, Any]:
  """What a compare.json says of its start and of its methods.

  Args:
    name: of the task.
    start: its name.
    content: the compare.json.
  """
  scores, groups = _scores(content), columns.Groups(**content["groups"])
  return {
    "task": name,
    "start": start,
    "tokens": content["tokens"],
    "success": {c: content["start"][c]["value"] for c in COLUMNS},
    "methods": {
      method: {
        "settings": row["settings"],
        **{c: row["columns"][c] for c in COLUMNS},
      }
      for method, row in content["methods"].items()
    },
    "ratios": {
      SCORE: {
        other: columns.written(
          intervals.ratio(scores["tsd"], scores[other], groups.of(COLUMNS[0]))
        )
        for other in METHODS[1:]
      },
      **{
        column: {
          other: content["columns"][column][f"tsd/{other}"]["ratio"]
          for other in METHODS[1:]
        }
        for column in COLUMNS
      },
    },
    "at_equal_seconds": {
      pair.removeprefix("tsd/"): found
      for pair, found in content["ratios"]
      .get("accuracy_at_equal_seconds", {})
      .items()
    },
  }


def _scores(content: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """What each run of a method scores on each problem, SP."""

  def score(run) -> np.ndarray:
    found = columns.scores(run)
    return np.mean([found[column] for column in COLUMNS], axis=0)

  return {
    method: np.stack([score(run) for run in row["counts"]])
    for method, row in content["methods"].items()
  }


def fit(
  points: Sequence[Mapping[str, Any]], column: str, against: str
) -> Law | None:
  """The line through the points of tasks, each weighted by its interval.

  Those that are to check it have no part in it (`UNSEEN`), nor have those whose
  other method ends below its start: there is no ratio to learning nothing. Its
  spread is that of a new start (`Law`), by Student's t and the points' distance
  from the line, which is itself drawn through few.

  Args:
    points: of law.json.
    column: such as mean; SCORE or SECONDS.
    against: the method that TSD is held against.

  Returns:
    The line; None where fewer than two points have a ratio.
  """
  sure = [
    found
    for at in points
    if at["task"] not in UNSEEN
    and (found := _measured(at, column, against)) is not None
  ]
  if len(sure) < 2:
    return None
  x, y, width = np.transpose(sure)
  slope, at_even = np.polyfit(x, y, 1, w=1 / np.hypot(width / _WIDTH, _BETWEEN))
  off, freedom = y - at_even - slope * x, max(len(x) - 2, 1)
  one = math.sqrt(float(np.sum(off**2)) / freedom)
  # The line's own error is that of two numbers, in the mean of its points.
  new = stats.t.ppf(5 / 6, freedom) * math.sqrt(1 + 2 / len(x))
  return Law(float(slope), float(at_even), one * float(new))


class _Measured(NamedTuple):
  """A point of the line."""

  logit: float
  log_ratio: float
  width: float  # Of its interval.


def _measured(
  at: Mapping[str, Any], column: str, against: str
) -> _Measured | None:
  """What a point has; None where the other method has learned nothing."""
  success = at["success"]["mean"]
  if at["methods"][against]["mean"]["value"] <= success:
    return None
  where = at["at_equal_seconds"] if column == SECONDS else at["ratios"][column]
  found = where.get(against)
  if found is None or not found["value"]:
    return None
  low, high = found["ci95"]
  if not low or high is None:
    return None
  return _Measured(
    logit(success), math.log(found["value"]), math.log(high / low)
  )


def main(overrides):
  """Makes what is missing of a task, and writes its law.json."""
  if overrides:
    raise config_lib.UserError("this benchmark has no --config")
  folder = pathlib.Path(config_lib.required(_WORKDIR)) / _task()
  progress.quiet_libraries()
  # Imported late: a bad flag is refused before JAX starts.
  from tsd_jax.base import compilation_cache
  from tsd_jax.comparison import judge

  compilation_cache.enable()
  study = STUDIES[_task()]
  if unknown := set(_STARTS.value) - set(study.starts):
    raise config_lib.UserError(
      f"--starts={','.join(sorted(unknown))}: use {', '.join(study.starts)}"
    )
  for name in _STARTS.value or study.starts:
    file = _start(study, name, folder)
    config = comparison(study, file, (*METHODS, *_MORE.value))
    command = config_lib.command("experiments.benchmarks.law")
    print(judge.judge(config, folder / name, command=command, jobs=_JOBS.value))
    write(folder, _task())


def _start(study: Study, name: str, folder: pathlib.Path) -> pathlib.Path:
  """The file of a start, which is taught where it is missing."""
  experiment, examples = study.comparison.experiment, study.starts[name]
  if examples is None:
    return ROOT / str(experiment.init)
  file = folder / f"{name}.safetensors"
  if not file.is_file():
    folder.mkdir(parents=True, exist_ok=True)
    starts.make(experiment, str(file), examples)
  return file


def write(folder: pathlib.Path, name: str) -> None:
  """Writes law.json: a point for each start that was compared.

  Args:
    folder: of a task, with a comparison's folder for each start.
    name: of the task.
  """
  points = [
    point(name, start, json.loads(file.read_text()))
    for start in STUDIES[name].starts
    if (file := folder / start / "compare.json").is_file()
  ]
  module = "experiments.benchmarks.law"
  found = {"command": config_lib.command(module), "points": points}
  text = json.dumps(found, indent=1, allow_nan=False) + "\n"
  directory.write_whole(folder / "law.json", text)


def _task() -> str:
  return config_lib.required(_TASK)


if __name__ == "__main__":  # Others read the law: no flags for them.
  _TASK = flags.DEFINE_enum("task", None, list(STUDIES), "Whose starts.")
  _WORKDIR = config_lib.path_flag("workdir", None, "Folder of all runs.")
  _JOBS = flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1)
  _STARTS = flags.DEFINE_list("starts", [], "Of the task; all of them if none.")
  _MORE = flags.DEFINE_list("more", [], "Methods beside those of the law.")
  config_lib.run(main)
