"""Countdown's problems, solved exactly, and random expressions.

J are the available numbers (`base/types.py`).
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
Group = Problem | tuple[int, ...]  # A problem, or sorted numbers.


class Sizes(NamedTuple):
  """What problems depend on; see `CountdownConfig`."""

  numbers: int
  max_number: int
  min_target: int
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
    if sizes.min_target <= target <= sizes.max_target
  ]


def number_keys(number_QJ: np.ndarray) -> np.ndarray:
  """Returns an int64 per problem, equal where the numbers are, in any order."""
  key_Q = np.zeros(len(number_QJ), np.int64)
  for number_Q in np.sort(number_QJ, axis=1).T:
    key_Q = key_Q * symbols.NUM_INTEGERS + number_Q
  return key_Q


def canonical_keys(number_QJ: np.ndarray, target_Q: np.ndarray) -> np.ndarray:
  """Returns an int64 per problem, equal where canonical forms are equal."""
  return number_keys(number_QJ) * symbols.NUM_INTEGERS + target_Q


def random_expressions(
  rng: np.random.Generator,
  count: int,
  sizes: Sizes,
  relabel_fraction: float,
  excluded: Collection[Group] = (),
) -> tuple[np.ndarray, np.ndarray]:
  """Draws random legal responses, for supervised warm starts.

  Numbers are uniform, and so is every step among the legal moves (ordered
  pairs of available numbers, times operators).

  Args:
    rng: advanced by the call.
    count: Q, the number of examples.
    sizes: of the problems.
    relabel_fraction: probability that the target is the response's own
      result; otherwise the target is uniform and mostly missed.
    excluded: canonical problems, or sorted numbers with whatever target, of
      which no prompt is drawn, solved or not.

  Returns:
    prompt_QP and response_QT, int32.

  Raises:
    ValueError: an argument is out of range, or `excluded` leaves nothing.
  """
  check_warm_start(count, relabel_fraction)
  prompt_QP = np.full((count, sizes.numbers + 2), symbols.SEPARATOR)
  length = STEP_LENGTH * (sizes.numbers - 1) + 1
  response_QT = np.full((count, length), symbols.EOS)
  relabelled_Q = rng.random(count) < relabel_fraction
  problems = [group for group in excluded if isinstance(group[0], tuple)]
  excluded_problems = np.zeros(0, np.int64)
  if problems:
    numbers, targets = zip(*problems, strict=True)
    excluded_problems = canonical_keys(np.asarray(numbers), np.asarray(targets))
  multisets = [group for group in excluded if isinstance(group[0], int)]
  excluded_numbers = number_keys(
    np.asarray(multisets).reshape(-1, sizes.numbers)
  )
  pending = np.arange(count)
  for _ in range(1000):
    if not pending.size:
      break
    shape = (pending.size, sizes.numbers)
    number_QJ = rng.integers(1, sizes.max_number, shape, endpoint=True)
    step_QT, result_Q = _random_steps(rng, number_QJ, sizes.max_value)
    target_Q = rng.integers(
      sizes.min_target, sizes.max_target, len(pending), endpoint=True
    )
    target_Q = np.where(relabelled_Q[pending], result_Q, target_Q)
    keep_Q = (target_Q >= sizes.min_target) & (target_Q <= sizes.max_target)
    keep_Q &= ~np.isin(number_keys(number_QJ), excluded_numbers)
    keep_Q &= ~np.isin(canonical_keys(number_QJ, target_Q), excluded_problems)
    rows = pending[keep_Q]
    prompt_QP[rows, : sizes.numbers] = number_QJ[keep_Q]
    prompt_QP[rows, -1] = target_Q[keep_Q]
    response_QT[rows, :-1] = step_QT[keep_Q]
    pending = pending[~keep_Q]
  if pending.size:
    raise ValueError(
      f"no example found for {pending.size} of {count} rows after 1000 draws "
      f"each: exclude fewer problems than {len(excluded)}"
    )
  return prompt_QP.astype(np.int32), response_QT.astype(np.int32)


def _random_steps(
  rng: np.random.Generator, number_QJ: np.ndarray, max_value: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the tokens of random legal steps, and their last results."""
  rows = np.arange(len(number_QJ))
  steps = []
  while (width := number_QJ.shape[1]) > 1:
    i_A, j_A = np.array(list(itertools.permutations(range(width), 2))).T
    a_QA, b_QA = number_QJ[:, i_A], number_QJ[:, j_A]
    quotient_QA = a_QA // b_QA
    quotient_QA = np.where(quotient_QA * b_QA == a_QA, quotient_QA, 0)
    result_QA = np.concatenate(
      [a_QA + b_QA, a_QA - b_QA, a_QA * b_QA, quotient_QA], axis=1
    )
    legal_QA = (result_QA >= 1) & (result_QA <= max_value)
    # The largest of random numbers is a uniform choice. There is always a
    # legal move: a - b if a > b, and a / b if they are equal.
    draw_QA = rng.random(legal_QA.shape, np.float32)
    move_Q = np.argmax(np.where(legal_QA, draw_QA, -1.0), axis=1)
    op_Q, pair_Q = np.divmod(move_Q, len(i_A))
    result_Q = result_QA[rows, move_Q]
    a_Q, b_Q = a_QA[rows, pair_Q], b_QA[rows, pair_Q]
    steps += [a_Q, op_Q + symbols.PLUS, b_Q, result_Q]
    keep_QJ = np.ones_like(number_QJ, bool)
    keep_QJ[rows, i_A[pair_Q]] = keep_QJ[rows, j_A[pair_Q]] = False
    rest_QJ = number_QJ[keep_QJ].reshape(len(rows), width - 2)
    number_QJ = np.concatenate([rest_QJ, result_Q[:, None]], axis=1)
  return np.stack(steps, axis=1), number_QJ[:, 0]
