"""The methods that a comparison takes, and what each changes of a run."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

from tsd_jax.base.ledger import BACKWARD_COST
from tsd_jax.learning.config import LearnerConfig
from tsd_jax.learning.methods import Algorithm
from tsd_jax.run.experiment import Experiment
from tsd_jax.tasks.task import Task

# dapo is GRPO that samples twice as many prompts, trains on those whose rewards
# differ, and clips higher above (arXiv:2503.14476).
# Controls are tsd's loop without a tree, champions taken from own samples:
# grpo_champion has GRPO's advantages, tree_prefix_values those of the tree
# that samples form by themselves where they share a prefix; wide_best_of_n
# spends the search's tokens on samples of as many prompts as its update has
# rows; filtered_best_of_n distils some of the solved ones among the samples
# that the rest of tsd's tokens buys; stopped_best_of_n is tsd's loop with a
# tree of depth one: whole answers, drawn until one is right. The other wide
# ones read as many prompts as the update holds: one row of each, or two where
# a prompt's rows are compared with each other.
Method = Literal[
  Algorithm,
  "dapo",
  "grpo_champion",
  "tree_prefix_values",
  "wide_best_of_n",
  "filtered_best_of_n",
  "stopped_best_of_n",
  "wide_ppo",
  "wide_grpo",
  "wide_cispo",
]
METHODS = get_args(Method)
_WIDE_ROWS = {"wide_ppo": 1, "wide_grpo": 2, "wide_cispo": 2}
_CONTROLS = {
  "grpo_champion": {"loss.advantage": "group", "loss.success_weight": "0"},
  "tree_prefix_values": {"loss.advantage": "prefix"},
}
_DAPO = {
  "algorithm": "grpo",
  "loss.clip_high": "0.28",
  "rollout.oversample": "2",
}
GRADIENTS_ALONE = ("ppo", "grpo", "cispo", "dapo", *_WIDE_ROWS)
# Methods that must be told what tsd spends.
FOLLOWERS = ("wide_best_of_n", "filtered_best_of_n")
_CHAMPIONS_OF_SAMPLES = {
  "algorithm": "tsd",
  "loss.champion_source": "samples",
  "loss.champions": "1",
  "rollout.forks": "0",
}
_SUPERVISED = {"loss.policy_weight": "0", "loss.success_weight": "0"}
# Samples a prompt, at most: a knob that is no field of the run that the
# comparison is made from.
DRAWN = "drawn"
_DRAWN_AT_FIRST = {"filtered_best_of_n": 2, "stopped_best_of_n": 64}


class Spent(NamedTuple):
  """Ledger tokens that an iteration of tsd takes."""

  search: float
  total: float


def own_knobs(method: Method) -> tuple[str, ...]:
  """Fields that are a method's own to tune, beside those of all methods."""
  match method:
    case "tsd" | "expert_iteration":
      return ("search.num_simulations",)
    case "filtered_best_of_n" | "stopped_best_of_n":
      return (DRAWN, "loss.distilled_prompts")
    case "wide_best_of_n" | "wide_ppo" | "wide_grpo" | "wide_cispo":
      return ()  # How many prompts they read is what they are named for.
    case _:  # Their groups are the larger, the fewer the prompts.
      return ("rollout.baseline_prompts",)


def knob_violations(
  methods: Sequence[Method], experiment: Experiment, knobs: Sequence[str]
) -> Iterator[str]:
  """Knobs that all methods are to tune, and cannot.

  Args:
    methods: of the comparison.
    experiment: whose fields they are.
    knobs: their names.
  """
  own = {knob: method for method in methods for knob in own_knobs(method)}
  for i, field in enumerate(knobs):
    if field in knobs[:i]:
      yield f"knobs={','.join(knobs)} repeats {field}"
      continue
    if field == DRAWN or field in own:
      whose = own.get(field, "filtered_best_of_n")
      yield f"knobs: {field} is tuned with {whose} anyway: leave it out"
      continue
    found: Any = experiment
    for name in field.split("."):
      found = getattr(found, name, None)
    if not isinstance(found, int | float | bool):
      yield f"knobs: {field} is no number or switch of the experiment"


