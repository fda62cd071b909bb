"""States against every way to go on, and their trees against a heap."""

import collections
import dataclasses
import functools
import heapq
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.flat_search import flat_search
from tests.search_test import (
  EOS,
  PAD,
  PROMPTS,
  B,
  Hash,
  T,
  model,
  next_log_prob,
)
from tsd_jax.base import hashing
from tsd_jax.models import symbols
from tsd_jax.rewards.reward import Score
from tsd_jax.search import search as search_lib
from tsd_jax.tasks.calculator import CalculatorConfig
from tsd_jax.tasks.countdown import CountdownConfig
from tsd_jax.tasks.maze import MazeConfig
from tsd_jax.tasks.task import Rewarded, Shaped, as_prompts

encode = symbols.SymbolTokenizer().encode
SMALL = dict(max_number=4, max_target=20)
# A task, a prompt, and what may stand in a response.
GAMES = {
  "three numbers": (CountdownConfig(**SMALL), "2 2 4 = 6", "1 2 4 6 8 + - * /"),
  "four numbers": (
    CountdownConfig(numbers=4, **SMALL), "1 2 2 3 = 6", "1 2 3 4 6 + - * /",
  ),
  "calculator": (CalculatorConfig(**SMALL), "2 2 4 = 6", "2 4 6 8 + - * / ="),
  "maze": (
    MazeConfig(size=3, walls=1, min_moves=2, max_moves=6, count=5),
    "33 = 11 12 22", "11 12 13 21 22 23 31 32 33",
  ),
}  # fmt: skip


def random_responses(config, prompt_P, letters, count):
  """Legal answers to one prompt, a third of them with a token changed."""
  rng, task = np.random.default_rng(0), config.make()
  # The order of given numbers does not matter; of a maze, the last two cells.
  given = (lambda p: p) if task.name == "maze" else np.sort
  found = []
  while len(found) < count:
    prompt_QP, response_QT = config.warm_start(rng, 20_000, 0.0)
    same_NP = given(prompt_QP[:, :-2]) == given(prompt_P[:-2])
    found += response_QT[same_NP.all(axis=1)].tolist()
  found = np.array(found[:count])
  change_N = rng.random(count) < 1 / 3
  at_N = rng.integers(task.response_length, size=count)
  other_N = rng.choice(encode(letters), size=count)
  rows = np.arange(count)
  found[rows, at_N] = np.where(change_N, other_N, found[rows, at_N])
  return found


def fill(tokens, length):
  return [*tokens, *[symbols.PAD] * (length - len(tokens))]


@pytest.mark.parametrize("game", GAMES)
def test_what_has_come_to_the_same_is_judged_alike_ever_after(game):
  config, prompt, letters = GAMES[game]
  task, prompt_P = config.make(), np.array(encode(prompt))
  response_QT = random_responses(config, prompt_P, letters, 300)
  # Whole ones too, whose last token ends them or does not.
  length_M = np.tile(np.arange(1, task.response_length + 1), len(response_QT))
  whole_MT = np.repeat(response_QT, task.response_length, axis=0)
  begun_MT = np.array(
    [
      fill(r[:n], task.response_length)
      for r, n in zip(whole_MT, length_M, strict=True)
    ]
  )
  prompt_MP = np.broadcast_to(prompt_P, (len(length_M), len(prompt_P)))
  state_key_QZ = np.asarray(
    jax.jit(task.state_key)(prompt_MP, begun_MT, length_M)
  )
  groups = collections.defaultdict(dict)
  for i, key in enumerate(map(tuple, state_key_QZ)):
    groups[key].setdefault(tuple(begun_MT[i]), i)
  # What follows the longer of two responses, after both.
  rng, ways_M2T = np.random.default_rng(1), []
  merged = [list(m.values()) for m in groups.values() if len(m) > 1]
  for members in merged:
    for _ in range(min(len(members) - 1, 3) * 3):
      pair = rng.choice(members, 2, replace=False)
      length = max(length_M[pair])
      rest = whole_MT[max(pair, key=lambda i: length_M[i])][length:]
      if rng.random() < 0.3:
        rest = rng.permutation(rest)
      ways_M2T.append(
        [
          fill([*whole_MT[i][: length_M[i]], *rest], task.response_length)
          for i in pair
        ]
      )
  assert len(merged) > 10 and len(ways_M2T) > 100
  ways_M2T = np.array(ways_M2T)
  prompt_M2P = np.broadcast_to(prompt_P, (*ways_M2T.shape[:2], len(prompt_P)))
  score = jax.jit(task.score)(prompt_M2P, ways_M2T)
  for judged_M2 in jax.tree.leaves(score):
    np.testing.assert_array_equal(judged_M2[:, 0], judged_M2[:, 1])
  assert 0 < np.mean(score.correct_X) < 1


