"""Observations of several tokens, against a walk through lists in Python."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import search_test
from tests.flat_search import flat_search
from tests.observe_test import log_probs
from tests.search_test import EOS, PAD, PROMPTS, B, next_log_prob, tried
from tests.steps_test import Steps, T
from tsd_jax.base.types import LOG_ZERO, UNVISITED
from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.run import evaluation
from tsd_jax.search import kv_pool
from tsd_jax.search import search as search_lib
from tsd_jax.tasks.task import as_prompts, environment_tokens

CALL, BYE, STOP, LONGEST = 3, 7, 5, 3


@dataclasses.dataclass(frozen=True)
class Tool(Steps):
  """Two tokens are answered, with two or three tokens each."""

  step_end_ids, observation_length = (CALL, STOP), LONGEST

  def observe(self, prompts, response_BT, length_B):
    """As `environment` says; behind an observation stands what ends all."""
    at_B1 = jnp.maximum(length_B - 1, 0)[:, None]
    last_B = jnp.take_along_axis(response_BT, at_B1, axis=1)[:, 0]
    before_BT = jnp.arange(T)[None] < length_B[:, None]
    sum_B = jnp.sum(prompts.tokens_BP, axis=1)
    sum_B += jnp.sum(jnp.where(before_BT, response_BT, 0), axis=1)
    odd_B = sum_B % 2 == 1
    answers = [
      ((last_B == CALL) & ~odd_B, (CALL, STOP, EOS), 2),
      ((last_B == CALL) & odd_B, (STOP, sum_B % 3, BYE), 3),
      ((last_B == BYE) & ~odd_B, (6, EOS, EOS), 2),
      ((last_B == BYE) & odd_B, (EOS, 4, 4), 3),
    ]
    token_BO = jnp.full((len(length_B), LONGEST), EOS)
    count_B = jnp.zeros_like(length_B)
    for here_B, tokens, count in answers:
      written_BO = jnp.stack([jnp.full_like(sum_B, t) for t in tokens], axis=1)
      token_BO = jnp.where(here_B[:, None], written_BO, token_BO)
      count_B = jnp.where(here_B, count, count_B)
    return token_BO, count_B


TASK = Tool()
ASKED = as_prompts(TASK, PROMPTS)


def environment(row, tokens):
  """What is written after some tokens of a response, up to an end token.

  Of what it writes itself, only the last token is answered again.
  """
  total = int(PROMPTS[row].sum()) + sum(tokens)
  match tokens[-1:], total % 2:
    case [3], 0:
      return [CALL, STOP]
    case [3], 1:
      return [STOP, total % 3, BYE]
    case [7], 0:
      return [6, EOS]
    case [7], 1:
      return [EOS]
  return []


def walk(row, tokens, stop_at_end=True):
  """Goes through tokens of a response, piece by piece.

  Returns:
    The pieces: what the model chose, token by token, and what the environment
    wrote, observation by observation; as (first token, tokens, whose). Up to
    the end token, or before an observation that has no room.
  """
  pieces, t = [], 0
  while t < len(tokens) and EOS not in tokens[:t]:
    written = environment(row, tokens[:t])
    if written and stop_at_end and t + len(written) > T:
      break
    piece = tokens[t : t + max(1, len(written))]
    pieces.append((t, piece, not written))
    t += len(piece)
  return pieces


def owned(pieces):
  """Which tokens of a walk the model chose."""
  return [own for _, piece, own in pieces for _ in piece]


SAMPLES = RolloutConfig(prompts=B, samples=16, forks=8, temperature=1.5)


@functools.cache
def sampled():
  @jax.jit
  def draw(prompts):
    return SAMPLES(search_test.model(), TASK, prompts, jax.random.key(1))[0]

  return jax.device_get(draw(ASKED))


def test_samples_hold_whole_observations_and_the_models_choices():
  r, seen, stopped = sampled(), set(), 0
  for b, g in np.ndindex(B, SAMPLES.group):
    row, shared = r.tokens_BGT[b, g].tolist(), int(r.fork_BG[b, g])
    pieces = walk(b, row)
    for t, piece, own in pieces:
      if not own:
        assert piece == environment(b, row[:t])
        seen.add((row[t - 1], len(piece)))
    own = owned(pieces)
    n = len(own)
    stopped += n < T and row[n - 1] != EOS
    assert row[n:] == [PAD] * (T - n)
    at_T = np.arange(T)
    np.testing.assert_array_equal(
      r.mask_BGT[b, g], (at_T >= shared) & (at_T < n)
    )
    np.testing.assert_array_equal(r.environment_BGT[b, g, :n], np.invert(own))
    counts = np.flatnonzero(own)[np.flatnonzero(own) >= shared]
    expected = np.zeros((2, T))
    expected[:, counts] = log_probs(b, row[:n], 1.5)[:, counts]
    np.testing.assert_allclose(r.log_prob_BGT[b, g], expected[0], atol=1e-4)
    np.testing.assert_allclose(r.entropy_BGT[b, g], expected[1], atol=1e-4)
  # Every observation that there is; and rows that had no room for theirs.
  assert seen == {(CALL, 2), (CALL, 3), (BYE, 2), (BYE, 1)} and stopped > 3


def test_rows_fork_where_the_model_was_least_certain_of_a_choice():
  r, forked = sampled(), 0
  for b, g in np.ndindex(B, SAMPLES.group):
    if g < SAMPLES.samples:
      assert r.fork_BG[b, g] == 0
      continue
    parent, shared = r.parent_BG[b, g], r.fork_BG[b, g]
    row = r.tokens_BGT[b, parent].tolist()
    own = owned(walk(b, row))
    choices = [t for t in range(1, len(own)) if own[t]]
    entropy_T = log_probs(b, row[: len(own)], 1.5)[1]
    assert entropy_T[shared] == pytest.approx(
      max(entropy_T[t] for t in choices), abs=1e-4
    )
    assert own[shared]
    assert r.tokens_BGT[b, g, :shared].tolist() == row[:shared]
    forked += shared < len(own) and not all(own[:shared])
  assert forked > 3  # After observations, too.


def test_given_responses_are_told_apart():
  """Whoever wrote them: of any tokens those are the environment's to say."""
  rng = np.random.default_rng(2)
  tokens_BGT = rng.choice([CALL, BYE, STOP, 0, 1, 6, EOS], (B, 40, T))
  again_BGT = jax.device_get(
    jax.jit(functools.partial(environment_tokens, TASK))(ASKED, tokens_BGT)
  )
  cut = 0
  for b, g in np.ndindex(B, 40):
    own = owned(walk(b, tokens_BGT[b, g].tolist(), stop_at_end=False))
    np.testing.assert_array_equal(again_BGT[b, g, : len(own)], np.invert(own))
    cut += sum(own) < len(own)
  assert cut > 5 * B
  r = sampled()
  sampled_BGT = environment_tokens(TASK, ASKED, jnp.asarray(r.tokens_BGT))
  np.testing.assert_array_equal(sampled_BGT, r.environment_BGT)


