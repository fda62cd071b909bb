"""Countdown's problems, solved exactly, and random expressions.

Axes beyond the legend of `types.py`: M the available numbers, N the examples,
J the possible moves.
"""

import functools
import itertools
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from tsd_jax.models import symbols
from tsd_jax.tasks.task import check_warm_start

STEP_LENGTH = 4  # Tokens of `a op b r`.

Step = tuple[int, int, int, int]  # (a, op, b, r) as token ids.
Problem = tuple[tuple[int, ...], int]  # Canonical: (sorted numbers, target).


class Sizes(NamedTuple):
  """What problems depend on; see `CountdownConfig`."""

  numbers: int
  max_number: int
  max_target: int
  max_value: int


def _legal_steps(a: int, b: int, max_value: int) -> list[Step]:
  """Returns the legal steps of an unordered pair, without mirrored ones."""
  a, b = max(a, b), min(a, b)
  steps = [
    (a, symbols.PLUS, b, a + b),
    (a, symbols.MINUS, b, a - b),
    (a, symbols.TIMES, b, a * b),
  ]
  if a % b == 0:
    steps.append((a, symbols.DIVIDE, b, a // b))
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
  numbers: tuple[int, ...], max_value: int = symbols.MAX_INTEGER
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


def all_problems(sizes: Sizes) -> list[Problem]:
  """Returns every solvable problem in canonical form, in sorted order."""
  values = range(1, sizes.max_number + 1)
  multisets = itertools.combinations_with_replacement(values, sizes.numbers)
  return [
    (numbers, target)
    for numbers in multisets
    for target in sorted(_reachable(numbers, sizes.max_value))
    if target <= sizes.max_target
  ]


def canonical_keys(number_NM: np.ndarray, target_N: np.ndarray) -> np.ndarray:
  """Returns an int64 per problem, equal where canonical forms are equal."""
  key_N = np.zeros(len(number_NM), np.int64)
  for number_N in np.sort(number_NM, axis=1).T:
    key_N = key_N * symbols.NUM_INTEGERS + number_N
  return key_N * symbols.NUM_INTEGERS + target_N


def random_expressions(
  rng: np.random.Generator,
  count: int,
  sizes: Sizes,
  hindsight: float,
  excluded: Collection[Problem] = (),
) -> tuple[np.ndarray, np.ndarray]:
  """Draws random legal responses, for supervised warm starts.

  Numbers are uniform, and so is every step among the legal moves (ordered
  pairs of available numbers, times operators).

  Args:
    rng: advanced by the call.
    count: N, the number of examples.
    sizes: of the problems.
    hindsight: probability that the target is the response's own
      result; otherwise the target is uniform and mostly missed.
    excluded: canonical problems of which no prompt is drawn, solved or not.

  Returns:
    prompt_NP and response_NT, int32.

  Raises:
    ValueError: an argument is out of range, or `excluded` leaves nothing.
  """
  check_warm_start(count, hindsight)
  prompt_NP = np.full((count, sizes.numbers + 2), symbols.SEPARATOR)
  length = STEP_LENGTH * (sizes.numbers - 1) + 1
  response_NT = np.full((count, length), symbols.EOS)
  hindsight_N = rng.random(count) < hindsight
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
    shape = (pending.size, sizes.numbers)
    number_NM = rng.integers(1, sizes.max_number, shape, endpoint=True)
    step_NT, result_N = _random_steps(rng, number_NM, sizes.max_value)
    target_N = rng.integers(1, sizes.max_target, len(pending), endpoint=True)
    target_N = np.where(hindsight_N[pending], result_N, target_N)
    key_N = canonical_keys(number_NM, target_N)
    keep_N = (target_N <= sizes.max_target) & ~np.isin(key_N, excluded_keys)
    rows = pending[keep_N]
    prompt_NP[rows, : sizes.numbers] = number_NM[keep_N]
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
    steps += [a_N, op_N + symbols.PLUS, b_N, result_N]
    keep_NM = np.ones_like(number_NM, bool)
    keep_NM[rows, i_J[pair_N]] = keep_NM[rows, j_J[pair_N]] = False
    rest_NM = number_NM[keep_NM].reshape(len(rows), width - 2)
    number_NM = np.concatenate([rest_NM, result_N[:, None]], axis=1)
  return np.stack(steps, axis=1), number_NM[:, 0]
