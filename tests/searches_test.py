"""Searches over a made-up policy against enumeration of its whole tree."""

import functools
import itertools
import math
import zlib

import numpy as np
import pytest
import scipy.stats

from experiments.benchmarks import searches
from experiments.benchmarks.searches import Ask, Shape

V, EOS = 4, 3
SHAPE = Shape(length=4, eos_id=EOS)
SMALL = Shape(length=2, eos_id=2)  # 7 leaves, 3 of them answers.


@functools.cache
def row(path, size=V, spread=1.5):
  """Log-probabilities after a path, as unlike as those of a language model."""
  rng = np.random.default_rng(zlib.crc32(bytes(path)) + size)
  logits_V = spread * rng.normal(size=size)
  return (logits_V - np.log(np.exp(logits_V).sum())).astype(np.float32)


small_row = functools.partial(row, size=3, spread=0.4)


def every_path(shape, size):
  """All paths but the empty one, by enumeration."""
  found = []
  for depth in range(1, shape.length + 1):
    for path in itertools.product(range(size), repeat=depth):
      if shape.eos_id not in path[:-1]:
        found.append(path)
  return found


PATHS = every_path(SHAPE, V)
INNER = [p for p in PATHS if not SHAPE.over(p)]
ANSWERS = [p for p in PATHS if SHAPE.finished(p)]


def moves(path):
  """(log-probability, rank, log(p / p_max)) of every move of a path."""
  for i, token in enumerate(path):
    row_V = row(path[:i])
    rank = int(np.flatnonzero(np.argsort(-row_V, kind="stable") == token)[0])
    yield float(row_V[token]), rank, float(row_V[token] - row_V.max())


def total(path, what):
  return sum(move[what] for move in moves(path))


def trace(search, rows=row):
  """Everything that a search asks for and finds, in order."""
  asked, found = [], []
  ask = next(search)
  try:
    while True:
      found += ask.answers
      asked += ask.paths
      ask = search.send([rows(path) for path in ask.paths])
  except StopIteration:
    return asked, found


EXHAUSTIVE = {
  "levin": lambda: searches.levin(SHAPE),
  "best_first": lambda: searches.discrepancy_best_first(SHAPE),
  "value": lambda: searches.discrepancy_best_first(SHAPE, lambda p: 0.5),
  "rank": lambda: searches.limited_discrepancy(SHAPE),
  "ratio": lambda: searches.limited_discrepancy(SHAPE, by="ratio", step=0.7),
  "without": lambda: searches.without_replacement(
    SHAPE, np.random.default_rng(0)
  ),
  "beam": lambda: searches.beam(SHAPE, len(PATHS)),
  "stochastic": lambda: searches.beam(
    SHAPE, len(PATHS), rng=np.random.default_rng(0)
  ),
}


@pytest.mark.parametrize("name", EXHAUSTIVE)
def test_an_endless_search_finds_every_answer_and_pays_for_nothing_twice(name):
  asked, found = trace(EXHAUSTIVE[name]())
  assert sorted(found) == sorted(ANSWERS)
  assert sorted(asked) == sorted([(), *INNER])


def test_ab_mcts_widens_where_rewards_are_high_and_pays_for_nothing_twice():
  """On one answer of many that is worth something."""
  np.random.seed(0)
  best = max(ANSWERS, key=len)

  def score(path):
    same = [a == b for a, b in zip(path, best, strict=False)]
    return sum(itertools.takewhile(bool, same)) / len(best)

  def search(score):
    rng = np.random.default_rng(0)
    return searches.ab_mcts(SHAPE, rng, score, step=1, patience=20)

  asked, found = trace(search(score))
  assert len(asked) == len(set(asked)) and set(asked) <= {(), *INNER}
  assert set(found) <= set(ANSWERS)
  near = np.mean([score(path) for path in found])
  _, blind = trace(search(lambda path: 0.5))
  assert near > np.mean([score(path) for path in blind])


def test_levin_takes_the_least_depth_over_probability():
  def cost(path):
    return len(path) / math.exp(total(path, 0))

  asked, found = trace(searches.levin(SHAPE))
  assert asked == [(), *sorted(INNER, key=cost)]
  assert found == sorted(ANSWERS, key=cost)


def test_discrepancy_best_first_takes_the_least_surprising_path():
  """Without a bonus a level the key never rises on a way down: a sort."""

  def cost(path):
    # A greedy move costs nothing: the shorter path of equal ones comes first.
    return -round(total(path, 2), 5), len(path)

  asked, found = trace(searches.discrepancy_best_first(SHAPE, epsilon=0.0))
  assert asked == [(), *sorted(INNER, key=cost)]
  assert found == sorted(ANSWERS, key=cost)


def test_best_first_weighs_value_and_depth_as_stated():
  """Against the largest key over the whole open list, step by step."""

  def value(path):
    return (zlib.crc32(bytes(path)) % 97 + 1) / 98

  beta, epsilon = 0.8, 0.3
  search = searches.discrepancy_best_first(
    SHAPE, value, beta=beta, epsilon=epsilon
  )
  asked, found = trace(search)
  nodes, wanted, answers, tried = [()], [()], [], set()
  while True:
    keys = {
      (node, token): total((*node, token), 2)
      + beta * math.log(value(node))
      + epsilon * len(node)
      for node in nodes
      for token in range(V)
      if (*node, token) not in tried
    }
    if not keys:
      break
    node, token = max(keys, key=keys.get)
    path = (*node, token)
    tried.add(path)
    if SHAPE.finished(path):
      answers.append(path)
    elif not SHAPE.over(path):
      nodes.append(path)
      wanted.append(path)
  assert asked == wanted
  assert found == answers


