"""The comparison of methods: which runs it takes, and what they add up to."""

import dataclasses
import json
import pathlib
import platform
import time
from typing import Any, Literal, get_args

import jax
import numpy as np

from tsd_jax.base import config as config_lib
from tsd_jax.base.ledger import BACKWARD_COST
from tsd_jax.comparison import statistics
from tsd_jax.comparison.jobs import train_all
from tsd_jax.learning.config import LearnerConfig
from tsd_jax.learning.methods import Algorithm
from tsd_jax.models.flops import flops_per_token
from tsd_jax.run import costs, directory, evaluation, report, train
from tsd_jax.run import curves as curves_lib
from tsd_jax.run.curves import Curve
from tsd_jax.run.experiment import Experiment
from tsd_jax.tasks import data
from tsd_jax.tasks.task import Task

# Controls are tsd's loop without a tree, champions taken from own samples:
# grpo_champion has GRPO's advantages, tree_prefix_values those of the tree that
# samples form by themselves where they share a prefix; wide_best_of_n spends
# the search's tokens on samples of as many prompts as its update has rows;
# filtered_best_of_n has as many lessons as tsd, solved ones of all the samples
# that the rest of tsd's tokens buys: its update is smaller, so that it is
# compared at equal tokens, not at equal steps. The other wide ones read as many
# prompts as the update holds: one row of each, or two where a prompt's rows are
# compared with each other.
Method = Literal[
  Algorithm,
  "grpo_champion",
  "tree_prefix_values",
  "wide_best_of_n",
  "filtered_best_of_n",
  "wide_ppo",
  "wide_grpo",
  "wide_cispo",
]
METHODS = get_args(Method)
_WIDE_ROWS = {"wide_ppo": 1, "wide_grpo": 2, "wide_cispo": 2}
_FILTERED = 2  # N of filtered_best_of_n.
_CONTROLS = {
  "grpo_champion": {"loss.advantage": "group", "loss.success_weight": "0"},
  "tree_prefix_values": {"loss.advantage": "prefix"},
}
# Backward tokens of two update steps that count as equal: baselines round up to
# whole rows.
TOLERANCE = 0.15


def settings(
  method: str, experiment: Experiment, share: float = 1.0
) -> dict[str, str]:
  """What a method changes of an experiment, as flags say it.

  Args:
    method: its name.
    experiment: gives the number of samples that the update reads.
    share: of its budget that the search spends, for what spends as much.
  """
  own = {
    "algorithm": "tsd",
    "loss.champion_source": "samples",
    "loss.champions": "1",
    "rollout.forks": "0",
  }
  if method in _CONTROLS:
    grpo = dataclasses.replace(experiment, algorithm="grpo").learner_config()
    return own | {
      "loss.champion_weight": "0.5",
      "rollout.prompts": str(grpo.rollout.prompts),
      "rollout.samples": str(grpo.rollout.samples - 1),
      **_CONTROLS[method],
    }
  if method not in ("wide_best_of_n", "filtered_best_of_n", *_WIDE_ROWS):
    return {"algorithm": method}
  ours, task = experiment.learner_config(), experiment.make_task()
  rows = _WIDE_ROWS.get(method, 1)
  tokens = ours.update_tokens(task)
  prompts = ours.prompts_of(task, tokens, rows)
  if not prompts:
    raise ValueError(
      f"{method}: the update's {tokens} tokens are not a prompt for each of "
      f"optimizer.minibatches={experiment.optimizer.minibatches}"
    )
  if method in _WIDE_ROWS:
    return {
      "algorithm": method.removeprefix("wide_"),
      "rollout.baseline_prompts": str(prompts),
    }
  searched = share * ours.prompts * experiment.search.num_simulations
  length = task.response_length - 1
  samples, lessons = max(1, round(searched / (prompts * length))), prompts
  if method == "filtered_best_of_n":
    samples, lessons = _FILTERED, ours.loss.distilled_prompts
    prompts = _filtered_prompts(ours, task, searched, samples)
  return own | {
    "loss.policy_weight": "0",
    "loss.success_weight": "0",
    "loss.champion_weight": "1",
    "loss.distilled_prompts": str(lessons),
    "rollout.prompts": str(prompts),
    "rollout.samples": str(samples),
  }


