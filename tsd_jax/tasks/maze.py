"""Maze: walk from start to goal by way of a coin, in few moves.

Prompt: the walls' cells, `=`, then start, coin and goal. Response: the cell
after each move, then the end token. A cell is written as row and column in one
number, 35 being row 3, column 5: neighbours differ by 1 or by 10. A move leads
to a neighbour that is no wall; cells may be entered again. No greedy walk will
do: the way to the coin may lead away from the goal, and both round walls.

Two problems are one and the same if a turn or a mirror makes them equal, or
walking backwards: their canonical form is the least of 16 numbers.

J are its cells, its walls or its rows (`base/types.py`). On the host a cell is
its index 0..J-1.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tsd_jax.base.types import Array
from tsd_jax.models import symbols
from tsd_jax.rewards.reward import Reward, Score
from tsd_jax.tasks import maze_problems
from tsd_jax.tasks.maze_problems import Problem
from tsd_jax.tasks.task import (
  GradedConfig,
  OwnReward,
  Posed,
  check_tokens,
  check_warm_start,
  readable,
)

_ROW = 10  # A cell is written as 10 * row + column, both from 1.


@dataclasses.dataclass(frozen=True)
class MazeConfig(GradedConfig):
  """Sizes of the mazes, and how many there are.

  Raises:
    ValueError: a field has an impossible value.
  """

  size: int = 6  # Rows and columns.
  walls: int = 8  # Cells that cannot be entered.
  min_moves: int = 8  # Of the shortest way.
  max_moves: int = 12  # Of the shortest way, and of a response.
  count: int = 24_000  # Problems drawn, held-out ones included.
  # Walls that are held out are in no other split, wherever one starts.
  split_by: str = "walls"

  SPLITS_BY = ("walls", "problem")

  def __post_init__(self):
    """Refuses impossible values."""
    super().__post_init__()
    need = self.need
    need(int, "size", lambda x: 3 <= x <= 6, "use an integer in 3..6")
    most = self.size**2 - 3
    remedy = f"use an integer in 1..{most}: start, coin and goal are free"
    need(int, "walls", lambda x: 1 <= x <= most, remedy)
    need(int, "min_moves", lambda x: x >= 2, "use an integer from 2 on")
    remedy = f"use an integer from min_moves={self.min_moves} on"
    need(int, "max_moves", lambda x: x >= self.min_moves, remedy)
    need(int, "count", lambda x: x >= 1, "use an integer from 1 on")

  @property
  def max_distance(self) -> int:
    """No two ways through the maze take more moves."""
    return 2 * self.size**2

  @property
  def dataset(self) -> str:
    """Names every setting that the records depend on."""
    return (
      f"size{self.size}_walls{self.walls}"
      f"_moves{self.min_moves}to{self.max_moves}_count{self.count}"
      f"_{self.split}"
    )

  def make(self) -> "Maze":
    """The task."""
    return Maze(self)

  def problems(self) -> list[Problem]:
    """Draws `count` different problems.

    Raises:
      ValueError: there are not so many.
    """
    found: dict[Problem, None] = {}
    rng = np.random.default_rng(self.seed)
    while len(found) < self.count:
      before = len(found)
      wall_QJ, ends_Q3 = maze_problems.random_mazes(rng, self.size, self.walls)
      start_Q, coin_Q, goal_Q = ends_Q3.T
      to_coin_QJ = maze_problems.distances(wall_QJ, coin_Q)
      rows = np.arange(len(ends_Q3))
      way_Q = to_coin_QJ[rows, start_Q] + to_coin_QJ[rows, goal_Q]
      ok_Q = (way_Q >= self.min_moves) & (way_Q <= self.max_moves)
      keys_Q = maze_problems.canonical_keys(wall_QJ[ok_Q], ends_Q3[ok_Q])
      found |= dict.fromkeys(keys_Q.tolist())
      if len(found) == before:
        raise ValueError(
          f"MazeConfig.count={self.count}: only {before} problems found with "
          f"{self.dataset}; ask for fewer, or change the sizes"
        )
    return list(found)[: self.count]

  def pose(self, problem: Any, rng):
    """Turns, mirrors and reverses at random; solves by a shortest way."""
    wall_J, ends_3 = maze_problems.unpack(problem, self.size)
    if rng.integers(2):
      ends_3 = ends_3[::-1]
    turn_J = maze_problems.symmetries(self.size)[rng.integers(8)]
    turned_J = np.zeros_like(wall_J)
    turned_J[turn_J] = wall_J
    start, coin, goal = turn_J[ends_3]
    cells = [start]
    to_2J = maze_problems.distances(
      np.stack([turned_J] * 2), np.array([coin, goal])
    )
    for end, distance_J in zip((coin, goal), to_2J, strict=True):
      while cells[-1] != end:
        near = maze_problems.neighbours(self.size)[cells[-1]]
        near = near[near >= 0]
        cells.append(near[np.argmin(distance_J[near])])
    moves_1T = np.zeros((1, self.max_moves), int)
    moves_1T[0, : len(cells) - 1] = cells[1:]
    (response_T,) = self._responses(moves_1T, np.array([len(cells) - 1]))
    (prompt_P,) = self._prompts(turned_J[None], turn_J[ends_3][None])
    return Posed(prompt_P, response_T)

  def canonical(self, prompt_P) -> Problem:
    """The least number of all 16 ways to write the problem."""
    cell_P = to_cells(prompt_P, self.size)
    wall_1J = np.zeros((1, self.size**2), bool)
    wall_1J[0, cell_P[: self.walls]] = True
    return int(maze_problems.canonical_keys(wall_1J, cell_P[None, -3:])[0])

  def group(self, problem: Any) -> Any:
    """The walls, by default."""
    if self.split_by == "problem":
      return problem
    wall_J, _ = maze_problems.unpack(problem, self.size)
    return int(maze_problems.layout_keys(wall_J[None])[0])

  def warm_start(self, rng, count, relabel_fraction, excluded=()):
    """Draws random walks; see `task.TaskConfig.warm_start`.

    A walk turns back only in a dead end, and is of a random length. With
    relabel_fraction its last cell is the goal and one on the way the coin.
    """
    check_warm_start(count, relabel_fraction)
    excluded_Q = np.fromiter(excluded, np.int64, len(excluded))
    prompts = [np.zeros((0, self.walls + 4), np.int32)]
    responses = [np.zeros((0, self.max_moves + 1), np.int32)]
    while (rows := sum(map(len, prompts))) < count:
      wall_QJ, ends_Q3 = maze_problems.random_mazes(rng, self.size, self.walls)
      start_Q = ends_Q3[:, 0]
      cell_QT, length_Q = maze_problems.random_walks(
        rng, wall_QJ, start_Q, self.max_moves
      )
      n = np.arange(len(cell_QT))
      coin_Q = cell_QT[n, rng.integers(0, length_Q - 1)]
      walked_Q3 = np.stack([start_Q, coin_Q, cell_QT[n, length_Q - 1]], axis=1)
      asked_Q1 = rng.random((len(n), 1)) < relabel_fraction
      ends_Q3 = np.where(asked_Q1, walked_Q3, ends_Q3)
      keep_Q = np.all(ends_Q3 != np.roll(ends_Q3, 1, axis=1), axis=1)
      if self.split_by == "walls":
        keys_Q = maze_problems.layout_keys(wall_QJ)
      else:
        keys_Q = maze_problems.canonical_keys(wall_QJ, ends_Q3)
      keep_Q &= ~np.isin(keys_Q, excluded_Q)
      if not keep_Q.any():
        raise ValueError(
          f"{rows} of {count} examples found with {self.dataset}: exclude "
          f"fewer problems than {len(excluded)}, or change the sizes"
        )
      prompts.append(self._prompts(wall_QJ, ends_Q3)[keep_Q])
      responses.append(self._responses(cell_QT, length_Q)[keep_Q])
    return np.concatenate(prompts)[:count], np.concatenate(responses)[:count]

  def _prompts(self, wall_QJ: np.ndarray, ends_Q3: np.ndarray) -> np.ndarray:
    """Writes problems as prompt_QP."""
    built_QJ = np.nonzero(wall_QJ)[1].reshape(len(wall_QJ), self.walls)
    equals_Q1 = np.full((len(wall_QJ), 1), symbols.SEPARATOR, np.int32)
    built_QJ, ends_Q3 = (
      to_tokens(cell, self.size) for cell in (built_QJ, ends_Q3)
    )
    return np.concatenate([built_QJ, equals_Q1, ends_Q3], axis=1)

  def _responses(self, cell_QT: np.ndarray, length_Q: np.ndarray) -> np.ndarray:
    """Writes the first cells of walks, and the end, as response_QT."""
    at_1T, length_Q1 = np.arange(self.max_moves + 1)[None], length_Q[:, None]
    token_QT = to_tokens(np.pad(cell_QT, ((0, 0), (0, 1))), self.size)
    token_QT = np.where(at_1T < length_Q1, token_QT, symbols.PAD)
    token_QT = np.where(at_1T == length_Q1, symbols.EOS, token_QT)
    return token_QT.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Maze:
  """The task of `task.Task`; hashable, so it may be a static argument."""

  config: MazeConfig = MazeConfig()

  name = "maze"
  vocab_size = symbols.VOCAB_SIZE
  eos_id, end_ids = symbols.EOS, (symbols.EOS,)
  pad_id = symbols.PAD
  prompt_pad_id, shared_prefix_length = None, 0
  step_end_ids = ()
  observe, observation_length = None, 0
  tokenizer = symbols.SymbolTokenizer()

  @property
  def prompt_length(self) -> int:
    """P: the walls, `=`, start, coin and goal."""
    return self.config.walls + 4

  @property
  def response_length(self) -> int:
    """T: the moves, and the end token."""
    return self.config.max_moves + 1

  @property
  def reward(self) -> Reward:
    """What `score` gives."""
    return OwnReward(self)

  def score(self, prompt_XP: Array, response_XT: Array) -> Score:
    """Grades responses; see `Task.reward`.

    Levels: 0 if it does not parse (cells, then the end token), `illegal` if a
    move is, else by the number of moves that are still needed from where it
    ends, by way of the coin if that was not fetched: 1 if there are none.

    Args:
      prompt_XP: integer tokens; a malformed prompt scores 0.
      response_XT: integer tokens, with the same leading axes.

    Raises:
      ValueError: a shape or dtype does not fit.
    """
    config = self.config
    prompt_XP, response_XT = jnp.asarray(prompt_XP), jnp.asarray(response_XT)
    check_tokens(self, prompt_XP, response_XT)
    # Sums of two tokens overflow narrower integers.
    prompt_XP = prompt_XP.astype(jnp.int32)
    response_XT = response_XT.astype(jnp.int32)
    wall_XJ = prompt_XP[..., : config.walls]
    coin_X, goal_X = prompt_XP[..., -2], prompt_XP[..., -1]

    ended_XT = jnp.cumsum(response_XT == symbols.EOS, axis=-1) > 0
    moves_X = jnp.sum(~ended_XT, axis=-1)
    at_XT = jax.lax.broadcasted_iota(
      jnp.int32, response_XT.shape, response_XT.ndim - 1
    )
    rest_XT = jnp.where(at_XT == moves_X[..., None], symbols.EOS, symbols.PAD)
    parsed_X = (
      jnp.all(_is_cell(wall_XJ, config.size), axis=-1)
      & (prompt_XP[..., config.walls] == symbols.SEPARATOR)
      & jnp.all(_is_cell(prompt_XP[..., -3:], config.size), axis=-1)
      & ((moves_X >= 1) & ended_XT[..., -1])
      & jnp.all(
        jnp.where(
          ended_XT, response_XT == rest_XT, _is_cell(response_XT, config.size)
        ),
        axis=-1,
      )
    )
    legal_X, fetched_X, last_X = self._walk(prompt_XP, response_XT, moves_X)
    to_goal_X, coin_to_goal_X, to_coin_X = self._ways(
      wall_XJ, coin_X, goal_X, last_X
    )
    distance_X = jnp.where(fetched_X, to_goal_X, to_coin_X + coin_to_goal_X)
    table = jnp.asarray(config.reward_by_distance())
    reward_X = jnp.where(legal_X, table[distance_X], config.illegal)
    reward_X = jnp.where(parsed_X, reward_X, 0.0).astype(jnp.float32)
    return Score(reward_X, parsed_X & legal_X & (distance_X == 0))

  def state_key(
    self, prompt_XP: Array, response_XT: Array, length_X: Array
  ) -> Array:
    """The cell, and whether the coin is fetched; see `task.Task.state_key`.

    A response that breaks a rule, or is finished, is a state_key of its own.
    """
    prompt_XP = prompt_XP.astype(jnp.int32)
    response_XT = response_XT.astype(jnp.int32)
    legal_X, fetched_X, last_X = self._walk(prompt_XP, response_XT, length_X)
    at_XT = jnp.arange(self.response_length)
    walked_XT = jnp.where(at_XT == 0, last_X[..., None], -1)
    walked_XT = jnp.where(at_XT == 1, fetched_X[..., None], walked_XT)
    return jnp.where(legal_X[..., None], walked_XT, response_XT)

  def _walk(self, prompt_XP, response_XT, moves_X) -> tuple[Array, ...]:
    """Whether the first `moves_X` moves are legal, fetch the coin, and end."""
    wall_XJ = prompt_XP[..., : self.config.walls]
    start_X, coin_X = prompt_XP[..., -3], prompt_XP[..., -2]
    at_XT = jax.lax.broadcasted_iota(
      jnp.int32, response_XT.shape, response_XT.ndim - 1
    )
    before_XT = jnp.concatenate(
      [start_X[..., None], response_XT[..., :-1]], axis=-1
    )
    step_XT = jnp.abs(response_XT - before_XT)
    blocked_XT = jnp.any(
      response_XT[..., None] == wall_XJ[..., None, :], axis=-1
    )
    legal_XT = ((step_XT == 1) | (step_XT == _ROW)) & ~blocked_XT
    legal_XT &= _is_cell(response_XT, self.config.size)
    over_XT = at_XT >= moves_X[..., None]
    legal_X = jnp.all(legal_XT | over_XT, axis=-1)
    fetched_X = jnp.any(
      (before_XT == coin_X[..., None]) & (at_XT <= moves_X[..., None]),
      axis=-1,
    )
    end_X1 = jnp.minimum(moves_X, self.config.max_moves)[..., None]
    last_X = jnp.take_along_axis(before_XT, end_X1, axis=-1)[..., 0]
    return legal_X, fetched_X, last_X

  def _ways(self, wall_XJ, coin_X, goal_X, last_X) -> tuple[Array, ...]:
    """Moves from last to goal, from coin to goal and from last to coin.

    A row of the maze is an integer, a cell one of its bits; two floods grow by
    a move a round, from the goal and from the coin.
    """
    size = self.config.size

    def rows(cell_X):
      row_X, column_X = jnp.divmod(cell_X, _ROW)
      bit_X = 1 << column_X
      return jnp.stack(
        [jnp.where(row_X == i, bit_X, 0) for i in range(1, size + 1)], axis=-1
      )

    inside = (1 << (size + 1)) - 2  # The bits of columns 1..size.
    closed_XJ = jnp.bitwise_or.reduce(rows(wall_XJ), axis=-2)
    free_X1J = (inside & ~closed_XJ)[..., None, :]
    targets_X2J = jnp.stack([rows(last_X), rows(coin_X)], axis=-2)

    def grow(_, carry):
      flood_X2J, distance_X22 = carry
      hit_X22J = flood_X2J[..., :, None, :] & targets_X2J[..., None, :, :]
      distance_X22 += jnp.all(hit_X22J == 0, axis=-1)
      none_X21 = jnp.zeros_like(flood_X2J[..., :1])
      down_X2J = jnp.concatenate([none_X21, flood_X2J[..., :-1]], axis=-1)
      up_X2J = jnp.concatenate([flood_X2J[..., 1:], none_X21], axis=-1)
      sides_X2J = flood_X2J << 1 | flood_X2J >> 1
      flood_X2J |= (sides_X2J | down_X2J | up_X2J) & free_X1J
      return flood_X2J, distance_X22

    flood_X2J = jnp.stack([rows(goal_X), rows(coin_X)], axis=-2)
    zero_X22 = jnp.zeros((*last_X.shape, 2, 2), jnp.int32)
    _, distance_X22 = jax.lax.fori_loop(0, size**2, grow, (flood_X2J, zero_X22))
    return (
      distance_X22[..., 0, 0], distance_X22[..., 0, 1], distance_X22[..., 1, 0]
    )  # fmt: skip

  def describe(
    self,
    prompt_P: np.ndarray,
    response_T: np.ndarray,
    example: int | None = None,
  ) -> str:
    """Returns a line such as `13 22 = 11 31 33 | 21 31 32 33 | exact 1.000`."""
    del example
    score = jax.jit(self.score)(np.asarray(prompt_P), np.asarray(response_T))
    reward = float(score.reward_X)
    if score.correct_X:
      verdict = "exact"
    elif reward == 0.0:
      finished = symbols.EOS in np.asarray(response_T)
      verdict = "unparsable" if finished else "unfinished"
    elif reward == np.float32(self.config.illegal):
      verdict = "illegal"
    else:
      table = self.config.reward_by_distance()
      verdict = f"{np.argmin(np.abs(table - reward))} moves short"
    prompt, response = readable(self, prompt_P), readable(self, response_T)
    return f"{' '.join(prompt)} | {' '.join(response)} | {verdict} {reward:.3f}"


def _is_cell(token_X: Array, size: int) -> Array:
  row_X, column_X = token_X // _ROW, token_X % _ROW
  return (row_X >= 1) & (row_X <= size) & (column_X >= 1) & (column_X <= size)


def to_tokens(cells: np.ndarray, size: int) -> np.ndarray:
  """How cells are written."""
  row, column = np.divmod(np.asarray(cells, np.int32), size)
  return _ROW * (row + 1) + column + 1


def to_cells(tokens: np.ndarray, size: int) -> np.ndarray:
  """Which cells are meant; of tokens that are none, nothing."""
  row, column = np.divmod(np.asarray(tokens), _ROW)
  return (row - 1) * size + column - 1
