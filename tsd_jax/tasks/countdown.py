"""Countdown: reach a target from given numbers, each used exactly once.

Prompt: `n1 n2 n3 = target`. Response: one step `a op b r` for each operation,
then the end token. Every result r is written by the model; it must be a
positive integer no larger than `max_value`, and joins the available numbers.

Axes beyond the legend of `types.py`: X any leading axes, M the available
numbers, and, in `random_expressions`, N the examples and J the possible moves.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Collection, Mapping

import jax.numpy as jnp
import numpy as np

from tsd_jax import tokenizers
from tsd_jax.tasks.task import Score
from tsd_jax.types import Array

STEP_LENGTH = 4  # Tokens of `a op b r`.
_USED = -1  # A slot whose number was consumed: no token equals it.

Step = tuple[int, int, int, int]  # (a, op, b, r) as token ids.
Problem = tuple[tuple[int, ...], int]  # Canonical: (sorted numbers, target).


@dataclasses.dataclass(frozen=True)
class CountdownConfig:
  """Sizes of the problems, their split, and the reward levels.

  Raises:
    ValueError: a field has an impossible value.
  """

  numbers: int = 3  # 3 or 4 given numbers.
  max_number: int = 13  # Given numbers are 1..max_number.
  max_target: int = 100  # Targets are 1..max_target.
  max_value: int = 199  # Largest intermediate result.
  validation_size: int = 512
  test_size: int = 512
  seed: int = 0  # Of the split and the order in which numbers are given.
  illegal: float = 0.05  # Reward of a parsed response that breaks a rule.
  legal: float = 0.1  # Reward of a legal response, however far from target.
  near: float = 0.3  # What a legal response gains as it comes near.
  near_scale: float = 5.0  # Distance over which that gain falls by e.

  def __post_init__(self):
    """Refuses impossible values."""

    def need(kind, field, ok, remedy):
      value = getattr(self, field)
      kinds = (int,) if kind is int else (int, float)
      right_type = isinstance(value, kinds) and not isinstance(value, bool)
      if not (right_type and math.isfinite(value) and ok(value)):
        raise ValueError(f"CountdownConfig.{field}={value!r}: {remedy}")

    top, f32 = tokenizers.MAX_INTEGER, np.float32
    need(int, "numbers", lambda x: x in (3, 4), "use 3 or 4")
    remedy = f"use an integer in 1..{top}, the tokenizer's largest"
    need(int, "max_value", lambda x: 1 <= x <= top, remedy)
    remedy = f"use an integer in 1..max_value={self.max_value}"
    need(int, "max_number", lambda x: 1 <= x <= self.max_value, remedy)
    need(int, "max_target", lambda x: 1 <= x <= self.max_value, remedy)
    for field in ("validation_size", "test_size"):
      need(int, field, lambda x: x >= 0, "use an integer that is 0 or more")
    need(int, "seed", lambda x: 0 <= x < 2**32, "use an integer in 0..2**32-1")
    # Levels are compared as float32: 1e-50 would be no level above 0.
    need(float, "illegal", lambda x: 0 < f32(x) < 1, "use a number in (0, 1)")
    remedy = f"use a number above illegal={self.illegal} and below 1"
    need(float, "legal", lambda x: f32(self.illegal) < f32(x) < 1, remedy)
    need(float, "near_scale", lambda x: x > 0, "use a number above 0")
    remedy = "use 0 or more, but so little that a near miss is worth below 1"
    need(float, "near", lambda x: x >= 0, remedy)
    need(float, "near", lambda x: reward_by_distance(self)[1] < 1, remedy)


def reward_by_distance(config: CountdownConfig) -> np.ndarray:
  """Returns the rewards of legal responses, float32 [max_value + 1].

    reward[0] = 1,  reward[d] = legal + near * exp(-d / near_scale)

  Tabulated on the host, so that the order of the levels does not depend on
  how a compiler rounds `exp`: rounding to float32 keeps it, with ties.

  Args:
    config: gives the levels.
  """
  distance = np.arange(config.max_value + 1, dtype=np.float64)
  with np.errstate(over="ignore", under="ignore"):
    closeness = np.exp(-distance / config.near_scale)
  reward = config.legal + config.near * closeness
  reward[0] = 1.0
  return reward.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Countdown:
  """The task of `task.Task`; hashable, so it may be a static argument."""

  config: CountdownConfig = CountdownConfig()

  name = "countdown"
  vocab_size = tokenizers.VOCAB_SIZE
  eos_id = tokenizers.EOS
  pad_id = tokenizers.PAD

  @property
  def prompt_length(self) -> int:
    """P: the numbers, `=` and the target."""
    return self.config.numbers + 2

  @property
  def response_length(self) -> int:
    """T: one step less than numbers, and the end token."""
    return STEP_LENGTH * (self.config.numbers - 1) + 1

  def score(self, prompt_XP: Array, response_XT: Array) -> Score:
    """Grades responses with a bounded parser; see `task.Task.score`.

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
    self._check(prompt_XP, response_XT)
    # Products of two tokens overflow narrower integers.
    prompt_XP = prompt_XP.astype(jnp.int32)
    response_XT = response_XT.astype(jnp.int32)

    slot_XM = prompt_XP[..., : config.numbers]
    target_X = prompt_XP[..., -1]
    parsed_X = (
      jnp.all((slot_XM >= 1) & (slot_XM <= config.max_value), axis=-1)
      & (prompt_XP[..., -2] == tokenizers.SEPARATOR)
      & ((target_X >= 1) & (target_X <= config.max_target))
      & (response_XT[..., -1] == tokenizers.EOS)
    )
    legal_X = jnp.ones_like(parsed_X)
    result_X = jnp.zeros_like(target_X)
    for start in range(0, self.response_length - 1, STEP_LENGTH):
      a_X, op_X, b_X, result_X = (
        response_XT[..., start + i] for i in range(STEP_LENGTH)
      )
      for number_X in (a_X, b_X, result_X):
        parsed_X &= (number_X >= 0) & (number_X <= tokenizers.MAX_INTEGER)
      parsed_X &= (op_X >= tokenizers.PLUS) & (op_X <= tokenizers.DIVIDE)

      has_a_X, at_a_XM = _first(slot_XM, a_X)
      slot_XM = jnp.where(at_a_XM, _USED, slot_XM)
      has_b_X, at_b_XM = _first(slot_XM, b_X)
      slot_XM = jnp.where(at_b_XM, _USED, slot_XM)
      slot_XM = jnp.where(at_a_XM, result_X[..., None], slot_XM)

      quotient_X = a_X // jnp.maximum(b_X, 1)
      exact_X = jnp.select(
        [
          op_X == tokenizers.PLUS,
          op_X == tokenizers.MINUS,
          op_X == tokenizers.TIMES,
          (op_X == tokenizers.DIVIDE) & (quotient_X * b_X == a_X),
        ],
        [a_X + b_X, a_X - b_X, a_X * b_X, quotient_X],
        0,  # Not an integer: no positive result equals it.
      )
      positive_X = (result_X >= 1) & (result_X <= config.max_value)
      legal_X &= has_a_X & has_b_X & (result_X == exact_X) & positive_X

    distance_X = jnp.abs(result_X - target_X)
    table = jnp.asarray(reward_by_distance(config))
    reward_X = table[jnp.clip(distance_X, 0, config.max_value)]
    reward_X = jnp.where(legal_X, reward_X, jnp.float32(config.illegal))
    reward_X = jnp.where(parsed_X, reward_X, jnp.float32(0.0))
    return Score(reward_X, parsed_X & legal_X & (distance_X == 0))

  def _check(self, prompt_XP: Array, response_XT: Array) -> None:
    """Raises ValueError where shapes or dtypes do not fit."""
    for name, tokens, length in (
      ("prompt_XP", prompt_XP, self.prompt_length),
      ("response_XT", response_XT, self.response_length),
    ):
      if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"{name} needs integer tokens, got {tokens.dtype=}")
      if tokens.ndim < 1 or tokens.shape[-1] != length:
        raise ValueError(
          f"{name} needs a last axis of {length}, got {tokens.shape=}"
        )
    if prompt_XP.shape[:-1] != response_XT.shape[:-1]:
      raise ValueError(
        f"leading axes differ: {prompt_XP.shape=}, {response_XT.shape=}"
      )

  def describe(self, prompt_P: np.ndarray, response_T: np.ndarray) -> str:
    """Returns a line such as `3 4 5 = 17 | 3*4=12 12+5=17 | exact 1.000`."""
    prompt, response = _symbols(prompt_P), _symbols(response_T)
    score = self.score(np.asarray(prompt_P), np.asarray(response_T))
    reward = float(score.reward_X)
    if reward == 0.0:
      finished = tokenizers.EOS in np.asarray(response_T)
      verdict = "unparsable" if finished else "unfinished"
      body = " ".join(response)
    else:
      steps = [
        response[i : i + STEP_LENGTH]
        for i in range(0, self.response_length - 1, STEP_LENGTH)
      ]
      body = " ".join(f"{a}{op}{b}={r}" for a, op, b, r in steps)
      off = abs(int(prompt_P[-1]) - int(response_T[-2]))
      verdict = f"off by {off}" if off else "exact"
      if reward == np.float32(self.config.illegal):
        verdict = "illegal"
    return f"{' '.join(prompt)} | {body} | {verdict} {reward:.3f}"