def _filtered_prompts(
  ours: LearnerConfig, task: Task, searched: float, samples: int
) -> int:
  """Prompts whose samples cost what tsd spends, all but its lessons' update."""
  length, calls = task.response_length - 1, ours.optimizer.minibatches
  B, C = ours.rollout.prompts, ours.distilled_prompts
  lessons = ours.prompt_tokens(task, C, calls) + C * length
  spent = (
    searched
    + B * ours.rollout.group * length
    + ours.prompt_tokens(task, ours.prompts + B)
    + BACKWARD_COST * (ours.update_tokens(task) - lessons)
  )
  each = ours.prompt_tokens(task, 1) + samples * length
  return max(C, round(spent / each / calls) * calls)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Methods on one task."""

  experiment: Experiment
  methods: tuple[Method, ...] = METHODS
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  # What every method is tried with, on validation: values of a field, or of
  # several, joined by "+".
  swept: str = "optimizer.learning_rate"
  values: tuple[str, ...] = ("2e-4", "3e-4", "5e-4")
  sweep_seed: int = 100  # None of the seeds that count.
  mode: str = "mean@16"
  split: str = "test"
  # Methods whose iterations cost less than tsd's make more of them, until they
  # have spent as many ledger tokens.
  equal_tokens: bool = True
  # Runs of a method in one program (`train.train_vmapped`), for accelerators
  # that one small model does not fill. On a CPU one is fastest.
  runs: int = 1

  def __post_init__(self):
    """Refuses what cannot be compared."""
    if len(self.methods) < 2 or self.methods[0] != "tsd":
      raise ValueError(
        f"methods={','.join(self.methods)} must begin with tsd and name another"
      )
    if len(set(self.methods)) < len(self.methods):
      raise ValueError(f"methods={','.join(self.methods)} repeats one")
    if not self.values:
      raise ValueError(f"values is empty: name one value of {self.swept}")
    fields = self.swept.split("+")
    for value in self.values if len(fields) > 1 else ():
      if len(value.split("+")) != len(fields):
        raise ValueError(
          f"values={value} must give each of swept={self.swept} a value, "
          "joined by +"
        )
    if not self.seeds or len(set(self.seeds)) < len(self.seeds):
      raise ValueError(f"seeds={self.seeds} must be distinct, at least one")
    if self.sweep_seed in self.seeds:
      raise ValueError(
        f"sweep_seed={self.sweep_seed} must be none of seeds={self.seeds}"
      )
    if self.runs < 1:
      raise ValueError(f"runs={self.runs} must be at least 1")
    if self.split == "validation":
      raise ValueError("split=validation chose the settings: use test")
    if evaluation.headline(self.experiment.eval.modes) != self.mode:
      raise ValueError(
        f"mode={self.mode} is not what experiment.eval.modes="
        f"{self.experiment.eval.modes} shows"
      )
    steps = {}  # Every run can start, before any does.
    for method in self.methods:
      for value in self.values:
        run = self.run(method, value, self.seeds[0], self.split)
        # Those of one program have one device.
        train.check_alike([run] * min(2, self.runs))
        if method == "filtered_best_of_n":
          continue
        steps[f"{method} with {self.swept}={value}"] = costs.update_step(run)
    first, *others = steps
    for name in others:
      theirs, ours = (steps[n]["backward_tokens"] for n in (name, first))
      if abs(theirs / ours - 1) > TOLERANCE:
        raise ValueError(
          f"an update step of {name} reads {theirs:.0f} tokens, of {first} "
          f"{ours:.0f}: their ratio of steps would mean nothing"
        )

  def run(
    self, method: str, value: str, seed: int, split: str, share: float = 1.0
  ) -> Experiment:
    """The experiment of one run.

    Args:
      method: its name.
      value: of what is swept.
      seed: its seed.
      split: the problems that it is measured on.
      share: of its budget that tsd's search spends (`costs.search_share`).
    """
    changes = settings(method, self.experiment, share) | {
      "seed": str(seed),
      "eval.split": split,
    }
    fields = self.swept.split("+")
    values = value.split("+") if len(fields) > 1 else [value]
    changes |= dict(zip(fields, values, strict=True))
    run = config_lib.override(self.experiment, changes)
    if not self.equal_tokens or method == "tsd":
      return run
    grid = (
      run.iterations_per_call
    )  # A run ends with one, and with an evaluation.
    ours = self.experiment
    spends = ours.iterations * costs.iteration_tokens(ours, share)
    points = round(spends / costs.iteration_tokens(run, share) / grid)
    iterations = max(run.iterations, points * grid)
    return dataclasses.replace(run, iterations=iterations)


def judge(
  config: Comparison,
  folder: str | pathlib.Path,
  *,
  command: str = "",
  jobs: int = 1,
) -> str:
  """Runs all that is missing and writes compare.json and compare.html.

  Args:
    config: what is compared.
    folder: holds sweep/METHOD/VALUE and runs/METHOD/SEED.
    command: what made it, for the record.
    jobs: processes that train at a time (`jobs.train_all`).

  Returns:
    A table of text.

  Raises:
    UserError: if the folder holds runs of another comparison.
  """
  folder, start = pathlib.Path(folder), time.monotonic()
  evaluation.parse_modes(config.mode)
  task = config.experiment.task
  digests = data.digests(task, data.load_splits(task))
  directory.prepare(config, folder, digests, ignore=("runs",))
  trained = _train(config, folder, jobs)
  content = {
    "command": command,
    **_content(config, trained, timed=jobs == 1),
    "session_seconds": round(time.monotonic() - start, 1),
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
    shown, curves(content), config.mode, of_token, timed=jobs == 1
  )
  directory.write_whole(folder / "compare.html", page)
  return shown


@dataclasses.dataclass
class _Trained:
  """What a comparison's runs gave; filled method by method."""

  # What each swept value scored; the value that won.
  sweep: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
  best: dict[str, str] = dataclasses.field(default_factory=dict)
  # Curve and ledger of every seed, with the best value.
  runs: dict[str, list[Curve]] = dataclasses.field(default_factory=dict)
  spent: dict[str, list[dict[str, int]]] = dataclasses.field(
    default_factory=dict
  )
  seconds: float = 0.0  # Of training, all runs.
  share: float = 1.0  # Of its budget that tsd's search spent.


