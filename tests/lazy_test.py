"""Steps drawn when they are tried, against plain forwards and a key list."""

import collections
import dataclasses
import functools
import operator
import re

import jax
import numpy as np
import pytest

from tests import iteration_test, search_test, shipped, steps_test
from tests.flat_search import flat_search
from tests.search_test import EOS, PAD, PROMPTS, B, next_log_prob, tried
from tests.steps_test import STOPS, TASK, T, log_prob_of, path_of
from tsd_jax.base.types import LOG_ZERO
from tsd_jax.learning.config import LossConfig
from tsd_jax.search.best_first import BestFirst
from tsd_jax.search.rules import PUCT, Gumbel

N, A, S = 20, 5, 3


def configure(**settings):
  sizes = dict(num_simulations=N, num_candidates=A, step_tokens=S)
  return flat_search(
    **sizes | dict(lazy=True, stop_when_solved=False) | settings
  )


@functools.cache
def run(**settings):
  return jax.device_get(steps_test._search(PROMPTS, configure(**settings)))


def is_draw_again(nodes, row, parent, action):
  return nodes.log_prob_A[row, parent, action] <= LOG_ZERO


@pytest.mark.parametrize("settings", [{}, dict(step_tokens=1)], ids=str)
def test_every_node_is_what_a_plain_forward_says(settings):
  tree = run(**settings).tree
  nodes, ends = tree.embeddings, collections.Counter()
  for row in range(B):
    for parent, action, child in tried(tree, row):
      length = nodes.length_A[row, parent, action]
      step = nodes.step_AU[row, parent, action]
      before, path = path_of(nodes, row, parent), path_of(nodes, row, child)
      np.testing.assert_array_equal(path, [*before, *step[:length]])
      assert np.all(step[length:] == PAD)
      most = settings.get("step_tokens", S)
      assert 1 <= length <= min(most, T - len(before))
      assert not np.isin(step[: length - 1], (*STOPS, EOS)).any()
      stopped = step[length - 1] in (*STOPS, EOS)
      assert stopped or length in (most, T - len(before))
      ends[bool(stopped)] += 1
      assert nodes.finished[row, child] == (path[-1] == EOS)
      _, logit = next_log_prob((*map(int, PROMPTS[row]), *map(int, path)))
      assert nodes.value_logit[row, child] == pytest.approx(logit, abs=2e-5)
      assert nodes.path_log_prob[row, child] == pytest.approx(
        log_prob_of(row, (), path), abs=1e-4
      )
      if nodes.finished[row, child]:
        score = TASK.score(PROMPTS[row], nodes.path_tokens[row, child])
        again = is_draw_again(nodes, row, parent, action)
        assert nodes.has_answer[row, child] == (not again)
        assert nodes.reward[row, child] == pytest.approx(
          0.0 if again else float(score.reward_X)
        )
      else:
        assert not nodes.has_answer[row, child]
  assert min(ends[True], ends[False]) > 10


def test_equal_draws_of_a_node_are_one_move():
  tree = run().tree
  nodes, again, children = tree.embeddings, 0, collections.Counter()
  for row in range(B):
    steps = collections.defaultdict(set)
    for parent, action, child in sorted(
      tried(tree, row), key=operator.itemgetter(2)
    ):
      # Places are filled in order.
      assert action == children[row, parent]
      children[row, parent] += 1
      length = nodes.length_A[row, parent, action]
      step = tuple(map(int, nodes.step_AU[row, parent, action, :length]))
      if is_draw_again(nodes, row, parent, action):
        assert step in steps[parent] and nodes.cut_off[row, child]
        assert np.all(tree.children_index[row, child] < 0)
        again += 1
        continue
      assert step not in steps[parent]
      steps[parent].add(step)
      left = 1.0 - sum(
        np.exp(log_prob_of(row, path_of(nodes, row, parent), s))
        for s in steps[parent]
      )
      if action + 1 < A:
        got = nodes.prior_A[row, parent, action + 1]
        assert got == pytest.approx(np.log(max(left, 1e-30)), abs=0.02) or (
          left < 2e-4 and got <= LOG_ZERO
        )
      assert tree.children_prior_logits[row, parent, action] == pytest.approx(
        log_prob_of(row, path_of(nodes, row, parent), step), abs=1e-4
      )
  assert again > 5 and max(children.values()) > 2


