"""Countdown: reach a target from given numbers, each used exactly once.

Prompt: `n1 n2 n3 = target`. Response: one step `a op b r` for each operation,
then the end token. Every result r is written by the model; it must be a
positive integer no larger than `max_value`, and joins the available numbers.

J are the available numbers (`base/types.py`).
"""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
import numpy as np

from tsd_jax.base.types import Array
from tsd_jax.models import symbols
from tsd_jax.rewards.reward import Reward, Score
from tsd_jax.tasks import countdown_problems
from tsd_jax.tasks.countdown_problems import STEP_LENGTH, Problem, Sizes
from tsd_jax.tasks.task import (
  GradedConfig,
  OwnReward,
  Posed,
  check_tokens,
  readable,
)

_USED = -1  # A slot whose number was consumed: no token equals it.


@dataclasses.dataclass(frozen=True)
class CountdownConfig(GradedConfig):
  """Sizes of the problems.

  Raises:
    ValueError: a field has an impossible value.
  """

  numbers: int = 3  # 3, 4 or 5 given numbers.
  max_number: int = 13  # Given numbers are 1..max_number.
  max_target: int = 100  # Targets are min_target..max_target.
  max_value: int = 199  # Largest intermediate result.
  min_target: int = 1
  # Numbers that are held out are in no other split, whatever the target.
  split_by: str = "numbers"

  SPLITS_BY = ("numbers", "problem")

  def __post_init__(self):
    """Refuses impossible values."""
    super().__post_init__()
    need, top = self.need, symbols.MAX_INTEGER
    need(int, "numbers", lambda x: x in (3, 4, 5), "use 3, 4 or 5")
    remedy = f"use an integer in 1..{top}, the tokenizer's largest"
    need(int, "max_value", lambda x: 1 <= x <= top, remedy)
    remedy = f"use an integer in 1..max_value={self.max_value}"
    need(int, "max_number", lambda x: 1 <= x <= self.max_value, remedy)
    need(int, "max_target", lambda x: 1 <= x <= self.max_value, remedy)
    remedy = f"use an integer in 1..max_target={self.max_target}"
    need(int, "min_target", lambda x: 1 <= x <= self.max_target, remedy)

  @property
  def sizes(self) -> Sizes:
    """What the problems depend on."""
    return Sizes(*(getattr(self, field) for field in Sizes._fields))

  @property
  def max_distance(self) -> int:
    """No result is farther from a target."""
    return self.max_value

  @property
  def dataset(self) -> str:
    """Names every setting that the records depend on."""
    low = f"{self.min_target}to" if self.min_target > 1 else ""
    return (
      f"numbers{self.numbers}_max{self.max_number}"
      f"_target{low}{self.max_target}_value{self.max_value}"
      f"_{self.split}"
    )

  def make(self) -> "Countdown":
    """The task."""
    return Countdown(self)

  def problems(self) -> list[Problem]:
    """Every solvable problem, in sorted order."""
    return countdown_problems.all_problems(self.sizes)

  def pose(self, problem: Any, rng):
    """Gives the numbers in random order, and a solution."""
    numbers, target = problem
    solution = countdown_problems.reachable(numbers, self.max_value)[target]
    order_J = rng.permutation(np.array(numbers, np.int32))
    return Posed(
      np.array([*order_J, symbols.SEPARATOR, target], np.int32),
      np.array([*sum(solution, ()), symbols.EOS], np.int32),
    )

  def canonical(self, prompt_P) -> Problem:
    """Sorts the numbers."""
    *numbers, _, target = map(int, prompt_P)
    return tuple(sorted(numbers)), target

  def group(self, problem: Any) -> Any:
    """The numbers, by default: what reaches one target hints at another."""
    return problem[0] if self.split_by == "numbers" else problem

  def warm_start(
    self, rng, count, relabel_fraction, excluded: Collection[Any] = ()
  ):
    """Draws random legal expressions; see `task.TaskConfig.warm_start`."""
    return countdown_problems.random_expressions(
      rng, count, self.sizes, relabel_fraction, excluded
    )


