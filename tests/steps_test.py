"""Trees of steps against plain full forwards, NumPy and Python's arithmetic."""

import collections
import dataclasses
import functools
import json
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import iteration_test, search_test, small_experiment
from tests.flat_search import flat_search
from tests.search_test import EOS, PAD, PROMPTS, B, Hash, next_log_prob, tried
from tsd_jax.base import config as config_lib
from tsd_jax.base.types import LOG_ZERO
from tsd_jax.learning.config import LossConfig
from tsd_jax.models import symbols
from tsd_jax.parallel import sharding
from tsd_jax.rewards.reward import Score
from tsd_jax.run import train
from tsd_jax.run.experiment import initial_params
from tsd_jax.search import moves
from tsd_jax.search import search as search_lib
from tsd_jax.search.best_first import BestFirst
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks import data
from tsd_jax.tasks.countdown import CountdownConfig
from tsd_jax.tasks.task import as_prompts

T, STOPS, A, S, N = 6, (3, 7), 4, 3, 12


@dataclasses.dataclass(frozen=True)
class Steps(Hash):
  """Longer responses, in which two tokens end a step."""

  response_length, step_end_ids = T, STOPS

  def score(self, prompt_XP, response_XT):
    """Reward in [0, 1] of finished responses; two thirds are correct."""
    mixed_X = jnp.sum(response_XT * jnp.array([7, 13, 29, 31, 5, 3]), axis=-1)
    mixed_X += jnp.sum(prompt_XP * jnp.array([3, 5, 11]), axis=-1)
    finished_X = jnp.any(response_XT == EOS, axis=-1)
    reward_X = jnp.where(finished_X, (mixed_X * 37 % 97) / 96.0, 0.0)
    return Score(reward_X, finished_X & (reward_X > 1 / 3))


TASK = Steps()
BEST_FIRST = dict(rule="best_first")
PUCT = dict(rule="puct", leaf="rollout", step_prior="log_prob")
GUMBEL = dict(rule="gumbel", leaf="value")
ALL = [BEST_FIRST, GUMBEL, pytest.param(PUCT, marks=pytest.mark.slow)]
rules = pytest.mark.parametrize("settings", ALL, ids=lambda s: s["rule"])


def configure(**settings):
  sizes = dict(num_simulations=N, num_candidates=A, step_tokens=S)
  return flat_search(**sizes, stop_when_solved=False, **settings)


@functools.partial(jax.jit, static_argnums=1)
def _search(prompt_BP, config):
  model, prompts = search_test.model(), as_prompts(TASK, prompt_BP)
  return search_lib.search(model, TASK, prompts, jax.random.key(4), config)


@functools.cache
def search(settings):
  return jax.device_get(_search(PROMPTS, configure(**dict(settings))))


def run(settings):
  return search(tuple(settings.items()))


def log_prob_of(row, before, step):
  """Sum of a plain full forward's log-probabilities."""
  total, tokens = 0.0, (*map(int, PROMPTS[row]), *map(int, before))
  for token in map(int, step):
    total += next_log_prob(tokens)[0][token]
    tokens += (token,)
  return total


def path_of(nodes, row, n):
  return nodes.path_tokens[row, n][: nodes.depth[row, n]]


def test_equal_draws_are_merged():
  rng = np.random.default_rng(0)
  step_BAU = rng.integers(0, 2, (50, 5, 2))
  length_BA = rng.integers(1, 3, (50, 5))
  step_BAU[..., 1] *= length_BA == 2  # PAD is 0, and is drawn as well.
  log_prob_BA = -1.0 - step_BAU @ [0.5, 0.25] - 0.125 * length_BA
  for prior in ("draws", "log_prob"):
    got = moves.merged(
      jnp.asarray(step_BAU), jnp.asarray(length_BA), jnp.asarray(log_prob_BA),
      prior,
    )  # fmt: skip
    for b in range(50):
      drawn = [
        tuple(map(int, step[:n]))
        for step, n in zip(step_BAU[b], length_BA[b], strict=True)
      ]
      times, worth = collections.Counter(drawn), {}
      for step, log_prob in zip(drawn, log_prob_BA[b], strict=True):
        own = np.log(times[step] / 5) if prior == "draws" else log_prob
        worth[step] = own, log_prob
      left = [
        (tuple(map(int, step[:n])), (float(p), float(q)))
        for step, n, p, q in zip(*(np.asarray(a)[b] for a in (
          got.step_AU, got.length_A, got.prior_A, got.log_prob_A,
        )), strict=True)
        if p > LOG_ZERO
      ]  # fmt: skip
      assert len(left) == len(worth) and dict(left) == {
        step: pytest.approx(both, abs=1e-6) for step, both in worth.items()
      }
      assert [w for _, w in left] == sorted((w for _, w in left), reverse=True)
    # What is merged comes last.
    assert np.all(np.diff(got.prior_A > LOG_ZERO, axis=1).sum(1) <= 1)
    assert np.all(got.prior_A[:, 0] > LOG_ZERO)


