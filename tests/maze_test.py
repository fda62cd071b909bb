"""Tests of Maze: rewards, problems, random walks.

The oracle walks over pairs (row, column) in Python sets and a breadth-first
queue; it shares no code with the parser and the floods that it checks.
"""

import collections
import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from tsd_jax.models.symbols import EOS, PAD, SEPARATOR, SymbolTokenizer
from tsd_jax.tasks.maze import Maze, MazeConfig
from tsd_jax.tasks.task import Task

CONFIG = MazeConfig()
# A few hundred small problems.
SMALL = MazeConfig(
  size=4, walls=4, min_moves=4, max_moves=6, count=300, validation_size=40,
  test_size=30,
)  # fmt: skip
SCORE = {config: jax.jit(config.make().score) for config in (CONFIG, SMALL)}
encode = SymbolTokenizer().encode


@functools.cache
def problems_of(config):
  return config.problems()


def cell(token, size):
  """Returns (row, column), or None where a token is no cell."""
  row, column = divmod(int(token), 10)
  return (row, column) if {row, column} <= set(range(1, size + 1)) else None


def near(place, size):
  row, column = place
  around = [(row - 1, column), (row + 1, column)]
  around += [(row, column - 1), (row, column + 1)]
  return [p for p in around if {*p} <= set(range(1, size + 1))]


def way(walls, source, end, size):
  """Moves from one cell to another; without a way, as many as cells."""
  queue, moves = collections.deque([source]), {source: 0}
  while queue:
    place = queue.popleft()
    if place == end:
      return moves[place]
    for other in near(place, size):
      if other not in walls and other not in moves:
        moves[other] = moves[place] + 1
        queue.append(other)
  return size**2


def oracle(prompt, response, config):
  """Returns (reward, correct) as the rules say, one response at a time."""
  size = config.size
  *walls, equals, start, coin, goal = prompt
  walls, ends = ({cell(t, size) for t in part} for part in
                 (walls, (start, coin, goal)))  # fmt: skip
  if equals != SEPARATOR or None in walls | ends:
    return 0.0, False
  start, coin, goal = (cell(t, size) for t in (start, coin, goal))
  response = list(response)
  if EOS not in response:
    return 0.0, False
  end = response.index(EOS)
  path = [cell(t, size) for t in response[:end]]
  if not path or None in path or set(response[end + 1 :]) - {PAD}:
    return 0.0, False
  place, seen = start, {start}
  for step in path:
    if step not in near(place, size) or step in walls:
      return config.illegal, False
    place = step
    seen.add(step)
  left = way(walls, goal, place, size)
  if coin not in seen:
    left = way(walls, coin, place, size) + way(walls, goal, coin, size)
  if left == 0:
    return 1.0, True
  return config.legal + config.near * np.exp(-left / config.near_scale), False


def check(prompt_QP, response_QT, config):
  """Compares the rewards with the oracle's row by row."""
  score = SCORE[config](np.asarray(prompt_QP), np.asarray(response_QT))
  expected = [
    oracle(prompt, response, config)
    for prompt, response in zip(prompt_QP, response_QT, strict=True)
  ]
  reward, correct = map(np.array, zip(*expected, strict=True))
  np.testing.assert_allclose(score.reward_X, reward, rtol=0, atol=1e-6)
  np.testing.assert_array_equal(score.correct_X, correct)
  return np.asarray(score.reward_X)


# 11 12  ## 14      S: 11, coin: 14, goal: 42
# 21 22  ## 24      6 moves from start to coin round the wall, 5 more to goal.
# ## 32 33 34
# 41 42 43  ##
PROMPT = "13 23 31 44 = 11 14 42"
WIDE = dataclasses.replace(SMALL, max_moves=12)
SCORE[WIDE] = jax.jit(WIDE.make().score)
TO_COIN = "12 22 32 33 34 24 14"


def padded(text, config):
  tokens = encode(text)
  return tokens + [PAD] * (config.max_moves + 1 - len(tokens))


@pytest.mark.parametrize(
  "response, reward",
  [
    (f"{TO_COIN} 24 34 33 32 42 <eos>", 1.0),
    (f"{TO_COIN} 24 34 33 43 42 <eos>", 1.0),
    (f"{TO_COIN} 24 34 33 32 <eos>", 0.1 + 0.3 * np.exp(-1 / 5)),
    (f"{TO_COIN} <eos>", 0.1 + 0.3 * np.exp(-5 / 5)),
    ("12 22 32 42 <eos>", 0.1 + 0.3 * np.exp(-10 / 5)),  # Without the coin.
    ("21 11 21 11 12 <eos>", 0.1 + 0.3 * np.exp(-11 / 5)),  # Back and forth.
    ("12 13 14 <eos>", 0.05),  # Through a wall.
    ("12 22 33 <eos>", 0.05),  # Across a corner.
    ("12 32 <eos>", 0.05),  # Two at once.
    ("11 12 <eos>", 0.05),  # Not a move.
    ("12 22 32 42 52 <eos>", 0.0),  # Out of the maze.
    ("12 11 10 <eos>", 0.0),
    ("12 22 + <eos>", 0.0),
    ("<eos>", 0.0),
    ("12 22", 0.0),  # Unfinished.
    ("12 22 <eos> 32", 0.0),
    ("12 22 <eos> <eos>", 0.0),
    ("12 <pad> 22 <eos>", 0.0),
  ],
)
def test_rewards_by_example(response, reward):
  rows = [encode(PROMPT)], [padded(response, WIDE)]
  np.testing.assert_allclose(check(*rows, WIDE), [reward], atol=1e-6)