def _train(config: Comparison, folder: pathlib.Path, jobs: int) -> _Trained:
  """Trains all that is missing: the sweep, then the seeds with what won it."""
  found = _Trained()
  values = config.values if len(config.values) > 1 else ()

  def train_each(place, runs_of):
    made = _run(runs_of, folder / place, config, jobs)
    found.seconds += sum(
      float(curve.seconds[-1])
      for runs in made.values()
      for curve, _ in runs.values()
    )
    return made

  # Tsd first: what it spends, the others may.
  for methods in config.methods[:1], config.methods[1:]:
    tried = {
      method: {
        v: config.run(method, v, config.sweep_seed, "validation", found.share)
        for v in values
      }
      for method in methods
    }
    for method, made in train_each("sweep", tried).items():
      scores = {value: sweep_score(curve) for value, (curve, _) in made.items()}
      found.sweep[method] = scores
      scores = scores or dict.fromkeys(config.values, 0.0)
      found.best[method] = max(scores, key=scores.__getitem__)
    counted = {
      method: {
        str(seed): config.run(
          method, found.best[method], seed, config.split, found.share
        )
        for seed in config.seeds
      }
      for method in methods
    }
    for method, made in train_each("runs", counted).items():
      of_seeds, ledgers = zip(*made.values(), strict=True)
      found.runs[method], found.spent[method] = list(of_seeds), list(ledgers)
      if method == "tsd":
        found.share = costs.search_share(config.experiment, list(ledgers))
  return found


