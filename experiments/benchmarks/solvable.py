"""Whether a begun answer can still become a correct one: the perfect value."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks.prefixes import Path
from tsd_jax.models import symbols
from tsd_jax.tasks import countdown, countdown_problems, maze, maze_problems
from tsd_jax.tasks.task import Task


@functools.lru_cache(maxsize=200_000)
def _targets(numbers: tuple[int, ...], max_value: int) -> frozenset[int]:
  return frozenset(countdown_problems.reachable(numbers, max_value))


def _result(a: int, op: int, b: int, max_value: int) -> int | None:
  """What a legal step writes, None if it is illegal."""
  if op == symbols.DIVIDE:
    r = a // b if a % b == 0 else 0
  else:
    signs = {
      symbols.PLUS: a + b, symbols.MINUS: a - b, symbols.TIMES: a * b
    }  # fmt: skip
    r = signs[op]
  return r if 1 <= r <= max_value else None


def countdown_value(
  config: countdown.CountdownConfig, prompt_P: np.ndarray
) -> Callable[[Path], float]:
  """1 where the numbers left still reach the target, by exhaustive search."""
  *given, _, target = map(int, prompt_P)
  operators = range(symbols.PLUS, symbols.DIVIDE + 1)

  def next_numbers(numbers, step):
    """Numbers after each legal step that begins with the tokens of `step`."""
    for i, a in enumerate(numbers):
      for j, b in enumerate(numbers):
        for op in operators:
          r = _result(a, op, b, config.max_value) if i != j else None
          if r is not None and (a, op, b, r)[: len(step)] == step:
            rest = [x for k, x in enumerate(numbers) if k not in (i, j)]
            yield tuple(sorted((*rest, r)))

  def value(path):
    numbers = tuple(given)
    for start in range(0, len(path), countdown_problems.STEP_LENGTH):
      step = path[start : start + countdown_problems.STEP_LENGTH]
      after = set(next_numbers(numbers, step))
      if len(step) < countdown_problems.STEP_LENGTH:
        reached = (_targets(left, config.max_value) for left in after)
        return float(any(target in targets for targets in reached))
      if not after:
        return 0.0
      (numbers,) = after
    return float(target in _targets(numbers, config.max_value))

  return value


def maze_value(
  config: maze.MazeConfig, prompt_P: np.ndarray
) -> Callable[[Path], float]:
  """1 where the moves left still lead to the goal by way of the coin."""
  cells = range(config.size**2)
  cell_P = maze.to_cells(prompt_P, config.size)
  start, coin, goal = map(int, cell_P[-3:])
  wall_J = np.isin(cells, cell_P[: config.walls])
  to_coin_J, to_goal_J = maze_problems.distances(
    np.stack([wall_J] * 2), np.array([coin, goal])
  )
  near_J4 = maze_problems.neighbours(config.size)
  cell_of = dict(zip(maze.to_tokens(cells, config.size), cells, strict=True))

  def value(path):
    at, fetched = start, start == coin
    for token in path:
      to = cell_of.get(token, -1)
      if to < 0 or wall_J[to] or to not in near_J4[at]:
        return 0.0
      at, fetched = to, fetched or to == coin
    way = to_goal_J[at] if fetched else to_coin_J[at] + to_goal_J[coin]
    return float(way <= config.max_moves - len(path))

  return value


# By the task's name.
_ORACLES = {"countdown": countdown_value, "maze": maze_value}


def oracle(
  task: Task, config: Any
) -> Callable[[np.ndarray], Callable[[Path], float]] | None:
  """From a prompt to the exact value of its paths; None where it is unknown.

  Args:
    task: the task.
    config: its config.
  """
  value = _ORACLES.get(task.name)
  return None if value is None else functools.partial(value, config)