@pytest.mark.parametrize("by, step", [("rank", 1.0), ("ratio", 0.7)])
def test_limited_discrepancy_walks_band_by_band_depth_first(by, step):
  def order(path):
    if by == "rank":
      band = total(path, 1)
    else:
      band = max(math.ceil((-total(path, 2) - 1e-9) / step), 0)
    return band, tuple(rank for _, rank, _ in moves(path))

  search = searches.limited_discrepancy(SHAPE, by=by, step=step)
  asked, found = trace(search)
  assert asked == [(), *sorted(INNER, key=order)]
  assert found == sorted(ANSWERS, key=order)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_a_beam_keeps_the_likeliest_of_all_that_it_can_reach(width):
  asked, found = trace(searches.beam(SHAPE, width))
  kept, wanted = [()], []
  while open_ := [p for p in kept if not SHAPE.over(p)]:
    wanted += sorted(open_)
    reach = [p for p in PATHS if p[:-1] in open_]
    reach += [p for p in kept if p not in open_]
    kept = sorted(reach, key=lambda p: -total(p, 0))[:width]
  assert sorted(asked) == sorted(wanted)
  # A finished answer is reported even if better ones push it out later.
  assert set(found) >= {p for p in kept if SHAPE.finished(p)}
  assert len(found) == len(set(found)) <= len(ANSWERS)


def leaf_probabilities(temperature):
  """Of the 7 leaves of the small tree, each move at a temperature."""
  found = {}
  for path in every_path(SMALL, 3):
    if SMALL.over(path):
      p = 1.0
      for i, token in enumerate(path):
        p_V = np.exp(small_row(path[:i]).astype(float) / temperature)
        p *= p_V[token] / p_V.sum()
      found[path] = p
  assert len(found) == 7 and sum(found.values()) == pytest.approx(1)
  return found


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampling_without_replacement_has_the_right_frequencies(temperature):
  p = leaf_probabilities(temperature)
  answers = [path for path in p if SMALL.finished(path)]
  share = {a: p[a] / sum(p[b] for b in answers) for a in answers}
  orders = {
    (a, b, c): share[a] * share[b] / (1 - share[a])
    for a, b, c in itertools.permutations(answers)
  }
  draws = 3000
  counts = dict.fromkeys(orders, 0)
  for seed in range(draws):
    search = searches.without_replacement(
      SMALL, np.random.default_rng(seed), temperature=temperature
    )
    counts[tuple(trace(search, small_row)[1])] += 1
  expected = [draws * orders[order] for order in orders]
  assert min(expected) > 5
  assert scipy.stats.chisquare(list(counts.values()), expected).pvalue > 1e-3


@pytest.mark.parametrize("width", [1, 2])
def test_a_stochastic_beam_is_a_sample_without_replacement(width):
  """On a tree whose answers are all of two tokens, at a temperature."""
  shape, temperature = Shape(length=2, eos_id=EOS), 0.8

  def late(path):
    row_V = row(path).copy()
    row_V[EOS] = row_V[EOS] if path else -1e9
    return row_V

  p = {}
  for path in itertools.product(range(EOS), range(V)):
    first_V, second_V = (
      np.exp(late(x).astype(float) / temperature) for x in ((), path[:1])
    )
    p[path] = first_V[path[0]] / first_V.sum()
    p[path] *= second_V[path[1]] / second_V.sum()
  chance = {}
  for drawn in itertools.permutations(p, width):
    seen = frozenset(filter(shape.finished, drawn))
    left, probability = 1.0, 1.0
    for path in drawn:
      probability *= p[path] / left
      left -= p[path]
    chance[seen] = chance.get(seen, 0) + probability
  draws = 3000
  counts = dict.fromkeys(chance, 0)
  for seed in range(draws):
    rng = np.random.default_rng(seed)
    search = searches.beam(shape, width, rng=rng, temperature=temperature)
    counts[frozenset(trace(search, late)[1])] += 1
  # Rare outcomes are put together, as the test asks for.
  rare = [x for x in chance if draws * chance[x] < 5]
  for table in (counts, chance):
    table[None] = sum(table.pop(x) for x in rare)
  if not chance[None]:
    del counts[None], chance[None]
  expected = [draws * chance[x] for x in chance]
  assert len(expected) > 2
  assert scipy.stats.chisquare(list(counts.values()), expected).pvalue > 1e-3


def test_run_counts_forwards_up_to_the_first_correct_answer():
  right = {(0, EOS), (1, EOS)}

  def scripted(*asks):
    for ask in asks:
      rows = yield ask
      assert len(rows) == len(ask.paths)

  made = [
    # The prompt is free, an answer is checked before what is asked with it.
    scripted(
      Ask([()]), Ask([(0,)]), Ask([(1,), (2,)], [(0, EOS)]), Ask([(2, 2)])
    ),
    scripted(Ask([()]), Ask([(0,), (1,)], [(2, EOS)]), Ask((), [(1, EOS)])),
    scripted(Ask([()]), Ask([(0,)] * 4), Ask((), [(1, EOS)])),
    scripted(Ask([()]), Ask([(0,)])),
  ]
  batches = []

  def log_probs(pairs):
    batches.append(pairs)
    return [row(path) for _, path in pairs]

  found = searches.run(
    [(n % 2, search) for n, search in enumerate(made)],
    log_probs,
    lambda pairs: [answer in right for _, answer in pairs],
    budget=3,
  )
  np.testing.assert_array_equal(found, [1, 2, np.inf, np.inf])
  assert batches[0] == [(0, ()), (1, ()), (0, ()), (1, ())]
