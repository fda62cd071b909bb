"""Advantages against loops written from their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsd_jax.learning import advantages

RNG = np.random.default_rng(0)


def prefix_mask(rows, T):
  return np.arange(T) < RNG.integers(0, T + 1, (*rows, 1))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1, 1)])
def test_gae_is_the_sum_of_discounted_errors(gamma, lam):
  rows, T = (5, 3), 8
  reward, value = RNG.normal(size=(2, *rows, T))
  mask = prefix_mask(rows, T)
  advantage, target = advantages.gae(
    reward, value, mask, discount=gamma, lambda_=lam
  )
  for i in np.ndindex(rows):
    n = mask[i].sum()
    v = [*value[i][:n], 0.0]
    delta = [reward[i][t] + gamma * v[t + 1] - v[t] for t in range(n)]
    for t in range(T):
      expected = sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n))
      assert float(advantage[i][t]) == pytest.approx(
        expected if t < n else 0.0, abs=1e-5
      )
    if lam == 1:  # Then the target is the Monte Carlo return.
      for t in range(n):
        tail = sum(gamma ** (k - t) * reward[i][k] for k in range(t, n))
        assert float(target[i][t]) == pytest.approx(tail, abs=1e-5)


def test_terminal_reward_lies_on_the_last_sampled_token():
  mask = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0]], bool)
  got = advantages.terminal_reward(np.array([0.5, 0.7, 0.9]), mask)
  np.testing.assert_allclose(got, [[0, 0.5, 0], [0, 0, 0.7], [0, 0, 0]])


def test_group_advantages_are_standard_scores():
  reward = RNG.random((6, 8))
  got = np.asarray(advantages.group_advantages(reward))
  np.testing.assert_allclose(
    got,
    (reward - reward.mean(1, keepdims=True))
    / (reward.std(1, keepdims=True) + 1e-4),
    rtol=1e-4,
  )
  np.testing.assert_allclose(
    advantages.centred_advantages(reward),
    reward - reward.mean(axis=1, keepdims=True),
    atol=1e-6,
  )
  equal = advantages.group_advantages(np.full((2, 8), 0.3, np.float32))
  np.testing.assert_allclose(equal, 0, atol=1e-3)


@pytest.mark.parametrize("reward", [0.1, 1.0, 100.1, 1000.1, -12345.678])
@pytest.mark.parametrize("G", [2, 3, 7, 8, 12])
def test_equal_rewards_teach_nothing_whatever_their_size(reward, G):
  """Exactly: a mean's rounding error must not be divided by the epsilon."""
  reward_BG = np.full((4, G), reward, np.float32)
  tokens_BGT = RNG.integers(0, 2, (4, G, 5))
  parent_BG = np.tile(np.arange(G), (4, 1))
  parent_BG[:, -1] = 0
  fork_BG = np.where(parent_BG == np.arange(G), 0, 2)
  for found in (
    advantages.group_advantages(reward_BG),
    advantages.centred_advantages(reward_BG),
    advantages.tree_advantages(reward_BG, parent_BG, fork_BG, 5),
    advantages.prefix_advantages(reward_BG, tokens_BGT),
  ):
    assert not np.any(found)


def tree_oracle(reward, parent, fork, T, local):
  """One prompt: the value of a node is the mean of its leaves."""
  G = len(reward)
  roots = [g for g in range(G) if parent[g] == g]
  value = {g: np.mean([reward[h] for h in range(G) if parent[h] == g])
           for g in roots}  # fmt: skip
  root = np.mean([value[g] for g in roots])
  out = np.zeros((G, T))
  for g in range(G):
    p = parent[g]
    forks = [fork[h] for h in range(G) if parent[h] == p and h != p]
    for t in range(T):
      if forks and t < forks[0]:
        # Root to fork point: both baselines are the root's value.
        out[g, t] = value[p] - root
      else:
        start = value[p] if forks else root
        out[g, t] = local * (reward[g] - start) + (1 - local) * (
          reward[g] - root
        )
  return out / (reward.std() + 1e-4)


@settings(deadline=None)
@given(st.data())
def test_tree_advantages(data):
  S = data.draw(st.integers(1, 4))
  forked = data.draw(st.lists(st.integers(0, S - 1), unique=True, max_size=S))
  width, T = data.draw(st.integers(1, 3)), 6
  parent, fork = list(range(S)), [0] * S
  for row in forked:
    at = data.draw(st.integers(1, T - 1))
    parent += [row] * width
    fork += [at] * width
  G = len(parent)
  reward = np.asarray(
    data.draw(st.lists(st.floats(0, 1, width=32), min_size=G, max_size=G)),
    np.float32,
  )
  local = data.draw(st.floats(0, 1))
  got = advantages.tree_advantages(
    reward[None], np.array([parent]), np.array([fork]), T, local_weight=local
  )
  expected = tree_oracle(reward.astype(float), parent, fork, T, local)
  np.testing.assert_allclose(got[0], expected, atol=2e-2, rtol=1e-3)


def test_without_forks_or_local_baseline_it_is_the_groups():
  reward = RNG.random((3, 5)).astype(np.float32)
  parent = np.broadcast_to(np.arange(5), (3, 5))
  got = advantages.tree_advantages(
    reward, parent, np.zeros((3, 5), int), 4, local_weight=0.3
  )
  group = advantages.group_advantages(reward)
  np.testing.assert_allclose(
    got, np.repeat(np.asarray(group)[..., None], 4, -1), rtol=1e-4, atol=1e-5
  )


def prefix_oracle(reward, tokens, local):
  """One prompt, node by node: a node is the set of rows that share a prefix."""
  G, T = tokens.shape
  root, out = reward.mean(), np.zeros((G, T))

  def below(g, length):
    same = [
      h
      for h in range(G)
      if list(tokens[h, :length]) == list(tokens[g, :length])
    ]
    return tuple(same)

  for g in range(G):
    for t in range(T):
      node = below(g, t + 1)
      longer = [below(g, n) for n in range(t + 1)]
      parents = [n for n in longer if n != node] or [tuple(range(G))]
      start, value = reward[list(parents[-1])].mean(), reward[list(node)].mean()
      out[g, t] = local * (value - start) + (1 - local) * (value - root)
  return out / (reward.std() + 1e-4)


@pytest.mark.parametrize("symbols", [1, 2, 10**6])
def test_prefix_advantages(symbols):
  tokens = RNG.integers(0, symbols, (5, 6, 4))
  reward = RNG.random((5, 6)).astype(np.float32)
  got = advantages.prefix_advantages(reward, tokens, local_weight=0.3)
  for b in range(5):
    np.testing.assert_allclose(
      got[b], prefix_oracle(reward[b], tokens[b], 0.3), atol=1e-4
    )
  if symbols > 2:  # Nothing is shared: the group's advantage.
    group = advantages.group_advantages(reward)
    np.testing.assert_allclose(got[..., -1], group, rtol=1e-3, atol=1e-3)