@dataclasses.dataclass(frozen=True)
class Countdown:
  """The task of `task.Task`; hashable, so it may be a static argument."""

  config: CountdownConfig = CountdownConfig()

  name = "countdown"
  vocab_size = symbols.VOCAB_SIZE
  eos_id, end_ids = symbols.EOS, (symbols.EOS,)
  pad_id = symbols.PAD
  prompt_pad_id, shared_prefix_length = None, 0
  step_end_ids = ()  # Every operation has as many tokens.
  observe, observation_length = None, 0
  step_length = STEP_LENGTH  # Tokens of an operation, its result the last.
  tokenizer = symbols.SymbolTokenizer()

  @property
  def prompt_length(self) -> int:
    """P: the numbers, `=` and the target."""
    return self.config.numbers + 2

  @property
  def response_length(self) -> int:
    """T: one step less than numbers, and the end token."""
    return self.step_length * (self.config.numbers - 1) + 1

  @property
  def reward(self) -> Reward:
    """What `score` gives."""
    return OwnReward(self)

  def score(self, prompt_XP: Array, response_XT: Array) -> Score:
    """Grades responses with a bounded parser; see `Task.reward`.

    Levels: 0 if it does not parse, `illegal` if it breaks a rule, else
    `reward_by_distance` of the last result, which is 1 if it is the target.

    Args:
      prompt_XP: integer tokens; a malformed prompt scores 0.
      response_XT: integer tokens, with the same leading axes.

    Raises:
      ValueError: a shape or dtype does not fit.
    """
    config = self.config
    prompt_XP, response_XT = jnp.asarray(prompt_XP), jnp.asarray(response_XT)
    check_tokens(self, prompt_XP, response_XT)
    # Products of two tokens overflow narrower integers.
    prompt_XP = prompt_XP.astype(jnp.int32)
    response_XT = response_XT.astype(jnp.int32)

    slot_XJ = prompt_XP[..., : config.numbers]
    target_X = prompt_XP[..., -1]
    parsed_X = (
      jnp.all((slot_XJ >= 1) & (slot_XJ <= config.max_value), axis=-1)
      & (prompt_XP[..., -2] == symbols.SEPARATOR)
      & ((target_X >= 1) & (target_X <= config.max_target))
      & (response_XT[..., -1] == symbols.EOS)
    )
    legal_X = jnp.ones_like(parsed_X)
    result_X = jnp.zeros_like(target_X)
    for start in range(0, self.response_length - 1, self.step_length):
      a_X, op_X, b_X, result_X = (
        response_XT[..., start + i] for i in (0, 1, 2, self.step_length - 1)
      )
      for number_X in (a_X, b_X, result_X):
        parsed_X &= (number_X >= 0) & (number_X <= symbols.MAX_INTEGER)
      parsed_X &= (op_X >= symbols.PLUS) & (op_X <= symbols.DIVIDE)

      found_X, slot_XJ, at_a_XJ = _take(slot_XJ, a_X, b_X)
      slot_XJ = jnp.where(at_a_XJ, result_X[..., None], slot_XJ)

      exact_X = exact_result(a_X, op_X, b_X)
      positive_X = (result_X >= 1) & (result_X <= config.max_value)
      legal_X &= found_X & (result_X == exact_X) & positive_X

    distance_X = jnp.abs(result_X - target_X)
    table = jnp.asarray(config.reward_by_distance())
    reward_X = table[jnp.clip(distance_X, 0, config.max_value)]
    reward_X = jnp.where(legal_X, reward_X, jnp.float32(config.illegal))
    reward_X = jnp.where(parsed_X, reward_X, jnp.float32(0.0))
    return Score(reward_X, parsed_X & legal_X & (distance_X == 0))

  def state_key(
    self, prompt_XP: Array, response_XT: Array, length_X: Array
  ) -> Array:
    """The numbers left; see `task.Task.state_key`.

    An operation counts as done when its operands are there, with its result to
    be written: `2 * 2` and `2 + 2` are one state_key. A response that breaks a
    rule, or has no room left, is a state_key of its own.
    """
    config = self.config
    slot_XJ = prompt_XP[..., : config.numbers].astype(jnp.int32)
    response_XT = response_XT.astype(jnp.int32)
    legal_X = jnp.ones(length_X.shape, bool)
    # First operand and operator; then the result alone, which is to follow.
    begun = [jnp.zeros_like(length_X)] * 2
    for start in range(0, self.response_length - 1, self.step_length):
      a_X, op_X, b_X, result_X = (
        response_XT[..., start + i] for i in (0, 1, 2, self.step_length - 1)
      )
      written_X = length_X - start
      operands_X, done_X = written_X >= 3, written_X >= self.step_length
      exact_X = exact_result(a_X, op_X, b_X)
      found_X, left_XJ, at_a_XJ = _take(slot_XJ, a_X, b_X)
      positive_X = (exact_X >= 1) & (exact_X <= config.max_value)
      legal_X &= ~operands_X | (found_X & positive_X)
      legal_X &= ~done_X | (result_X == exact_X)
      left_XJ = jnp.where(at_a_XJ, exact_X[..., None], left_XJ)
      slot_XJ = jnp.where(operands_X[..., None], left_XJ, slot_XJ)
      for i, token_X in enumerate((a_X, op_X)):
        here_X = (written_X > i) & ~operands_X
        begun[i] = jnp.where(here_X, token_X, begun[i])
      begun[0] = jnp.where(operands_X & ~done_X, exact_X, begun[0])
    written_X = length_X % self.step_length  # Of the last operation.
    parts = [jnp.sort(slot_XJ, axis=-1)]
    parts += [x_X[..., None] for x_X in (*begun, written_X)]
    own_XZ = own_state_key(response_XT)
    rest = own_XZ.shape[-1] - config.numbers - 3
    parts.append(jnp.full((*length_X.shape, rest), -1))
    # A whole response ends with a token that no part of the key has.
    shared_X = legal_X & (length_X < self.response_length)
    return jnp.where(
      shared_X[..., None], jnp.concatenate(parts, axis=-1), own_XZ
    )

  def describe(
    self,
    prompt_P: np.ndarray,
    response_T: np.ndarray,
    example: int | None = None,
  ) -> str:
    """Returns a line such as `3 4 5 = 17 | 3*4=12 12+5=17 | exact 1.000`."""
    del example
    prompt, response = readable(self, prompt_P), readable(self, response_T)
    score = self.score(jnp.asarray(prompt_P), jnp.asarray(response_T))
    reward = float(score.reward_X)
    if reward == 0.0:
      finished = symbols.EOS in np.asarray(response_T)
      verdict = "unparsable" if finished else "unfinished"
      body = " ".join(response)
    else:
      steps = [
        response[i : i + self.step_length]
        for i in range(0, self.response_length - 1, self.step_length)
      ]
      body = " ".join(f"{a}{op}{b}={r}" for a, op, b, *_, r in steps)
      off = abs(int(prompt_P[-1]) - int(response_T[-2]))
      verdict = f"off by {off}" if off else "exact"
      if reward == np.float32(self.config.illegal):
        verdict = "illegal"
    return f"{' '.join(prompt)} | {body} | {verdict} {reward:.3f}"


