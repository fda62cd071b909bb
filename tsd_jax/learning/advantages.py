"""Advantages and returns of sampled responses, as pure functions of arrays."""

import jax
import jax.numpy as jnp

from tsd_jax.base.types import Array


def gae(
  reward_XT: Array,
  value_XT: Array,
  mask_XT: Array,
  *,
  discount: float | Array = 1.0,
  lambda_: float | Array = 0.95,
) -> tuple[Array, Array]:
  """Generalised advantage estimation (arXiv:1506.02438).

  delta_t = r_t + gamma v_{t+1} - v_t and A_t = delta_t + gamma lambda A_{t+1},
  with v and A zero after the last sampled token.

  Args:
    reward_XT: reward received after token t.
    value_XT: value of the state before token t.
    mask_XT: true at sampled tokens, a prefix of the row.
    discount: gamma in [0, 1].
    lambda_: lambda in [0, 1].

  Returns:
    Advantages and returns A + v, both zero where masked.
  """
  value_XT = jnp.where(mask_XT, value_XT, 0.0)

  def back(carry, inputs):
    advantage_X, next_value_X = carry
    reward_X, value_X, mask_X = inputs
    delta_X = reward_X + discount * next_value_X - value_X
    advantage_X = mask_X * (delta_X + discount * lambda_ * advantage_X)
    return (advantage_X, value_X), advantage_X

  zero_X = jnp.zeros(reward_XT.shape[:-1])
  inputs = (reward_XT, value_XT, mask_XT)
  inputs = jax.tree.map(lambda a: jnp.moveaxis(a, -1, 0), inputs)
  _, advantage_TX = jax.lax.scan(back, (zero_X, zero_X), inputs, reverse=True)
  advantage_XT = jnp.moveaxis(advantage_TX, 0, -1)
  return advantage_XT, jnp.where(mask_XT, advantage_XT + value_XT, 0.0)


def terminal_reward(reward_X: Array, mask_XT: Array) -> Array:
  """Puts a response's reward on its last sampled token."""
  next_XT = jnp.concatenate(
    [mask_XT[..., 1:], jnp.zeros_like(mask_XT[..., :1])], axis=-1
  )
  return jnp.where(mask_XT & ~next_XT, reward_X[..., None], 0.0)


def above_least(reward_BG: Array) -> Array:
  """Rewards less the least of each prompt's.

  Advantages do not change by it, but those of equal rewards are exactly 0: the
  rounding error of a mean of 1000.1 is as large as `epsilon`.
  """
  return reward_BG - jnp.min(reward_BG, axis=1, keepdims=True)


def group_advantages(reward_BG: Array, *, epsilon: float = 1e-4) -> Array:
  """GRPO's (r - mean) / (std + epsilon) in each prompt's group.

  Paper: arXiv:2402.03300.
  """
  return centred_advantages(reward_BG) / (
    jnp.std(above_least(reward_BG), axis=1, keepdims=True) + epsilon
  )


def centred_advantages(reward_BG: Array) -> Array:
  """Dr. GRPO's r - mean in each prompt's group.

  Paper: arXiv:2503.20783.
  """
  reward_BG = above_least(reward_BG)
  return reward_BG - jnp.mean(reward_BG, axis=1, keepdims=True)


