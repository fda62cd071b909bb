"""Different responses that reach one state, of which a search follows one.

A task may name the state that a response so far reaches
(`tasks.task.Task.state_key`). A tree then expands every state once, as a chess
program does with positions that moves in another order lead to. States are held
as hashes of 32 bits: a tree of a thousand moves mistakes two for each other
once in ten thousand trees.
"""

import jax.numpy as jnp

from tsd_jax.base.hashing import hashed
from tsd_jax.base.types import Array
from tsd_jax.search import moves
from tsd_jax.tasks.task import Task


def of_moves(task: Task, prompt_BP: Array, node) -> Array:
  """What the moves of B nodes (`node.Node`) lead to, uint32 BA."""
  B, A, U = node.step_AU.shape
  row_R = jnp.arange(B * A) // A
  length_R = node.length_A.reshape(-1)
  depth_R = node.depth[row_R]
  response_RT, _ = moves.extend(
    node.path_tokens[row_R], depth_R, node.step_AU.reshape(-1, U), length_R
  )
  length_R = jnp.minimum(depth_R + length_R, response_RT.shape[1])
  hash_R = state_keys(task, prompt_BP[row_R], response_RT, length_R)
  return hash_R.reshape(B, A)


def reached(nodes, exists_BN: Array, node) -> Array:
  """Which moves of new nodes lead where their trees were before, BA.

  Args:
    nodes: of the trees, BN.
    exists_BN: those that were made.
    node: the new ones, B.
  """
  length_BA1 = (node.depth[:, None] + node.length_A)[..., None]
  same_BAN = node.state_key_A[..., None] == nodes.state_key[:, None]
  same_BAN &= exists_BN[:, None] & (nodes.depth[:, None] <= length_BA1)
  return jnp.any(same_BAN, axis=-1)


def late(nodes, node) -> Array:
  """Which moves of trees lead where their new nodes are, BNA."""
  length_BNA = nodes.depth[..., None] + nodes.length_A
  same_BNA = nodes.state_key_A == node.state_key[:, None, None]
  return same_BNA & (length_BNA >= node.depth[:, None, None])


def state_keys(
  task: Task, prompt_XP: Array, response_XT: Array, length_X: Array
) -> Array:
  """Hashes of what responses have come to, uint32 X; see `Task.state_key`."""
  assert task.state_key is not None  # Else nothing is merged.
  return hashed(task.state_key(prompt_XP, response_XT, length_X))
