"""The methods as settings of one loop.

`resolve` turns an algorithm's name into switches on one loop, and fills every
method's update step with as many backward tokens, up to whole rows; the ledger
counts what they spend beyond it.
"""

import dataclasses
from typing import Any, Literal, get_args

from tsd_jax.inference.rollout import Sampler
from tsd_jax.learning.config import (
  WEIGHTS,
  LearnerConfig,
  LossConfig,
  OptimizerConfig,
)
from tsd_jax.learning.loss_terms import TERMS, LossTerm
from tsd_jax.models.lora import NO_ADAPTERS, LoraConfig
from tsd_jax.parallel.sharding import ONE_DEVICE, MeshConfig
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.task import Task, prompt_form

Algorithm = Literal[
  "tsd", "ppo", "grpo", "cispo", "best_of_n", "expert_iteration"
]
ALGORITHMS = get_args(Algorithm)


def resolve(
  algorithm: Algorithm,
  task: Task,
  *,
  rollout: Sampler,
  search: SearchConfig,
  loss: LossConfig,
  optimizer: OptimizerConfig,
  refresh_every: int,
  iterations: int,
  lora: LoraConfig = NO_ADAPTERS,
  mesh: MeshConfig = ONE_DEVICE,
  reward_tokens: int = 0,
) -> LearnerConfig:
  """Switches parts of the loop for a method.

  Baselines sample as many rows of `rollout.baseline_prompts` prompts as reach
  the number of tokens that tsd's update runs backward; the last row counts up.

  Args:
    algorithm: its name.
    task: gives the lengths, the end token and the padding of prompts.
    rollout: tsd's samples.
    search: used by `tsd` and `expert_iteration`.
    loss: `tsd`'s loss; baselines keep its clips and unrelated weights.
    optimizer: shared.
    refresh_every: how often the search model is refreshed.
    iterations: of the run, over which a learning rate may decay.
    lora: what is trained of the parameters.
    mesh: how devices share the work.
    reward_tokens: see `LearnerConfig`.

  Returns:
    What the learner compiles.

  Raises:
    ValueError: for an unknown algorithm or settings that do not fit.
  """
  if algorithm not in ALGORITHMS:
    raise ValueError(
      f"algorithm={algorithm!r} is not one of {', '.join(ALGORITHMS)}"
    )
  if task.reward.abstention is None:
    loss = dataclasses.replace(loss, abstention_weight=0.0)
  if loss.success_weight is None:  # Nothing else of a run reads the head.
    loss = dataclasses.replace(
      loss, success_weight=0.1 if search.needs_value else 0.0
    )
  if task.response_length < 2:
    raise ValueError(
      f"responses of {task.name} have {task.response_length} token: give it 2 "
      "or more, the end token among them"
    )
  searches = loss.distils and loss.champion_source == "search"
  asked = loss.advantage
  if algorithm != "tsd":  # Its own; the rows that it fills are counted here.
    loss = dataclasses.replace(loss, advantage="tree")
  config = LearnerConfig(
    rollout=rollout,
    search=search,
    loss=loss,
    optimizer=optimizer,
    searches=searches,
    refresh_every=refresh_every if searches else 0,
    decay_over=iterations if optimizer.linear_decay else 0,
    end_ids=task.end_ids,
    prompt_form=prompt_form(task),
    reward_tokens=reward_tokens,
    abstention=task.reward.abstention,
    lora=lora,
    mesh=mesh,
  )
  if algorithm == "expert_iteration":
    config = _expert_iteration(config, task, refresh_every)
  elif algorithm != "tsd":
    config = _baseline(algorithm, config, task, asked)
  _check_gate(config.loss, task)
  _check_reward(config, task)
  return config