@pytest.mark.parametrize("config", [CONFIG, SMALL], ids=["default", "small"])
def test_random_walks_score_as_the_oracle_says(config):
  rng = np.random.default_rng(0)
  prompt_QP, response_QT = config.warm_start(rng, 300, 0.5)
  rewards = check(prompt_QP, response_QT, config)
  assert np.sum(rewards == 1) > 50 and np.all(rewards > config.illegal)
  # One token changed: mostly illegal or unparsable, sometimes still legal.
  changed_NT = response_QT.copy()
  at_N = rng.integers(0, response_QT.shape[1], 300)
  other_N = rng.choice(np.r_[11:67, SEPARATOR : EOS + 1], 300)
  changed_NT[np.arange(300), at_N] = other_N
  rewards = check(prompt_QP, changed_NT, config)
  assert {0.0, np.float32(config.illegal), 1.0} <= set(rewards)


@hypothesis.settings(deadline=None)
@hypothesis.given(st.data())
def test_any_tokens_score_as_the_oracle_says(data):
  """Whatever a prompt and a response hold, walls round the goal included."""
  tokens = st.one_of(
    st.integers(10, 56), st.sampled_from([EOS, PAD]), st.integers(-9, 300)
  )
  cells = st.builds(lambda r, c: 10 * r + c, *[st.integers(1, 4)] * 2)
  prompt = data.draw(
    st.one_of(
      st.tuples(*[cells] * 4, st.just(SEPARATOR), *[cells] * 3),
      st.tuples(*[tokens] * 8),
    )
  )
  length = data.draw(st.integers(0, 6))
  walk, place = [], cell(prompt[-3], 4)
  while place and len(walk) < length:
    place = data.draw(st.sampled_from(near(place, 4)))
    walk.append(10 * place[0] + place[1])
  whole = [*walk, EOS, *[PAD] * (6 - len(walk))]
  free = st.lists(tokens, min_size=7, max_size=7)
  response = data.draw(st.one_of(st.just(whole), free))
  check([prompt], [response], SMALL)


def test_levels_are_monotone():
  """Unparsable < illegal < legal-far <= ... <= legal-near < exact."""
  table = CONFIG.reward_by_distance()
  assert len(table) == CONFIG.max_distance + 1
  assert 0 < np.float32(CONFIG.illegal) < table[-1]
  assert np.all(np.diff(table) <= 0) and table[0] == 1.0 > table[1]


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(st.integers(0, 2**32 - 1))
def test_every_move_along_a_shortest_way_is_worth_more(seed):
  """And so is what the tree's champions are chosen by."""
  rng = np.random.default_rng(seed)
  problems = problems_of(SMALL)
  prompt_P, solution_T, _ = SMALL.pose(problems[seed % len(problems)], rng)
  moves = list(solution_T).index(EOS)
  prefixes = np.stack([solution_T] * SMALL.max_moves)  # One compiled shape.
  for i in range(1, moves):
    prefixes[i - 1, i:] = [EOS, *[PAD] * (SMALL.max_moves - i)]
  rewards = check([prompt_P] * SMALL.max_moves, prefixes, SMALL)[:moves]
  assert np.all(np.diff(rewards) > 0) and rewards[-1] == 1.0


def test_jit_vmap_and_leading_axes_agree():
  rng = np.random.default_rng(0)
  prompt_QP, response_QT = CONFIG.warm_start(rng, 24, 0.5)
  score = jax.jit(Maze().score)
  with jax.numpy_rank_promotion("raise"):
    plain = score(prompt_QP, response_QT)
    others = [
      jax.jit(jax.vmap(score))(prompt_QP, response_QT),
      jax.tree.map(
        lambda x: x.reshape(24),
        score(prompt_QP.reshape(4, 6, -1), response_QT.reshape(4, 6, -1)),
      ),
    ]
  for other in others:
    jax.tree.map(np.testing.assert_array_equal, plain, other)
  assert plain.reward_X.dtype == np.float32 and plain.correct_X.dtype == bool


def all_forms(prompt, config):
  """All 16 ways to write a problem, by matrices instead of indices."""
  *walls, _, start, coin, goal = (cell(t, config.size) for t in prompt)
  n = config.size
  for flip in (False, True):
    for k in range(4):

      def turn(place, flip=flip, k=k):
        r, c = place[::-1] if flip else place
        for _ in range(k):
          r, c = c, n + 1 - r
        return 10 * r + c

      ends = [turn(p) for p in (start, coin, goal)]
      for order in (ends, ends[::-1]):
        yield [*map(turn, filter(None, walls)), SEPARATOR, *order]


