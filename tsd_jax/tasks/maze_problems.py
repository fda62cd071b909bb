"""Mazes on the host: canonical forms, distances, random mazes and walks.

A cell is its index 0..J-1, row by row; XX are rows and columns with a border
(`base/types.py`).
"""

import functools

import numpy as np

_BITS = 6  # Of a cell's index in a canonical form: size is at most 6.
_BATCH = 1 << 14  # Mazes drawn at once.
_MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))

Problem = int  # Canonical: a bit for each wall, then start, coin and goal.


@functools.cache
def symmetries(size: int) -> np.ndarray:
  """Where each cell goes by the 8 turns and mirrors, int [8, J]."""
  grid = np.arange(size**2).reshape(size, size)
  turns = [np.rot90(grid, k) for k in range(4)]
  return np.stack([t.ravel() for turn in turns for t in (turn, turn.T)])


@functools.cache
def neighbours(size: int) -> np.ndarray:
  """The four neighbours of each cell, -1 outside, int [J, 4]."""
  grid = np.pad(np.arange(size**2).reshape(size, size), 1, constant_values=-1)
  return np.stack(
    [np.roll(grid, move, (0, 1))[1:-1, 1:-1].ravel() for move in _MOVES], axis=1
  )


def canonical_keys(wall_QJ: np.ndarray, ends_Q3: np.ndarray) -> np.ndarray:
  """Returns an int64 a problem, equal where canonical forms are equal."""
  least_Q = np.full(len(wall_QJ), np.iinfo(np.int64).max)
  for turn_J in symmetries(round(wall_QJ.shape[1] ** 0.5)):
    bits_Q = wall_QJ @ (1 << turn_J.astype(np.int64))
    start_Q, coin_Q, goal_Q = turn_J[ends_Q3].T
    for first_Q, last_Q in ((start_Q, goal_Q), (goal_Q, start_Q)):
      key_Q = bits_Q
      for cell_Q in (first_Q, coin_Q, last_Q):
        key_Q = key_Q << _BITS | cell_Q
      least_Q = np.minimum(least_Q, key_Q)
  return least_Q


def layout_keys(wall_QJ: np.ndarray) -> np.ndarray:
  """Returns an int64 a maze, equal where a turn or mirror makes walls equal."""
  turns = symmetries(round(wall_QJ.shape[1] ** 0.5)).astype(np.int64)
  return np.min([wall_QJ @ (1 << turn_J) for turn_J in turns], axis=0)


def unpack(problem: Problem, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns wall_J and the cells of start, coin and goal."""
  ends_3 = np.array([problem >> _BITS * i & 63 for i in (2, 1, 0)])
  wall_J = (problem >> 3 * _BITS >> np.arange(size**2)) & 1
  return wall_J.astype(bool), ends_3


def distances(wall_QJ: np.ndarray, source_Q: np.ndarray) -> np.ndarray:
  """Moves from a source to each cell, int [Q, J]; J where there is no way."""
  count, cells = wall_QJ.shape
  size = round(cells**0.5)
  distance_QJ = np.full(wall_QJ.shape, cells)
  distance_QJ[np.arange(count), source_Q] = 0
  # The flood grows by a move a step; a closed border spares the edge cases.
  border = ((0, 0), (1, 1), (1, 1))
  open_QXX = np.pad(~wall_QJ.reshape(count, size, size), border)
  flood_QXX = np.pad((distance_QJ == 0).reshape(count, size, size), border)
  for step in range(1, cells):
    grown_QXX = flood_QXX.copy()
    grown_QXX[:, 1:] |= flood_QXX[:, :-1]
    grown_QXX[:, :-1] |= flood_QXX[:, 1:]
    grown_QXX[:, :, 1:] |= flood_QXX[:, :, :-1]
    grown_QXX[:, :, :-1] |= flood_QXX[:, :, 1:]
    new_QXX = grown_QXX & open_QXX & ~flood_QXX
    if not new_QXX.any():
      break
    distance_QJ[new_QXX[:, 1:-1, 1:-1].reshape(count, cells)] = step
    flood_QXX |= new_QXX
  return distance_QJ


def random_mazes(
  rng: np.random.Generator, size: int, walls: int
) -> tuple[np.ndarray, np.ndarray]:
  """Draws mazes without closed-off cells: wall_QJ, and start, coin, goal."""
  cells = size**2
  order_QJ = rng.random((_BATCH, cells), np.float32).argsort(axis=1)
  wall_QJ = np.zeros((_BATCH, cells), bool)
  np.put_along_axis(wall_QJ, order_QJ[:, :walls], True, axis=1)
  ends_Q3 = order_QJ[:, walls : walls + 3]
  distance_QJ = distances(wall_QJ, ends_Q3[:, 0])
  open_Q = np.all(wall_QJ | (distance_QJ < cells), axis=1)
  return wall_QJ[open_Q], ends_Q3[open_Q]


def random_walks(
  rng: np.random.Generator,
  wall_QJ: np.ndarray,
  start_Q: np.ndarray,
  max_moves: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Walks that turn back only in dead ends: cell_QT and their lengths."""
  near_J4 = neighbours(round(wall_QJ.shape[1] ** 0.5))
  at_Q, before_Q = start_Q, np.full_like(start_Q, -1)
  rows = np.arange(len(start_Q))
  cells = []
  for _ in range(max_moves):
    near_Q4 = near_J4[at_Q]
    legal_Q4 = (near_Q4 >= 0) & ~wall_QJ[rows[:, None], near_Q4]
    back_Q4 = near_Q4 == before_Q[:, None]
    # The largest of random numbers is a uniform choice.
    draw_Q4 = rng.random(near_Q4.shape) + legal_Q4 * np.where(back_Q4, 1, 2)
    before_Q, at_Q = at_Q, near_Q4[rows, draw_Q4.argmax(axis=1)]
    cells.append(at_Q)
  length_Q = rng.integers(2, max_moves, len(rows), endpoint=True)
  return np.stack(cells, axis=1), length_Q