def test_the_numbers_left_are_all_that_counts():
  """Prefixes of whole operations, grouped by a list of the numbers left."""
  config = CountdownConfig(numbers=4, **SMALL)
  task, prompt = config.make(), encode("1 2 2 3 = 6")
  signs = {s: encode(s)[0] for s in "+-*"}

  def ways(numbers, tokens, steps):
    yield tuple(sorted(numbers)), tokens
    if steps == 0:
      return
    for (i, a), (j, b) in itertools.permutations(enumerate(numbers), 2):
      rest = [x for k, x in enumerate(numbers) if k not in (i, j)]
      for sign, r in (("+", a + b), ("-", a - b), ("*", a * b)):
        if 1 <= r <= config.max_value:
          step = [a, signs[sign], b, r]
          yield from ways([*rest, r], [*tokens, *step], steps - 1)

  found = list(ways([1, 2, 2, 3], [], 2))
  state_key_QZ = task.state_key(
    np.tile(prompt, (len(found), 1)),
    np.array([fill(t, task.response_length) for _, t in found]),
    np.array([len(t) for _, t in found]),
  )
  hash_N = np.asarray(hashing.hashed(state_key_QZ)).tolist()
  state_keys = list(map(tuple, np.asarray(state_key_QZ)))
  left = [numbers for numbers, _ in found]
  assert len(left) > 10 * len(set(left))
  for keys in (state_keys, hash_N):
    assert (
      len(set(keys)) == len(set(left)) == len(set(zip(keys, left, strict=True)))
    )


def test_a_reward_of_ones_own_merges_nothing():
  def length(prompts, tokens_BGT, score):
    del prompts
    longest = tokens_BGT.shape[-1]
    return score._replace(reward_X=score.reward_X / longest)

  task = CountdownConfig().make()
  assert task.state_key is not None
  shaped = Rewarded(task, Shaped(task.reward, length))
  assert shaped.state_key is None


@dataclasses.dataclass(frozen=True)
class Bag(Hash):
  """A reward, and a state_key, that do not depend on the order of tokens."""

  name = "bag"

  def score(self, prompt_XP, response_XT):
    finished_X = jnp.any(response_XT == EOS, axis=-1)
    total_X = jnp.sum(jnp.where(response_XT == PAD, 0, response_XT), axis=-1)
    reward_X = jnp.where(finished_X, (total_X * 37 % 97) / 96.0, 0.0)
    return Score(reward_X, finished_X & (reward_X > 1 / 3))

  def state_key(self, prompt_XP, response_XT, length_X):
    del prompt_XP, length_X
    return jnp.sort(response_XT, axis=-1)


@dataclasses.dataclass(frozen=True)
class Last(Bag):
  """What counts is the last token alone: longer ways there are of no use."""

  name = "last"

  def state_key(self, prompt_XP, response_XT, length_X):
    del prompt_XP
    at_X1 = jnp.maximum(length_X - 1, 0)[..., None]
    last_X1 = jnp.take_along_axis(response_XT, at_X1, axis=-1)
    return jnp.where(length_X[..., None] > 0, last_X1, -1)


def bag(path):
  return tuple(sorted(t for t in path if t != PAD))


def last(path):
  return path[-1:]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _search(prompt_BP, task, config):
  prompts = as_prompts(task, prompt_BP)
  return search_lib.search(model(), task, prompts, jax.random.key(0), config)


@pytest.mark.parametrize("task, state_key", [(Bag(), bag), (Last(), last)])
def test_a_state_is_looked_at_once(task, state_key):
  config = flat_search(
    num_simulations=40,
    num_candidates=5,
    stop_when_solved=False,
    transpositions=True,
  )
  result = jax.device_get(_search(PROMPTS, task, config))
  nodes, skipped = result.tree.embeddings, 0
  for row in range(B):
    ticket = itertools.count()
    heap, expected, seen = [], [], {state_key(()): 0}

    def push(path, discrepancy, heap=heap, ticket=ticket, row=row):
      log_prob, _ = next_log_prob((*map(int, PROMPTS[row]), *path))
      for token in np.argsort(-log_prob, kind="stable")[:5]:
        if token == EOS:
          continue
        step = log_prob[token] - log_prob.max()
        key = discrepancy + step + config.rule.epsilon * len(path)
        entry = (*path, int(token)), discrepancy + step
        heapq.heappush(heap, (-key, next(ticket), entry))

    push((), 0.0)
    while heap and len(expected) < 40:
      path, discrepancy = heapq.heappop(heap)[2]
      if seen.get(state_key(path), T) <= len(path):
        skipped += 1
        continue
      seen[state_key(path)] = len(path)
      expected.append(path)
      if len(path) < T - 1:
        push(path, discrepancy)
    got = [
      tuple(int(t) for t in nodes.path_tokens[row, n][: nodes.depth[row, n]])
      for n in range(1, 41)
      if result.tree.node_visits[row, n] > 0
    ]
    assert len(got) > 4 and got == expected
  assert skipped > B


@pytest.mark.parametrize(
  "task, settings",
  [
    (Bag(), {}),
    (Bag(), dict(rule="puct", leaf="rollout")),
    (Hash(), dict(transpositions=True)),
  ],
)
def test_nothing_is_merged_unasked(task, settings):
  config = flat_search(num_simulations=4, **settings)
  nodes = jax.eval_shape(
    lambda p: _search(p, task, config).tree.embeddings, PROMPTS
  )
  assert nodes.state_key is None and nodes.state_key_A is None