def test_all_forms_have_one_canonical_form():
  """Turned, mirrored, reversed; walls in any order; and no other problem."""
  rng = np.random.default_rng(0)
  forms = set()
  problems = problems_of(CONFIG)[:50]
  for problem in problems:
    prompt_P, *_ = CONFIG.pose(problem, rng)
    written = list(all_forms(prompt_P, CONFIG))
    assert len(written) == 16
    assert {CONFIG.canonical(np.array(p)) for p in written} == {problem}
    moved = np.array(written[0])
    moved[-2], moved[-1] = moved[-1], moved[-2]  # Coin and goal swapped.
    forms.add(CONFIG.canonical(moved))
  assert not forms & set(problems)


def test_the_shortest_way_of_a_problem_is_in_its_range():
  lengths = collections.Counter()
  rng = np.random.default_rng(1)
  for problem in problems_of(CONFIG)[:200]:
    prompt_P, solution_T, _ = CONFIG.pose(problem, rng)
    *walls, _, start, coin, goal = (cell(t, 6) for t in prompt_P)
    walls = set(walls)
    assert len(walls) == CONFIG.walls and not walls & {start, coin, goal}
    moves = way(walls, start, coin, 6) + way(walls, coin, goal, 6)
    assert list(solution_T).index(EOS) == moves
    lengths[moves] += 1
  assert set(lengths) == set(range(CONFIG.min_moves, CONFIG.max_moves + 1))


def test_default_problems_are_many_and_always_the_same():
  problems = problems_of(CONFIG)
  assert len(set(problems)) == len(problems) == 24_000
  held_out = CONFIG.validation_size + CONFIG.test_size
  assert len(problems) - held_out >= 20_000
  assert dataclasses.replace(CONFIG, count=100).problems() == problems[:100]
  assert dataclasses.replace(CONFIG, seed=1).problems()[:100] != problems[:100]


def test_walks_turn_back_only_in_dead_ends():
  rng = np.random.default_rng(0)
  prompt_QP, response_QT = CONFIG.warm_start(rng, 2_000, 0.0)
  turned = 0
  for prompt, response in zip(prompt_QP, response_QT, strict=True):
    walls = {cell(t, 6) for t in prompt[:8]}
    path = [
      cell(t, 6) for t in (prompt[-3], *response[: list(response).index(EOS)])
    ]
    for before, place, after in zip(path, path[1:], path[2:], strict=False):
      if before == after:
        turned += 1
        assert set(near(place, 6)) - walls == {before}
  assert turned > 20


@pytest.mark.parametrize(
  "settings, message",
  [
    (dict(size=7), r"MazeConfig.size=7: use an integer in 3\.\.6"),
    (dict(walls=34), r"MazeConfig.walls=34: use an integer in 1\.\.33"),
    (dict(walls=8.0), "MazeConfig.walls=8.0"),
    (dict(min_moves=1), "MazeConfig.min_moves=1: use an integer from 2 on"),
    (dict(max_moves=7), "MazeConfig.max_moves=7: .* from min_moves=8 on"),
    (dict(count=0), "MazeConfig.count=0"),
    (dict(illegal=0.2), "MazeConfig.legal=0.1: .* above illegal=0.2"),
    (dict(seed=-1), "MazeConfig.seed=-1"),
  ],
)
def test_impossible_settings_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    MazeConfig(**settings)


def test_too_many_problems_are_refused():
  config = MazeConfig(size=3, walls=1, min_moves=2, max_moves=4, count=10**5)
  with pytest.raises(ValueError, match="count=100000: only .* ask for fewer"):
    config.problems()


def test_describe():
  """A person reads walls, start, coin and goal, the way and the verdict."""
  task = WIDE.make()
  assert isinstance(task, Task)
  for response, end in [
    (f"{TO_COIN} 24 34 33 32 42 <eos>", "exact 1.000"),
    (f"{TO_COIN} <eos>", "5 moves short 0.210"),
    ("12 13 <eos>", "illegal 0.050"),
    ("+ <eos>", "unparsable 0.000"),
    ("12 22", "unfinished 0.000"),
  ]:
    line = task.describe(
      np.array(encode(PROMPT)), np.array(padded(response, WIDE))
    )
    assert line == f"{PROMPT} | {response} | {end}"


def test_excluding_everything_is_refused():
  tiny = MazeConfig(size=3, walls=1, min_moves=2, max_moves=4)
  prompt_QP, _ = tiny.warm_start(np.random.default_rng(0), 20_000, 0.5)
  forms = {tiny.canonical(prompt_P) for prompt_P in prompt_QP}
  each = dataclasses.replace(tiny, split_by="problem")
  for config in (tiny, each):
    everything = set(map(config.group, forms))
    with pytest.raises(ValueError, match="0 of 5 examples .* exclude fewer"):
      config.warm_start(np.random.default_rng(1), 5, 0.5, everything)