def _content(
  config: Comparison, trained: _Trained, *, timed: bool
) -> dict[str, Any]:
  """What compare.json says of the methods.

  Args:
    config: what was compared.
    trained: its runs.
    timed: whether seconds may be compared: whether runs had as much of the
      machine at all times.
  """
  ratios = statistics.contrast(trained.runs)
  if not timed:
    del ratios["accuracy_at_equal_seconds"]
  return {
    "task": config.experiment.make_task().name,
    "split": config.split,
    "mode": config.mode,
    "swept": config.swept,
    "methods": {
      name: _row(config, name, trained) | {"sweep": trained.sweep[name]}
      for name in config.methods
    },
    "ratios": ratios,
    "flops_per_token": flops_per_token(config.experiment.shape),
    "training_seconds": round(trained.seconds, 1),
  }


def sweep_score(curve: Curve) -> float:
  """What a setting is chosen by: the mean of a run's last three evaluations.

  The last one alone is too noisy; the start's is not counted.
  """
  return float(np.mean(curve.accuracy[1:][-3:]))


def _run(
  todo: dict[str, dict[str, Experiment]],
  folder: pathlib.Path,
  config: Comparison,
  jobs: int,
) -> dict[str, dict[str, tuple[Curve, dict[str, int]]]]:
  """Trains what is missing in FOLDER/METHOD/NAME; gives curves and ledgers."""
  groups = []
  for method, named in todo.items():
    alike: dict[Any, list[str]] = {}  # What one program can hold.
    for name, run in named.items():
      alike.setdefault(run.learner_config().static, []).append(name)
    groups += [
      {folder / method / n: named[n] for n in names[i : i + config.runs]}
      for names in alike.values()
      for i in range(0, len(names), config.runs)
    ]
  train_all(groups, jobs)

  def read(place):
    ledger = directory.read_rows(place)[-1]["ledger"]
    return curves_lib.read_curve(place, config.mode), ledger

  return {
    method: {name: read(folder / method / name) for name in named}
    for method, named in todo.items()
  }


def _row(config: Comparison, method: str, trained: _Trained) -> dict[str, Any]:
  """One method's part of compare.json."""
  runs, spent = trained.runs[method], trained.spent[method]
  value, share = trained.best[method], trained.share
  mean = statistics.mean_curve(runs)
  run = config.run(method, value, config.seeds[0], config.split, share)
  step, iterations = costs.update_step(run), float(mean.iterations[-1])
  parts = {
    part: float(np.mean([ledger[part] for ledger in spent])) / iterations
    for part in spent[0]
  }
  steps = step["steps_an_iteration"]
  learner = run.learner_config()
  searched = learner.prompts / steps if learner.searches else 0
  total = sum(ledger["total"] for ledger in spent)
  of_token = (
    sum(costs.flops(run, ledger, int(iterations)) for ledger in spent) / total
  )
  return {
    "changes": settings(method, config.experiment, share),
    "seeds": list(config.seeds),
    config.swept: value,
    "iterations": mean.iterations.tolist(),
    "tokens": mean.tokens.tolist(),
    "flops": (mean.tokens * of_token).tolist(),
    "seconds": mean.seconds.round(2).tolist(),
    config.mode: [curve.accuracy.tolist() for curve in runs],
    "area": [
      statistics.area(curve, config.experiment.iterations) for curve in runs
    ],
    "tokens_an_iteration": parts,
    "update_step": step
    | {
      "searched_prompts": searched,
      "ledger_tokens": parts["total"] / steps,
    },
  }


def curves(content: dict[str, Any]) -> dict[str, Curve]:
  """Mean curves of a compare.json, with standard errors over seeds."""

  def curve(row):
    accuracy_XI = np.asarray(row[content["mode"]])
    axes = [np.asarray(row[a]) for a in ("iterations", "tokens", "seconds")]
    shape = accuracy_XI.shape
    iterations, tokens, seconds = (np.broadcast_to(a, shape) for a in axes)
    runs = zip(
      iterations, tokens, accuracy_XI, 0 * accuracy_XI, seconds, strict=True
    )
    return statistics.mean_curve([Curve(*run) for run in runs])

  return {name: curve(row) for name, row in content["methods"].items()}
