"""What a trained model answers to each problem, counted and kept.

A table's columns are all made from these counts: a byte a problem for how many
of its samples are right, for how many different right answers are among them,
and for whether the greedy answer is right. Test problems have others beside
them that are unlike those of train (`shifted`), which nothing is chosen by.
"""

import base64
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tsd_jax.base import config as config_lib
from tsd_jax.base.errors import UserError
from tsd_jax.base.ledger import Ledger
from tsd_jax.base.types import Prompts
from tsd_jax.rewards.reward import Scorer
from tsd_jax.run import directory, evaluation, load, reward_params
from tsd_jax.run.experiment import Experiment, initial_params
from tsd_jax.tasks import data
from tsd_jax.tasks.task import GradedConfig, Task, TaskConfig

FILE = directory.COUNTS
_AT_ONCE = 16  # Samples of every problem that are drawn in one call.
_TRAINED_ON = 512  # Problems of train that the gap to them is measured on.
MOST = 255  # Samples of a problem: what a byte holds.
_COMMON = 16  # Right answers that are tried on every problem.


class Plan(NamedTuple):
  """What is measured of a finished run."""

  split: str
  samples: int
  temperature: float  # Beside 1, at which everything is measured.
  shifted: str = ""  # What other test problems have, as FIELD=VALUE,...


class Counts(NamedTuple):
  """Of Q problems and N samples of each."""

  right_Q: np.ndarray
  distinct_Q: np.ndarray  # Different ones among the right.
  legal: float | None  # Share of samples that break no rule, where rules are.
  common_AT: np.ndarray  # The most frequent of the right answers.


def pack(count_Q: np.ndarray) -> str:
  """Counts below 256 as text."""
  return base64.b64encode(count_Q.astype(np.uint8).tobytes()).decode()


def unpack(text: str) -> np.ndarray:
  """The counts that `pack` was given."""
  return np.frombuffer(base64.b64decode(text), np.uint8).astype(np.int64)


def count(
  run: load.Run,
  prompts: Prompts,
  samples: int,
  temperature: float,
  task: Task | None = None,
) -> Counts:
  """Samples responses to problems; 0 samples decode one greedily.

  Args:
    run: gives model and seed.
    prompts: Q problems.
    samples: N; at most 255.
    temperature: of sampling.
    task: of the problems; by default the run's.
  """
  task, saved = task or run.config.make_task(), run.config.task
  prompts = jax.tree.map(jnp.asarray, prompts)
  tokens, right, reward = [], [], []
  for start in range(0, max(samples, 1), _AT_ONCE):
    key = jax.random.fold_in(jax.random.key(run.config.seed), start)
    tokens_QGT, reward_QG, right_QG, _ = jax.device_get(
      evaluation.draw(
        run.graphdef, run.params, task, prompts, key, jnp.float32(temperature),
        run.reward_params, samples=min(_AT_ONCE, samples - start),
      )
    )  # fmt: skip
    tokens.append(tokens_QGT)
    right.append(right_QG)
    reward.append(reward_QG)
  tokens_QNT, right_QN = np.concatenate(tokens, 1), np.concatenate(right, 1)
  distinct_Q = [
    len(np.unique(tokens_NT[right_N > 0], axis=0)) if right_N.any() else 0
    for tokens_NT, right_N in zip(tokens_QNT, right_QN, strict=True)
  ]
  legal = None
  if run.config.reward is None and isinstance(saved, GradedConfig):
    lowest = np.float32(saved.legal)
    legal = float(np.mean(np.concatenate(reward, 1) >= lowest))
  answer_AT, often_A = np.unique(
    tokens_QNT[right_QN > 0], axis=0, return_counts=True
  )
  common_AT = answer_AT[np.argsort(-often_A, kind="stable")[:_COMMON]]
  right_Q = right_QN.sum(axis=1).astype(int)
  return Counts(right_Q, np.array(distinct_Q), legal, common_AT)


def constant(run: load.Run, prompts: Prompts, answer_AT: np.ndarray) -> float:
  """Share of problems that the best of some answers solves, whatever is asked.

  Below that a model may have learned nothing of the problems.
  """
  if not len(answer_AT):
    return 0.0
  task = run.config.make_task()
  prompts = jax.tree.map(jnp.asarray, prompts)
  tokens_QAT = jnp.broadcast_to(answer_AT, (len(prompts), *answer_AT.shape))
  scorer = Scorer(task.reward.truth(), task.end_ids, run.reward_params)
  correct_QA = scorer(prompts, tokens_QAT).correct_X
  return 0.0 if correct_QA is None else float(jnp.max(jnp.mean(correct_QA, 0)))


def shifted(task: TaskConfig, changes: str) -> TaskConfig:
  """A task whose test problems are unlike those that a model was trained on.

  Args:
    task: of the training.
    changes: FIELD=VALUE,... of its config.

  Raises:
    UserError: there is no such field or value.
  """
  fields = {"validation_size": "0", "tuning_size": "0"}
  fields |= dict(part.split("=", 1) for part in changes.split(","))
  return config_lib.override(task, fields)