@rules
def test_every_node_is_what_a_plain_forward_says(settings):
  tree = run(settings).tree
  nodes, several, shown = tree.embeddings, 0, 0
  for row in range(B):
    for parent, action, child in tried(tree, row):
      if nodes.finished[row, parent] or nodes.cut_off[row, parent]:
        continue
      length = nodes.length_A[row, parent, action]
      step = nodes.step_AU[row, parent, action]
      assert nodes.prior_A[row, parent, action] > LOG_ZERO
      before, path = path_of(nodes, row, parent), path_of(nodes, row, child)
      np.testing.assert_array_equal(path, [*before, *step[:length]])
      assert np.all(step[length:] == PAD)
      shown, several = shown + 1, several + (length > 1)
      assert nodes.finished[row, child] == (path[-1] == EOS)
      _, logit = next_log_prob((*map(int, PROMPTS[row]), *map(int, path)))
      assert nodes.value_logit[row, child] == pytest.approx(logit, abs=2e-5)
      assert nodes.path_log_prob[row, child] == pytest.approx(
        log_prob_of(row, (), path), abs=1e-4
      )
  assert shown > 3 * B and several > 2 * B


@rules
def test_steps_end_where_they_should_and_cost_what_the_model_says(settings):
  tree = run(settings).tree
  nodes, ends = tree.embeddings, collections.Counter()
  for row, n in np.argwhere(tree.node_visits > 0):
    before, steps = path_of(nodes, row, n), set()
    for action in range(A):
      length = nodes.length_A[row, n, action]
      if nodes.finished[row, n] or len(before) == T:
        assert length == 0
        continue
      step = nodes.step_AU[row, n, action][:length]
      assert 1 <= length <= min(S, T - len(before))
      assert not np.isin(step[:-1], (*STOPS, EOS)).any()
      stopped = step[-1] in (*STOPS, EOS)
      assert stopped or length in (S, T - len(before))
      ends[bool(stopped)] += 1
      assert nodes.log_prob_A[row, n, action] == pytest.approx(
        log_prob_of(row, before, step), abs=1e-4
      )
      if nodes.prior_A[row, n, action] > LOG_ZERO:
        assert tuple(step) not in steps
        steps.add(tuple(step))
    if settings.get("step_prior") != "log_prob":
      share = np.exp(nodes.prior_A[row, n].astype(float))
      assert share.sum() == pytest.approx(1)
      np.testing.assert_allclose(share * A, np.round(share * A), atol=1e-5)
  assert min(ends.values()) > 20


@rules
def test_every_answer_is_finished_scored_and_priced(settings):
  nodes = run(settings).tree.embeddings
  found = np.argwhere(nodes.has_answer)
  assert len(found) > B
  for row, n in found:
    answer = nodes.answer_tokens[row, n]
    (end,) = np.flatnonzero(answer == EOS)
    assert np.all(answer[end + 1 :] == PAD)
    path = path_of(nodes, row, n)
    np.testing.assert_array_equal(answer[: len(path)], path)
    score = TASK.score(PROMPTS[row], answer)
    assert nodes.reward[row, n] == pytest.approx(float(score.reward_X))
    assert nodes.answer_log_prob[row, n] == pytest.approx(
      log_prob_of(row, (), answer[: end + 1]), abs=1e-4
    )
    ending = nodes.eos_action[row, n]
    if settings["rule"] == "best_first" and not nodes.finished[row, n]:
      step = nodes.step_AU[row, n, ending]
      assert EOS in step and EOS not in nodes.step_AU[row, n, :ending]
      np.testing.assert_array_equal(
        answer[len(path) : end + 1], step[: end + 1 - len(path)]
      )
    else:
      assert ending == A