def test_greedy_answers_are_an_argmax_loop_with_a_tool():
  model = nnx.split(search_test.model())
  tokens_B1T, *_ = evaluation.draw(
    *model, TASK, ASKED, jax.random.key(0), 1.0, samples=0
  )
  answered = 0
  for row in range(B):
    tokens = []
    while len(tokens) < T and EOS not in tokens:
      written = environment(row, tokens)
      if len(tokens) + len(written) > T:
        break
      log_prob_V, _ = next_log_prob((*map(int, PROMPTS[row]), *tokens))
      tokens += written or [int(log_prob_V.argmax())]
      answered += len(written)
    padded = [*tokens, *[PAD] * (T - len(tokens))]
    assert tokens_B1T[row, 0].tolist() == padded
  assert answered


FULL = sum(3**depth for depth in range(1, T))  # Nodes of an exhausted tree.
TOKENS = dict(step_tokens=1, num_simulations=FULL)
BY_TOKENS = [
  TOKENS,
  pytest.param(TOKENS | dict(slot_reuse=True, trees=3), marks=pytest.mark.slow),
  pytest.param(
    dict(rule="puct", leaf="rollout", step_tokens=1), marks=pytest.mark.slow
  ),
  pytest.param(
    dict(rule="gumbel", leaf="value", step_tokens=1), marks=pytest.mark.slow
  ),
]
# Drawn steps of fewer tokens than an observation, as many, and more; even of
# more than a response.
DRAWN = [
  dict(step_tokens=8, num_candidates=4),
  dict(step_tokens=2, lazy=True),
  *(
    pytest.param(settings, marks=pytest.mark.slow)
    for settings in (
      dict(step_tokens=2),
      dict(step_tokens=4),
      dict(step_tokens=3, rule="puct", leaf="rollout"),
      dict(step_tokens=1, lazy=True),
      dict(step_tokens=4, lazy=True, leaf="mix"),
    )
  ),
]