def _first(slot_XM: Array, value_X: Array) -> tuple[Array, Array]:
  """Returns whether a slot holds the value, and a mask of the first one."""
  hit_XM = slot_XM == value_X[..., None]
  return jnp.any(hit_XM, axis=-1), hit_XM & (jnp.cumsum(hit_XM, axis=-1) == 1)


def _symbols(tokens) -> list[str]:
  """Returns readable symbols; ids outside the vocabulary do not stop a log."""
  decode = tokenizers.SymbolTokenizer().decode
  return [
    decode([token]) if 0 <= token < tokenizers.VOCAB_SIZE else f"<{token}>"
    for token in map(int, tokens)
    if token != tokenizers.PAD
  ]


def _legal_steps(a: int, b: int, max_value: int) -> list[Step]:
  """Returns the legal steps of an unordered pair, without mirrored ones."""
  a, b = max(a, b), min(a, b)
  steps = [
    (a, tokenizers.PLUS, b, a + b),
    (a, tokenizers.MINUS, b, a - b),
    (a, tokenizers.TIMES, b, a * b),
  ]
  if a % b == 0:
    steps.append((a, tokenizers.DIVIDE, b, a // b))
  return [step for step in steps if 1 <= step[-1] <= max_value]


@functools.cache
def _reachable(
  numbers: tuple[int, ...], max_value: int
) -> Mapping[int, tuple[Step, ...]]:
  """Does the work of `reachable` for sorted numbers, remembering results."""
  if len(numbers) == 1:
    return {numbers[0]: ()}
  solutions = {}
  for i, j in itertools.combinations(range(len(numbers)), 2):
    rest = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
    for step in _legal_steps(numbers[i], numbers[j], max_value):
      left = tuple(sorted((*rest, step[-1])))
      for target, steps in _reachable(left, max_value).items():
        if target not in solutions:
          solutions[target] = (step, *steps)
  return solutions


def reachable(
  numbers: tuple[int, ...], max_value: int = tokenizers.MAX_INTEGER
) -> dict[int, tuple[Step, ...]]:
  """Solves exactly: every target that the numbers reach, with one solution.

  Args:
    numbers: positive integers, in any order; all of them are used.
    max_value: the largest intermediate result.

  Raises:
    ValueError: a number is outside 1..max_value.
  """
  if not numbers or not all(1 <= number <= max_value for number in numbers):
    raise ValueError(f"{numbers=}: use one or more integers in 1..{max_value=}")
  return dict(_reachable(tuple(sorted(map(int, numbers))), max_value))


def all_problems(config: CountdownConfig) -> list[Problem]:
  """Returns every solvable problem in canonical form, in sorted order."""
  values = range(1, config.max_number + 1)
  multisets = itertools.combinations_with_replacement(values, config.numbers)
  return [
    (numbers, target)
    for numbers in multisets
    for target in sorted(_reachable(numbers, config.max_value))
    if target <= config.max_target
  ]


def canonical_keys(number_NM: np.ndarray, target_N: np.ndarray) -> np.ndarray:
  """Returns an int64 per problem, equal where canonical forms are equal."""
  key_N = np.zeros(len(number_NM), np.int64)
  for number_N in np.sort(number_NM, axis=1).T:
    key_N = key_N * tokenizers.NUM_INTEGERS + number_N
  return key_N * tokenizers.NUM_INTEGERS + target_N


def random_expressions(
  rng: np.random.Generator,
  count: int,
  config: CountdownConfig,
  hindsight_fraction: float,
  excluded: Collection[Problem] = (),
) -> tuple[np.ndarray, np.ndarray]:
  """Draws random legal responses, for supervised warm starts.

  Numbers are uniform, and so is every step among the legal moves (ordered
  pairs of available numbers, times operators).

  Args:
    rng: advanced by the call.
    count: N, the number of examples.
    config: gives the sizes.
    hindsight_fraction: probability that the target is the response's own
      result; otherwise the target is uniform and mostly missed.
    excluded: canonical problems of which no prompt is drawn, solved or not.

  Returns:
    prompt_NP and response_NT, int32.

  Raises:
    ValueError: an argument is out of range, or `excluded` leaves nothing.
  """
  if count < 0:
    raise ValueError(f"{count=}: use 0 or more")
  if not 0.0 <= hindsight_fraction <= 1.0:
    raise ValueError(f"{hindsight_fraction=}: use a probability in [0, 1]")
  task = Countdown(config)
  prompt_NP = np.full((count, task.prompt_length), tokenizers.SEPARATOR)
  response_NT = np.full((count, task.response_length), tokenizers.EOS)
  hindsight_N = rng.random(count) < hindsight_fraction
  excluded_keys = np.zeros(0, np.int64)
  if len(excluded):
    excluded_numbers, excluded_targets = zip(*excluded, strict=True)
    excluded_keys = canonical_keys(
      np.asarray(excluded_numbers), np.asarray(excluded_targets)
    )
  pending = np.arange(count)
  for _ in range(1000):
    if not pending.size:
      break
    shape = (pending.size, config.numbers)
    number_NM = rng.integers(1, config.max_number, shape, endpoint=True)
    step_NT, result_N = _random_steps(rng, number_NM, config.max_value)
    target_N = rng.integers(1, config.max_target, len(pending), endpoint=True)
    target_N = np.where(hindsight_N[pending], result_N, target_N)
    key_N = canonical_keys(number_NM, target_N)
    keep_N = (target_N <= config.max_target) & ~np.isin(key_N, excluded_keys)
    rows = pending[keep_N]
    prompt_NP[rows, : config.numbers] = number_NM[keep_N]
    prompt_NP[rows, -1] = target_N[keep_N]
    response_NT[rows, :-1] = step_NT[keep_N]
    pending = pending[~keep_N]
  if pending.size:
    raise ValueError(
      f"no example found for {pending.size} of {count} rows after 1000 draws "
      f"each: exclude fewer problems than {len(excluded)}"
    )
  return prompt_NP.astype(np.int32), response_NT.astype(np.int32)


def _random_steps(
  rng: np.random.Generator, number_NM: np.ndarray, max_value: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the tokens of random legal steps, and their last results."""
  rows = np.arange(len(number_NM))
  steps = []
  while (width := number_NM.shape[1]) > 1:
    i_J, j_J = np.array(list(itertools.permutations(range(width), 2))).T
    a_NJ, b_NJ = number_NM[:, i_J], number_NM[:, j_J]
    quotient_NJ = a_NJ // b_NJ
    quotient_NJ = np.where(quotient_NJ * b_NJ == a_NJ, quotient_NJ, 0)
    result_NJ = np.concatenate(
      [a_NJ + b_NJ, a_NJ - b_NJ, a_NJ * b_NJ, quotient_NJ], axis=1
    )
    legal_NJ = (result_NJ >= 1) & (result_NJ <= max_value)
    # The largest of random numbers is a uniform choice. There is always a
    # legal move: a - b if a > b, and a / b if they are equal.
    draw_NJ = rng.random(legal_NJ.shape, np.float32)
    move_N = np.argmax(np.where(legal_NJ, draw_NJ, -1.0), axis=1)
    op_N, pair_N = np.divmod(move_N, len(i_J))
    result_N = result_NJ[rows, move_N]
    a_N, b_N = a_NJ[rows, pair_N], b_NJ[rows, pair_N]
    steps += [a_N, op_N + tokenizers.PLUS, b_N, result_N]
    keep_NM = np.ones_like(number_NM, bool)
    keep_NM[rows, i_J[pair_N]] = keep_NM[rows, j_J[pair_N]] = False
    rest_NM = number_NM[keep_NM].reshape(len(rows), width - 2)
    number_NM = np.concatenate([rest_NM, result_N[:, None]], axis=1)
  return np.stack(steps, axis=1), number_NM[:, 0]