def tree_advantages(
  reward_BG: Array,
  parent_BG: Array,
  fork_BG: Array,
  length: int,
  *,
  local_weight: float | Array = 0.5,
  epsilon: float = 1e-4,
) -> Array:
  """Advantages of segments of an on-policy tree of depth two.

  Rows either start at the prompt or fork from such a row. The value of a fork
  point is the mean reward of the leaves below it, the root's the mean over the
  rows that start at the prompt, each counted with its fork point's value. A
  segment from node u to node w has
    A = w_local (V(w) - V(u)) + (1 - w_local) (V(w) - V(root)),
  divided by the standard deviation of the leaves below the root.

  Args:
    reward_BG: rewards of the leaves.
    parent_BG: row that each row forked from; itself if it starts at the prompt.
      All forks of one row leave it at the same token.
    fork_BG: tokens shared with the parent.
    length: T.
    local_weight: w_local.
    epsilon: added to the standard deviation.

  Returns:
    Advantages BGT; a row's values before its own fork are its parent's.
  """
  reward_BG, G = above_least(reward_BG), reward_BG.shape[1]
  rows_G = jnp.arange(G)
  is_root_BG = parent_BG == rows_G[None]
  # below_BGg: leaf g lies below the fork point of row G.
  below_BGG = parent_BG[:, None, :] == rows_G[None, :, None]
  leaves_BG = jnp.sum(below_BGG, axis=2)
  sum_BG = jnp.einsum("bgh,bh->bg", below_BGG.astype(jnp.float32), reward_BG)
  node_BG = sum_BG / jnp.maximum(leaves_BG, 1)
  weight_BG = is_root_BG / jnp.sum(is_root_BG, axis=1, keepdims=True)
  root_B1 = jnp.sum(weight_BG * node_BG, axis=1, keepdims=True)
  std_B1 = jnp.std(reward_BG, axis=1, keepdims=True)
  # Where each row's tree branches: a parent's fork point is its children's.
  children_fork_BG = jnp.max(
    jnp.where(below_BGG & ~is_root_BG[:, None, :], fork_BG[:, None, :], 0),
    axis=2,
  )
  branch_BG = jnp.where(is_root_BG, children_fork_BG, fork_BG)
  above_BG = jnp.take_along_axis(node_BG, parent_BG, axis=1)
  early_BG = above_BG - root_B1
  # A row without a fork is one segment from the root to its leaf.
  start_BG = jnp.where(branch_BG > 0, above_BG, root_B1)
  late_BG = local_weight * (reward_BG - start_BG) + (1.0 - local_weight) * (
    reward_BG - root_B1
  )
  early_BGT = jnp.arange(length)[None, None] < branch_BG[..., None]
  advantage_BGT = jnp.where(early_BGT, early_BG[..., None], late_BG[..., None])
  return advantage_BGT / (std_B1 + epsilon)[..., None]


def prefix_advantages(
  reward_BG: Array,
  tokens_BGT: Array,
  *,
  local_weight: float | Array = 0.5,
  epsilon: float = 1e-4,
) -> Array:
  """Advantages of segments of the tree that plain samples form by themselves.

  Samples of one prompt share their first tokens by chance. The value of a
  prefix is the mean reward of the samples that begin with it; a segment ends
  where the set of these samples shrinks. Its advantage is that of
  `tree_advantages`, so that forks can be told from node values as such.

  Args:
    reward_BG: rewards.
    tokens_BGT: sampled tokens, all rows from the prompt.
    local_weight: w_local.
    epsilon: added to the standard deviation.

  Returns:
    Advantages BGT.
  """
  reward_BG = above_least(reward_BG)
  same_BGGT = tokens_BGT[:, :, None] == tokens_BGT[:, None]
  same_BGGT = jnp.cumprod(same_BGGT.astype(jnp.float32), axis=-1)
  count_BGT = jnp.sum(same_BGGT, axis=2)
  value_BGT = jnp.einsum("bght,bh->bgt", same_BGGT, reward_BG) / count_BGT
  root_B1 = jnp.mean(reward_BG, axis=1, keepdims=True)

  def forward(carry, node):
    count_BG, value_BG, start_BG = carry
    # A smaller set of samples: the node before was a branching point.
    start_BG = jnp.where(node[0] < count_BG, value_BG, start_BG)
    return (*node, start_BG), start_BG

  root_BG = jnp.broadcast_to(root_B1, reward_BG.shape)
  everyone_BG = jnp.full_like(root_BG, reward_BG.shape[1])
  nodes = jax.tree.map(lambda a: jnp.moveaxis(a, -1, 0), (count_BGT, value_BGT))
  _, start_TBG = jax.lax.scan(forward, (everyone_BG, root_BG, root_BG), nodes)
  start_BGT = jnp.moveaxis(start_TBG, 0, -1)
  advantage_BGT = local_weight * (value_BGT - start_BGT) + (
    1.0 - local_weight
  ) * (value_BGT - root_B1[..., None])
  std_B1 = jnp.std(reward_BG, axis=1, keepdims=True)
  return advantage_BGT / (std_B1 + epsilon)[..., None]