@functools.partial(jax.jit, static_argnums=1)
def _search(prompts, config):
  model, key = search_test.model(), jax.random.key(0)
  return search_lib.search(model, TASK, prompts, key, config).tree


@functools.cache
def _searched(settings):
  sizes = dict(num_simulations=30, num_candidates=3, stop_when_solved=False)
  return jax.device_get(_search(ASKED, flat_search(**sizes | dict(settings))))


def searched(**settings):
  return _searched(tuple(settings.items()))


def edges(tree):
  """(row, parent, action, child, path to the child) of every new node."""
  nodes = tree.embeddings
  for row in range(B):
    for parent, action, child in tried(tree, row):
      if not (nodes.finished[row, parent] or nodes.cut_off[row, parent]):
        depth = nodes.depth[row, child]
        path = nodes.path_tokens[row, child]
        assert np.all(path[depth:] == PAD)
        yield row, parent, action, child, path[:depth].tolist()


def check_node(nodes, row, parent, action, child, path):
  """What a move led to, against the walk and plain forwards."""
  pieces = walk(row, path, stop_at_end=False)
  own, depth = owned(pieces), nodes.depth[row, parent]
  assert len(own) == len(path) > depth
  for t, piece, chosen in pieces:
    written = environment(row, path[:t])
    assert chosen or piece == written[: T - t]
  assert nodes.finished[row, child] == (path[-1] == EOS)
  assert EOS not in path[:-1]
  # Only the end of a response cuts an observation in two.
  assert depth in {t for t, _, _ in pieces}
  log_prob_T = np.where(own, log_probs(row, path)[0], 0.0)
  assert nodes.path_log_prob[row, child] == pytest.approx(
    log_prob_T.sum(), abs=1e-4
  )
  _, logit = next_log_prob((*map(int, PROMPTS[row]), *path))
  assert nodes.value_logit[row, child] == pytest.approx(logit, abs=2e-5)
  return own[depth:]


@pytest.mark.parametrize("settings", BY_TOKENS, ids=str)
def test_an_observation_is_one_move_of_a_tree(settings):
  tree = searched(**settings)
  nodes, seen = tree.embeddings, set()
  assert nodes.step_AU.shape[-1] == LONGEST
  for row, parent, action, child, path in edges(tree):
    own = check_node(nodes, row, parent, action, child, path)
    length = nodes.length_A[row, parent, action]
    assert length == len(own)
    if all(own):
      assert length == 1
      continue
    assert not any(own) and action == 0
    assert nodes.log_prob_A[row, parent, 0] == 0
    assert np.all(tree.children_index[row, parent, 1:] == UNVISITED)
    assert np.all(nodes.prior_A[row, parent, 1:] <= LOG_ZERO)
    assert nodes.log_prob_gap[row, child] == nodes.log_prob_gap[row, parent]
    written = environment(row, path[:-length])
    assert len(path) == T or length == len(written)
    seen.add(length)
  assert seen == {2, 3} or seen == {1, 2, 3}