def test_best_first_takes_the_best_open_step_and_counts_visits():
  tree = run(BEST_FIRST).tree
  nodes, epsilon = tree.embeddings, BestFirst().epsilon
  for row in range(B):
    edges = sorted(tried(tree, row), key=operator.itemgetter(2))
    keys, surprise, below = {}, {0: 0.0}, collections.Counter()
    parent_of = {}

    def offer(n, row=row, keys=keys, surprise=surprise):
      if nodes.finished[row, n] or nodes.cut_off[row, n]:
        return
      prior = nodes.prior_A[row, n].astype(float)
      for action in np.flatnonzero(prior > LOG_ZERO):
        if action != nodes.eos_action[row, n]:
          keys[n, action] = (
            surprise[n] + prior[action] - prior[0]
            + epsilon * nodes.depth[row, n]
          )  # fmt: skip

    offer(0)
    for parent, action, child in edges:
      assert keys[parent, action] >= max(keys.values()) - 1e-5
      prior = nodes.prior_A[row, parent].astype(float)
      surprise[child] = surprise[parent] + prior[action] - prior[0]
      del keys[parent, action]
      offer(child)
      parent_of[child], n = parent, child
      while n:
        n = parent_of[n]
        below[n] += 1
    for n in (0, *parent_of):
      assert tree.node_visits[row, n] == 1 + below[n]


def test_forwards_by_counting():
  result = run(GUMBEL)
  nodes = result.tree.embeddings
  assert np.all(result.tree.node_visits > 0)  # Every tree always grew.
  # All draws for all trees' new nodes go on until the longest has ended.
  longest_N = nodes.length_A.max(axis=(0, 2))
  drawn = sum(B * A * (max(n, 1) - 1) for n in longest_N)
  assert int(result.forwards) == N * B * S + int(drawn)


@pytest.mark.slow
def test_a_sharded_search_finds_the_same():
  mesh = sharding.make_mesh(sharding.MeshConfig(data=8))
  prompts = jax.device_put(PROMPTS, sharding.over_prompts(mesh))
  sharded = _search(prompts, configure(**BEST_FIRST))
  assert not sharded.tree.node_visits.sharding.is_fully_replicated
  for a, b in zip(
    jax.tree.leaves(sharded), jax.tree.leaves(run(BEST_FIRST)), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.slow
def test_countdown_is_solved_by_whole_operations():
  task = CountdownConfig(numbers=3)
  config = config_lib.load("experiments/countdown.py")
  graphdef, params = initial_params(config)
  prompts = data.load_problems(task, "validation")[:16]

  @jax.jit
  def grow(params, prompts):
    return search_lib.search(
      nnx.merge(graphdef, params), task.make(), prompts, jax.random.key(0),
      SearchConfig(num_simulations=16, step_tokens=4),
    ).tree.embeddings  # fmt: skip

  nodes = jax.device_get(grow(params, prompts))
  solved = np.flatnonzero(nodes.correct.any(axis=1))
  assert len(solved) >= 4
  signs = dict(
    zip(
      range(symbols.PLUS, symbols.DIVIDE + 1),
      "+-*/",
      strict=True,
    )
  )
  for row in solved:
    answer = nodes.answer_tokens[row, nodes.correct[row].argmax()]
    *numbers, _, target = map(int, prompts.tokens_BP[row])
    for a, sign, b, result in answer[:8].reshape(2, 4).tolist():
      numbers.remove(a)
      numbers.remove(b)
      numbers.append(result)
      assert eval(f"{a} {signs[sign]} {b}") == result
    assert numbers == [target] and answer[8] == task.make().eos_id


@pytest.mark.slow
def test_a_run_of_step_moves_trains(tmp_path):
  config = config_lib.override(
    small_experiment.get_config(),
    {
      "search.step_tokens": "4",
      "search.num_candidates": "3",
      "iterations": "2",
    },
  )
  train.train(config, tmp_path)
  rows = [json.loads(r) for r in (tmp_path / "metrics.jsonl").open()]
  assert rows[-1]["step"] == 2 and np.isfinite(rows[-1]["loss"])
  # At least the new steps themselves, at most all draws to their ends.
  low, high = (2 * 16 * n for n in (8 * 4, 8 * 4 + 9 * 3 * 3))
  assert low <= rows[-1]["ledger"]["search"] <= high
  shown = json.loads((tmp_path / "samples.json").read_text())
  # Below the heading and the root: a move is shown with all of its tokens.
  table, _ = shown[0]["tree"].split("\n\n", 1)
  texts = [line.split("  ")[-1] for line in table.splitlines()[2:]]
  assert max(len(text.split()) for text in texts) >= 4, texts


def test_soft_targets_of_steps_are_refused():
  search = dataclasses.replace(iteration_test.SEARCH, step_tokens=2)
  loss = LossConfig(distilled_prompts=iteration_test.C, soft_weight=1.0)
  with pytest.raises(ValueError, match=r"set search\.step_tokens=1 .*not 2"):
    iteration_test.configure(search=search, loss=loss)