def read(folder: pathlib.Path, plan: Plan) -> dict[str, Any] | None:
  """What was measured of a run; None if that is not there."""
  if not (folder / FILE).exists():
    return None
  found = directory.read_json(folder, FILE)
  planned = isinstance(found, dict) and found.get("plan") == plan._asdict()
  return found if planned else None


def measure(folder: str | pathlib.Path, plan: Plan) -> dict[str, Any]:
  """What counts.json of a finished run says, made where it is not there yet.

  Args:
    folder: the run's.
    plan: what is measured.

  Raises:
    UserError: there is no such run.
  """
  return _kept(pathlib.Path(folder), plan, load.open_run)


def measure_start(
  config: Experiment, folder: str | pathlib.Path, plan: Plan
) -> dict[str, Any]:
  """The same of what runs start from, kept in a folder of its own.

  Args:
    config: names the start.
    folder: where counts.json goes.
    plan: what is measured.
  """

  def start(folder: pathlib.Path) -> load.Run:
    reward = reward_params.read(config.make_task().reward, folder)
    return load.Run(config, *initial_params(config), 0, Ledger(), reward)

  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  return _kept(folder, plan, start)


def _kept(
  folder: pathlib.Path, plan: Plan, run_of: Callable[[pathlib.Path], load.Run]
) -> dict[str, Any]:
  found = read(folder, plan)
  if found is None:
    found = _answers(run_of(folder), plan)
    directory.write_whole(folder / FILE, json.dumps(found, indent=1) + "\n")
  return found


def _answers(run: load.Run, plan: Plan) -> dict[str, Any]:
  """What a counts.json says of a run."""
  problems = data.load_problems(run.config.task, plan.split)
  trained_on = data.load_problems(run.config.task, "train")[:_TRAINED_ON]
  greedy = count(run, problems, 0, 1.0)
  found = {
    "plan": plan._asdict(),
    "step": run.step,
    "greedy": pack(greedy.right_Q),
    "greedy_legal": greedy.legal,
    "constant": 0.0,
    "samples": {},
    "train": {
      "greedy": float(count(run, trained_on, 0, 1.0).right_Q.mean()),
      "mean": float(count(run, trained_on, _AT_ONCE, 1.0).right_Q.mean())
      / _AT_ONCE,
    },
  }
  for temperature in dict.fromkeys((1.0, plan.temperature)):
    drawn = count(run, problems, plan.samples, temperature)
    found["samples"][f"{temperature:g}"] = {
      "right": pack(drawn.right_Q),
      "distinct": pack(drawn.distinct_Q),
      "legal": drawn.legal,
    }
    if temperature == 1.0:
      found["constant"] = constant(run, problems, drawn.common_AT)
  if plan.shifted:
    other, task = _unlike(run.config, plan)
    found["shifted"] = {
      "greedy": pack(count(run, other, 0, 1.0, task).right_Q),
      "right": pack(count(run, other, plan.samples, 1.0, task).right_Q),
    }
  return found


def _unlike(config: Experiment, plan: Plan) -> tuple[Prompts, Task]:
  """Problems unlike those of train, which may be longer, and their task."""
  unlike = shifted(config.task, plan.shifted)
  return data.load_problems(unlike, plan.split), config.make_task(unlike)


def rehearse(config: Experiment, plan: Plan) -> None:
  """Traces what will be asked of runs, so that it fails before they train.

  No problem is answered.

  Args:
    config: names the start.
    plan: what is to be measured.

  Raises:
    UserError: problems unlike those of train cannot be asked.
  """
  if not plan.shifted:
    return
  graphdef, params = initial_params(config)
  prompts, task = _unlike(config, plan)
  _check_unlike(config.task, plan, prompts)
  key, temperature, reward = jax.random.key(0), 1.0, task.reward.load()
  try:
    jax.eval_shape(
      lambda params, prompts: evaluation.draw(
        graphdef, params, task, prompts, key, temperature, reward, samples=0
      ),
      params,
      jax.tree.map(jnp.asarray, prompts),
    )
  except ValueError as error:
    raise UserError(
      f"shifted={plan.shifted} cannot be asked: {error}"
    ) from error


def _check_unlike(task: TaskConfig, plan: Plan, prompts: Prompts) -> None:
  """Refuses problems that training, or the choice of settings, has seen."""
  other = shifted(task, plan.shifted)
  asked = {other.canonical(p) for p in np.asarray(prompts.tokens_BP)}
  for split, seen in data.load_splits(task).items():
    if split == plan.split:
      continue
    again = asked & {task.canonical(p) for p in np.asarray(seen.tokens_BP)}
    if again:
      raise UserError(
        f"shifted={plan.shifted}: {len(again)} of {len(asked)} problems are in "
        f"{split} too: change what no problem of the task has"
      )


def best_temperature(
  folder: str | pathlib.Path, split: str, temperatures: tuple[float, ...]
) -> float:
  """The temperature at which most of a run's samples are right."""
  if len(temperatures) == 1:
    return temperatures[0]
  run = load.open_run(folder)
  problems = data.load_problems(run.config.task, split)
  right = {
    t: count(run, problems, _AT_ONCE, t).right_Q.sum() for t in temperatures
  }
  return max(right, key=right.__getitem__)
