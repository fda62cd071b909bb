"""Mazes on the host: canonical forms, distances, random mazes and walks.

A cell is its index 0..C-1, row by row. Axes beyond the legend of `types.py`:
N problems, C cells, I and J rows and columns with a border.
"""

import functools

import numpy as np

_BITS = 6  # Of a cell's index in a canonical form: size is at most 6.
_BATCH = 1 << 14  # Mazes drawn at once.
_MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))

Problem = int  # Canonical: a bit for each wall, then start, coin and goal.


@functools.cache
def symmetries(size: int) -> np.ndarray:
  """Where each cell goes by the 8 turns and mirrors, int [8, C]."""
  grid = np.arange(size**2).reshape(size, size)
  turns = [np.rot90(grid, k) for k in range(4)]
  return np.stack([t.ravel() for turn in turns for t in (turn, turn.T)])


@functools.cache
def neighbours(size: int) -> np.ndarray:
  """The four neighbours of each cell, -1 outside, int [C, 4]."""
  grid = np.pad(np.arange(size**2).reshape(size, size), 1, constant_values=-1)
  return np.stack(
    [np.roll(grid, move, (0, 1))[1:-1, 1:-1].ravel() for move in _MOVES], axis=1
  )


def canonical_keys(wall_NC: np.ndarray, ends_N3: np.ndarray) -> np.ndarray:
  """Returns an int64 a problem, equal where canonical forms are equal."""
  least_N = np.full(len(wall_NC), np.iinfo(np.int64).max)
  for turn_C in symmetries(round(wall_NC.shape[1] ** 0.5)):
    bits_N = wall_NC @ (1 << turn_C.astype(np.int64))
    start_N, coin_N, goal_N = turn_C[ends_N3].T
    for first_N, last_N in ((start_N, goal_N), (goal_N, start_N)):
      key_N = bits_N
      for cell_N in (first_N, coin_N, last_N):
        key_N = key_N << _BITS | cell_N
      least_N = np.minimum(least_N, key_N)
  return least_N


def unpack(problem: Problem, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns wall_C and the cells of start, coin and goal."""
  ends_3 = np.array([problem >> _BITS * i & 63 for i in (2, 1, 0)])
  wall_C = (problem >> 3 * _BITS >> np.arange(size**2)) & 1
  return wall_C.astype(bool), ends_3


def distances(wall_NC: np.ndarray, source_N: np.ndarray) -> np.ndarray:
  """Moves from a source to each cell, int [N, C]; C where there is no way."""
  count, cells = wall_NC.shape
  size = round(cells**0.5)
  distance_NC = np.full(wall_NC.shape, cells)
  distance_NC[np.arange(count), source_N] = 0
  # The flood grows by a move a step; a closed border spares the edge cases.
  border = ((0, 0), (1, 1), (1, 1))
  open_NIJ = np.pad(~wall_NC.reshape(count, size, size), border)
  flood_NIJ = np.pad((distance_NC == 0).reshape(count, size, size), border)
  for step in range(1, cells):
    grown_NIJ = flood_NIJ.copy()
    grown_NIJ[:, 1:] |= flood_NIJ[:, :-1]
    grown_NIJ[:, :-1] |= flood_NIJ[:, 1:]
    grown_NIJ[:, :, 1:] |= flood_NIJ[:, :, :-1]
    grown_NIJ[:, :, :-1] |= flood_NIJ[:, :, 1:]
    new_NIJ = grown_NIJ & open_NIJ & ~flood_NIJ
    if not new_NIJ.any():
      break
    distance_NC[new_NIJ[:, 1:-1, 1:-1].reshape(count, cells)] = step
    flood_NIJ |= new_NIJ
  return distance_NC


def random_mazes(
  rng: np.random.Generator, size: int, walls: int
) -> tuple[np.ndarray, np.ndarray]:
  """Draws mazes without closed-off cells: wall_NC, and start, coin, goal."""
  cells = size**2
  order_NC = rng.random((_BATCH, cells), np.float32).argsort(axis=1)
  wall_NC = np.zeros((_BATCH, cells), bool)
  np.put_along_axis(wall_NC, order_NC[:, :walls], True, axis=1)
  ends_N3 = order_NC[:, walls : walls + 3]
  distance_NC = distances(wall_NC, ends_N3[:, 0])
  open_N = np.all(wall_NC | (distance_NC < cells), axis=1)
  return wall_NC[open_N], ends_N3[open_N]


def random_walks(
  rng: np.random.Generator,
  wall_NC: np.ndarray,
  start_N: np.ndarray,
  max_moves: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Walks that turn back only in dead ends: cell_NT and their lengths."""
  near_C4 = neighbours(round(wall_NC.shape[1] ** 0.5))
  at_N, before_N = start_N, np.full_like(start_N, -1)
  rows = np.arange(len(start_N))
  cells = []
  for _ in range(max_moves):
    near_N4 = near_C4[at_N]
    legal_N4 = (near_N4 >= 0) & ~wall_NC[rows[:, None], near_N4]
    back_N4 = near_N4 == before_N[:, None]
    # The largest of random numbers is a uniform choice.
    draw_N4 = rng.random(near_N4.shape) + legal_N4 * np.where(back_N4, 1, 2)
    before_N, at_N = at_N, near_N4[rows, draw_N4.argmax(axis=1)]
    cells.append(at_N)
  length_N = rng.integers(2, max_moves, len(rows), endpoint=True)
  return np.stack(cells, axis=1), length_N