def recipe(
  method: Method, experiment: Experiment, field: str
) -> int | float | bool:
  """The value of a knob that a method begins with."""
  if field == DRAWN:
    return _DRAWN_AT_FIRST[method]
  found = experiment
  for name in field.split("."):
    found = getattr(found, name)
  assert isinstance(found, int | float | bool), field
  return found


def settings(
  method: Method,
  experiment: Experiment,
  spent: Spent,
  drawn: int = 0,
) -> dict[str, str]:
  """What a method changes of an experiment, as flags say it.

  Args:
    method: its name.
    experiment: gives the number of samples that the update reads.
    spent: by an iteration of tsd, for methods that spend as much.
    drawn: samples a prompt, of the methods that have this knob.

  Raises:
    ValueError: the update has too few tokens for the method, or the task is
      none for it.
  """
  if method in _CONTROLS:
    grpo = dataclasses.replace(experiment, algorithm="grpo").learner_config()
    return _CHAMPIONS_OF_SAMPLES | {
      "loss.champion_weight": "0.5",
      "rollout.prompts": str(grpo.rollout.prompts),
      "rollout.samples": str(grpo.rollout.samples - 1),
      **_CONTROLS[method],
    }
  if method == "dapo":
    return _DAPO
  if method == "stopped_best_of_n":
    return _drawn_until_right(experiment.make_task(), drawn)
  if method not in (*FOLLOWERS, *_WIDE_ROWS):
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
  length = task.response_length - 1
  samples, lessons = max(1, round(spent.search / (prompts * length))), prompts
  if method == "filtered_best_of_n":
    samples, lessons = drawn, ours.loss.distilled_prompts
    prompts = _filtered_prompts(ours, task, spent.total, samples)
  return _CHAMPIONS_OF_SAMPLES | {
    **_SUPERVISED,
    "loss.champion_weight": "1",
    "loss.distilled_prompts": str(lessons),
    "rollout.prompts": str(prompts),
    "rollout.samples": str(samples),
  }


def _drawn_until_right(task: Task, most: int) -> dict[str, str]:
  """A tree whose moves are whole answers; a right one makes room for others.

  Args:
    task: the run's.
    most: answers drawn to a prompt, at most.

  Raises:
    ValueError: the task ends steps, which draws would stop at.
  """
  if task.step_end_ids:
    raise ValueError(
      "stopped_best_of_n draws whole answers, but the task ends steps: set "
      "experiment.task.step_ends='', or leave the method out"
    )
  return _SUPERVISED | {
    "algorithm": "tsd",
    "rollout.forks": "0",
    "rollout.samples": "1",  # Nothing reads them: fewer are not made.
    "search.rule": "best_first",
    "search.rule.lazy": "true",
    "search.rule.transpositions": "false",
    "search.leaf": "none",
    "search.step_tokens": str(task.response_length),
    "search.num_candidates": str(most),
    "search.num_simulations": str(most),
    "search.slot_reuse": "true",
  }


def _filtered_prompts(
  ours: LearnerConfig, task: Task, spent: float, samples: int
) -> int:
  """Prompts whose samples cost what tsd spends, all but the lessons' update."""
  length, calls = task.response_length - 1, ours.optimizer.minibatches
  C = ours.loss.distilled_prompts
  lessons = ours.prompt_tokens(task, C, calls) + C * length
  # What all prompts begin with is read once a call, however many there are.
  one, two = (ours.prompt_tokens(task, count) for count in (1, 2))
  head, own = 2 * one - two, two - one
  left = spent - head - ours.optimizer.epochs * BACKWARD_COST * lessons
  judged = task.reward.judgements * ours.reward_tokens
  each = own + samples * (length + judged)
  step = ours.prompt_step
  return max(C, round(left / each / step) * step)