def exact_result(a_X: Array, op_X: Array, b_X: Array) -> Array:
  """The value of `a op b`; 0 where it is no integer, or op no operator."""
  quotient_X = a_X // jnp.maximum(b_X, 1)
  return jnp.select(
    [
      op_X == symbols.PLUS,
      op_X == symbols.MINUS,
      op_X == symbols.TIMES,
      (op_X == symbols.DIVIDE) & (quotient_X * b_X == a_X),
    ],
    [a_X + b_X, a_X - b_X, a_X * b_X, quotient_X],
    0,  # No positive result equals it.
  )


def own_state_key(response_XT: Array) -> Array:
  """A state_key of these tokens alone: one integer more tells it apart."""
  tokens_XT = response_XT.astype(jnp.int32)
  return jnp.concatenate([tokens_XT, tokens_XT[..., :1] * 0], axis=-1)


def _take(slot_XJ: Array, a_X: Array, b_X: Array) -> tuple[Array, ...]:
  """Takes two numbers.

  Returns:
    Whether both are there, the slots without them, and where the first was.
  """
  has_a_X, at_a_XJ = _first(slot_XJ, a_X)
  slot_XJ = jnp.where(at_a_XJ, _USED, slot_XJ)
  has_b_X, at_b_XJ = _first(slot_XJ, b_X)
  return has_a_X & has_b_X, jnp.where(at_b_XJ, _USED, slot_XJ), at_a_XJ


def _first(slot_XJ: Array, value_X: Array) -> tuple[Array, Array]:
  """Returns whether a slot holds the value, and a mask of the first one."""
  hit_XJ = slot_XJ == value_X[..., None]
  return jnp.any(hit_XJ, axis=-1), hit_XJ & (jnp.cumsum(hit_XJ, axis=-1) == 1)