def test_the_least_surprising_place_comes_next():
  tree = run().tree
  nodes, epsilon = tree.embeddings, BestFirst().epsilon
  for row in range(B):
    keys, surprise = {}, {0: 0.0}

    def offer(n, action, row=row, keys=keys, surprise=surprise):
      if nodes.finished[row, n] or nodes.cut_off[row, n] or action == A:
        return
      if nodes.prior_A[row, n, action] > LOG_ZERO:
        keys[n, action] = (
          surprise[n] + nodes.prior_A[row, n, action]
          + epsilon * nodes.depth[row, n]
        )  # fmt: skip

    offer(0, 0)
    for parent, action, child in sorted(
      tried(tree, row), key=operator.itemgetter(2)
    ):
      assert keys.pop((parent, action)) >= max([-99, *keys.values()]) - 1e-4
      surprise[child] = surprise[parent] + nodes.prior_A[row, parent, action]
      offer(child, 0)
      offer(parent, action + 1)
    # It only ends where nothing is left.
    assert tree.node_visits[row, N] > 0 or not keys


def test_a_simulation_takes_the_forwards_of_one_step():
  result = run()
  tree, longest_N = result.tree, np.zeros(N + 1, int)
  for row in range(B):
    for parent, action, child in tried(tree, row):
      length = tree.embeddings.length_A[row, parent, action]
      longest_N[child] = max(longest_N[child], length)
  grew = np.all(tree.node_visits > 0)
  forwards = int(result.forwards)
  assert forwards == B * longest_N.sum() if grew else forwards <= B * N * S
  assert forwards < B * N * S


def test_turns_change_no_tree():
  """Draws belong to a prompt and to the number of its simulation."""
  for a, b in zip(
    jax.tree.leaves(run().tree),
    jax.tree.leaves(run(slot_reuse=True, trees=3).tree),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.slow
def test_values_and_rollouts_serve_lazy_trees():
  for leaf in ("value", "mix"):
    nodes = run(leaf=leaf).tree.embeddings
    found = np.argwhere(nodes.has_answer)
    assert len(found) > B
    for row, n in found:
      answer = nodes.answer_tokens[row, n]
      (end,) = np.flatnonzero(answer == EOS)
      assert nodes.answer_log_prob[row, n] == pytest.approx(
        log_prob_of(row, (), answer[: end + 1]), abs=1e-4
      )


def test_the_loop_copies_no_pool():
  """Keys are read before they are written here, in one piece each."""
  config = configure(num_simulations=64)
  compiled = shipped.compiled(
    steps_test._search.lower(PROMPTS, config)
  ).as_text()
  c = search_test.model().config
  layer = 64 * B * S * c.num_kv_heads * c.head_dim
  in_entry, seen = False, 0
  for line in compiled.splitlines():
    if line.endswith("{"):
      in_entry = line.startswith("ENTRY")
    op = re.search(r"= f32\[([\d,]+)\]\S* ([\w-]+)\(", line)
    if op is None:
      continue
    size = np.prod([int(n) for n in op[1].split(",")])
    if size in (layer, layer * c.num_layers):
      seen += 1
      assert in_entry or not re.match("copy|transpose", op[2]), line
  assert seen


def test_what_lazy_draws_do_not_serve_is_refused():
  with pytest.raises(ValueError, match=r"set search\.rule\.lazy=false"):
    configure(transpositions=True)
  for rule in (PUCT, Gumbel):  # They have no such field.
    with pytest.raises(TypeError, match="lazy"):
      rule(lazy=True)


def test_soft_targets_are_refused():
  search = dataclasses.replace(iteration_test.SEARCH, rule=BestFirst(lazy=True))
  loss = LossConfig(distilled_prompts=iteration_test.C, soft_weight=1.0)
  with pytest.raises(ValueError, match=r"search\.rule\.lazy=false"):
    iteration_test.configure(search=search, loss=loss)


def test_eager_steps_take_more_forwards():
  assert steps_test.run(steps_test.BEST_FIRST).forwards / steps_test.N > 1.5 * (
    run().forwards / N
  )