def step_end(row, path, start, most):
  """Where a step that begins at a token of a path ends."""
  most, t = min(most, T - start), start
  while t - start < most:
    written = environment(row, path[:t])
    if written and t > start and t - start + len(written) > most:
      break
    t += min(max(1, len(written)), most - (t - start))
    if path[t - 1] in (EOS, CALL, STOP):
      break
  return t


@pytest.mark.parametrize("settings", DRAWN, ids=str)
def test_a_drawn_step_holds_whole_observations(settings):
  tree = searched(**settings)
  nodes, kinds = tree.embeddings, set()
  most = max(settings["step_tokens"], LONGEST)
  assert nodes.step_AU.shape[-1] == most
  for row, parent, action, child, path in edges(tree):
    own = check_node(nodes, row, parent, action, child, path)
    start = len(path) - len(own)
    assert start == nodes.depth[row, parent]
    assert len(path) == step_end(row, path, start, most)
    assert nodes.length_A[row, parent, action] == len(own)
    kinds.add((any(own), not all(own)))
  # Chosen by the model alone, by the environment alone, and by both.
  assert {(True, False), (False, True)} <= kinds
  assert (True, True) in kinds or most == LONGEST


@pytest.mark.parametrize("settings", BY_TOKENS + DRAWN, ids=str)
def test_answers_are_finished_and_cost_what_the_model_chose(settings):
  nodes, written = searched(**settings).embeddings, 0
  found = np.argwhere(nodes.has_answer)
  assert len(found) > B
  for row, n in found:
    answer = nodes.answer_tokens[row, n].tolist()
    pieces = walk(row, answer)
    own = owned(pieces)
    tokens = answer[: len(own)]
    assert tokens[-1] == EOS and answer[len(own) :] == [PAD] * (T - len(own))
    for t, piece, chosen in pieces:
      assert chosen or piece == environment(row, answer[:t])
    written += len(own) - sum(own)
    score = TASK.score(PROMPTS[row], jnp.array(answer))
    assert nodes.reward[row, n] == pytest.approx(float(score.reward_X))
    assert nodes.correct[row, n] == bool(score.correct_X)
    assert nodes.answer_log_prob[row, n] == pytest.approx(
      np.where(own, log_probs(row, tokens)[0], 0.0).sum(), abs=1e-4
    )
  assert written


def reachable(row, prefix=()):
  """Every answer through the three likeliest choices."""
  written = environment(row, list(prefix))
  if written:
    moves = [written]
  else:
    log_prob_V, _ = next_log_prob((*map(int, PROMPTS[row]), *prefix))
    moves = [[int(token)] for token in np.argsort(-log_prob_V)[:3]]
  for move in moves:
    path = (*prefix, *move)
    if len(path) <= T and path[-1] == EOS:
      yield path
    elif len(path) < T:
      yield from reachable(row, path)


def test_an_exhausted_tree_holds_every_answer_once():
  nodes, late = searched(**TOKENS).embeddings, 0
  for row in range(B):
    held = [
      tuple(answer[: answer.index(EOS) + 1])
      for answer in nodes.answer_tokens[row, nodes.has_answer[row]].tolist()
    ]
    expected = list(reachable(row))
    assert sorted(held) == sorted(expected)
    late += max(map(len, expected)) == T
  assert late


def test_a_short_search_is_the_beginning_of_a_long_one():
  """Trees of few nodes are read in place, where observations are whole too."""
  few = 2 * T // LONGEST
  assert few * LONGEST <= kv_pool.IN_PLACE * T < FULL * LONGEST
  short, long = (
    searched(**TOKENS | dict(num_simulations=n)) for n in (few, FULL)
  )
  for a, b in zip(
    jax.tree.leaves(short.embeddings),
    jax.tree.leaves(long.embeddings),
    strict=True,
  ):
    np.testing.assert_allclose(a, b[:, : few + 1], atol=2e-5)
  assert np.any(short.embeddings.length_A[:, :few] > 1)