def _check_reward(config: LearnerConfig, task: Task) -> None:
  """Refuses what the reward cannot say."""
  name = type(task.reward).__name__
  steps = config.searches and config.search.leaf == "progress"
  if steps and not task.reward.judges_steps:
    raise ValueError(
      f"search.leaf=progress, but {name} judges no steps: use "
      "search.leaf=none, or a reward with `progress`"
    )
  closes = task.reward.forbidden is not None or task.reward.guards
  if config.loss.aversion_weight > 0 and not closes:
    raise ValueError(
      f"loss.aversion_weight={config.loss.aversion_weight}, but {name} forbids "
      "nothing: set loss.aversion_weight=0 or use a reward Constrained(...) or "
      "Guarded(...)"
    )


def _check_gate(loss: LossConfig, task: Task) -> None:
  """Refuses a gate by correctness where nobody knows what is correct."""
  by_truth = loss.distils and loss.champion_gate == "correct"
  if by_truth and not task.reward.knows_correct:
    raise ValueError(
      f"loss.champion_gate=correct, but {type(task.reward).__name__} knows "
      "no correct answers: use loss.champion_gate=better or quantile"
    )


def _reading(loss: LossConfig, kind: str) -> tuple[LossTerm, ...]:
  """Terms of the user's own that read what a method has."""
  return tuple(term for term in loss.terms if term.reads == kind)


def _supervised(loss: LossConfig) -> dict[str, Any]:
  """What champions teach alone: no other built-in term reads anything."""
  return dict.fromkeys(WEIGHTS, 0.0) | dict(
    advantage="group",
    champion_weight=1.0,
    terms=_reading(loss, "champions"),
  )


def _expert_iteration(
  ours: LearnerConfig, task: Task, refresh_every: int
) -> LearnerConfig:
  """All rows are champions; a sample a prompt shows where the policy stands."""
  most = ours.prompts_of(task, ours.update_tokens(task), ours.loss.champions)
  most = max(most, ours.prompt_step)
  loss = dataclasses.replace(
    ours.loss,
    **_supervised(ours.loss),
    champion_source="search",
    distilled_prompts=min(most, ours.rollout.prompts * ours.search.width),
  )
  return dataclasses.replace(
    ours,
    rollout=ours.rollout.without_forks(samples=1),
    loss=loss,
    searches=True,
    refresh_every=refresh_every,
  )


def _baseline(
  algorithm: Algorithm, ours: LearnerConfig, task: Task, asked: str
) -> LearnerConfig:
  """A method without a search, whose update has as many tokens as ours.

  Args:
    algorithm: its name.
    ours: tsd's.
    task: gives the lengths.
    asked: `loss.advantage`; GRPO and CISPO leave out the division for centred.
  """
  prompts, T = ours.rollout.baseline_prompts, task.response_length - 1
  calls = ours.optimizer.minibatches
  tokens = ours.update_tokens(task) - ours.prompt_tokens(task, prompts, calls)
  # The group of a baseline, champions included; the last row counts up, unless
  # it were for less than a token a prompt.
  rows = max(1, -(-(tokens // prompts) // T))
  # Terms that read champions, and V_search, are the tree's.
  own = {t.weight_name: 0.0 for t in TERMS if t.reads == "champions"}
  own |= dict(
    success_weight=0.0,
    abstention_weight=0.0,
    terms=_reading(ours.loss, "samples"),
  )
  # A recipe may do without it; it is all that they have.
  own |= dict(policy_weight=ours.loss.policy_weight or 1.0)
  group = "centred" if asked == "centred" else "group"
  match algorithm:
    case "ppo":
      value_weight = ours.loss.value_weight or 0.5
      own |= dict(policy="ppo", advantage="gae", value_weight=value_weight)
    case "grpo":
      own |= dict(policy="ppo", advantage=group)
    case "cispo":
      own |= dict(policy="cispo", advantage=group)
    case "best_of_n":
      own = _supervised(ours.loss) | dict(
        champion_source="samples", champions=rows, distilled_prompts=prompts
      )
  more = ours.rollout.oversample
  rollout = ours.rollout.without_forks(
    prompts=prompts * more,
    trained_prompts=prompts if more > 1 else 0,
    samples=rows,
    choose="first",
  )
  return dataclasses.replace(
    ours,
    rollout=rollout,
    loss=dataclasses.replace(ours.loss, **own),
    searches=False,
    refresh_every=0,
  )
