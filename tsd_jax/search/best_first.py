"""Discrepancy best-first: the least surprising untried move of all comes next.

mctx grows its trees by a walk from the root. This rule knows the next leaf
without one, and closes moves that lead where the tree has been.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import mctx

from tsd_jax import sharding
from tsd_jax.search import transpositions
from tsd_jax.search.rules import merged
from tsd_jax.types import LOG_ZERO, UNVISITED, Array

# Key of a move that cannot be expanded (any more).
CLOSED = 2 * LOG_ZERO


@dataclasses.dataclass(frozen=True)
class BestFirst:
  """Discrepancy best-first: expand the least surprising untried move.

  The open list holds every untried (node, move). Its key is
    sum over the path of log(p / p_max) + beta * log V(node) + epsilon * depth
  plus the move's own log(p / p_max), p its prior: the best one is free, so
  whole responses arise by themselves, each expansion is one new forward and
  nothing repeats. Where the task tells what responses have come to, a move is
  closed if the tree has been there in as many tokens or fewer
  (`transpositions.py`). Related: limited discrepancy search (Harvey & Ginsberg,
  1995) and Levin tree search (arXiv:1811.10928).

  Attributes:
    beta: weight of the node's learned value; 0 ignores it.
    epsilon: bonus a token, so that ties go to the deeper node.
    stop_when_solved: end when every tree holds a correct response.
  """

  beta: float = 0.0
  epsilon: float = 0.02
  stop_when_solved: bool = True

  def run(
    self, key, root, recurrent_fn, *, num_simulations, max_depth, loop_fn, loop
  ):
    """Searches with `mctx.search`, its simulations replaced by `grow`.

    mctx walks down from the root and back up, all trees in step and their
    arrays copied at every node. Here the next leaf is known without a walk,
    and its path is known from its embedding.
    """

    def grown(first, last, body, state):
      del body

      def step(simulation, state):
        rng_key, tree = state
        rng_key, expand_key = jax.random.split(rng_key)
        tree = self.grow(
          tree, functools.partial(recurrent_fn, (), expand_key), simulation + 1
        )
        if self.stop_when_solved:
          solved_B = jnp.any(tree.embeddings.correct, axis=1)
          # All devices stop together: a tree is the same on any mesh.
          loop.done = sharding.all_parts(jnp.all(solved_B))
        return rng_key, tree

      rng_key, tree = loop_fn(first, last, step, state)
      return rng_key, with_edges(tree).replace(extra_data=None)

    # The open list: keys of all moves of all nodes.
    closed_BNA = jnp.full(
      (root.value.shape[0], num_simulations + 1, root.prior_logits.shape[1]),
      CLOSED,
    )
    return mctx.search(
      (),
      key,
      root=root,
      recurrent_fn=recurrent_fn,
      root_action_selection_fn=None,  # Used by mctx's own simulations only.
      interior_action_selection_fn=None,
      num_simulations=num_simulations,
      max_depth=max_depth,
      extra_data=closed_BNA.at[:, 0].set(self.keys(root.embedding)),
      loop_fn=grown,
    )

  def keys(self, node) -> Array:
    """Keys of the moves of nodes, BA; closed where a node has none."""
    key_B = (
      node.discrepancy
      + self.beta * jax.nn.log_sigmoid(node.value_logit)
      + self.epsilon * node.depth
    )
    log_ratio_BA = node.prior_A - node.prior_A[..., :1]
    closed_BA = (node.finished | node.cut_off)[:, None] | endings(node)
    closed_BA |= merged(node)
    if node.situation is not None:
      closed_BA |= node.situation_A == node.situation[:, None]
    return jnp.where(closed_BA, CLOSED, key_B[:, None] + log_ratio_BA)

  def grow(self, tree: mctx.Tree, expand, n: Array) -> mctx.Tree:
    """Expands the best untried move of every tree as its node n.

    Visits and values of nodes are kept as mctx does. A tree in which nothing
    is left to expand stays as it is.

    Args:
      tree: the trees, with their open lists as extra data.
      expand: (action_B, parent) -> (mctx.RecurrentFnOutput, node).
      n: index of the new node, the same in all trees.

    Returns:
      The trees, without visits and values of edges (`with_edges`).
    """
    B, N, A = tree.children_index.shape
    rows = jnp.arange(B)
    key_BX = tree.extra_data.reshape(B, N * A)
    # An argmax in two reductions, which vectorise; XLA on CPU's own does not.
    top_B1 = jnp.max(key_BX, axis=1, keepdims=True)
    place_1X = jnp.arange(N * A)[None]
    best_B = jnp.min(jnp.where(key_BX == top_B1, place_1X, N * A), axis=1)
    exists_B = top_B1[:, 0] > CLOSED
    node_B, action_B = best_B // A, best_B % A
    parent = jax.tree.map(lambda a: a[rows, node_B], tree.embeddings)
    output, node = expand(action_B, parent)

    def write(old, new):
      """Column n of the trees that grow."""
      column = jax.lax.dynamic_index_in_dim(old, n, 1, keepdims=False)
      grows = exists_B.reshape(B, *[1] * (column.ndim - 1))
      column = jnp.where(grows, new, column).astype(old.dtype)
      return jax.lax.dynamic_update_index_in_dim(old, column, n, 1)

    # Nodes from the root to the parent: slot s of the pool belongs to node s+1.
    # A node is named, and written alike, once for each token of its step; the
    # new node itself, where its step has several tokens, is overwritten below.
    above_BD = jnp.pad(node.path_slots[:, :-1] + 1, ((0, 0), (1, 0)))
    D = above_BD.shape[1]
    exists_BD = (jnp.arange(D)[None] < node.depth[:, None]) & exists_B[:, None]
    at_BD = (rows[:, None], jnp.where(exists_BD, above_BD, N))
    count_BD = tree.node_visits[rows[:, None], above_BD]
    mean_BD = tree.node_values[rows[:, None], above_BD]
    # Edges above the last have no reward and no discount.
    value_B1 = (output.reward + output.discount * output.value)[:, None]
    mean_BD = (mean_BD * count_BD + value_B1) / (count_BD + 1.0)
    edge = (rows, jnp.where(exists_B, node_B, N), action_B)
    open_BNA = tree.extra_data.at[edge].set(CLOSED, mode="drop")
    key_BA = self.keys(node)
    if node.situation is not None:
      nodes, exists_BN = tree.embeddings, tree.node_visits > 0
      key_BA = jnp.where(
        transpositions.reached(nodes, exists_BN, node), CLOSED, key_BA
      )
      late_BNA = transpositions.late(nodes, node) & exists_B[:, None, None]
      open_BNA = jnp.where(late_BNA, CLOSED, open_BNA)
    return tree.replace(
      node_visits=write(
        tree.node_visits.at[at_BD].set(count_BD + 1, mode="drop"), 1
      ),
      node_values=write(
        tree.node_values.at[at_BD].set(mean_BD, mode="drop"), output.value
      ),
      raw_values=write(tree.raw_values, output.value),
      parents=write(tree.parents, node_B),
      action_from_parent=write(tree.action_from_parent, action_B),
      children_prior_logits=write(
        tree.children_prior_logits, output.prior_logits
      ),
      embeddings=jax.tree.map(write, tree.embeddings, node),
      children_index=tree.children_index.at[edge].set(n, mode="drop"),
      children_rewards=tree.children_rewards.at[edge].set(
        output.reward, mode="drop"
      ),
      children_discounts=tree.children_discounts.at[edge].set(
        output.discount, mode="drop"
      ),
      extra_data=write(open_BNA, key_BA),
    )

  def improved(self, tree):
    """The prior reweighted by success: p(a) V(a) / sum p V, over tried moves.

    With V the probability of success below a move, this is Bayes' posterior of
    the move given success. Untried moves count with the node's own value.
    """
    p_BNA = jnp.exp(tree.children_prior_logits)
    tried_BNA = tree.children_visits > 0
    node_BN1 = tree.node_values[..., None]
    v_BNA = jnp.where(
      tried_BNA,
      tree.children_rewards + tree.children_discounts * tree.children_values,
      node_BN1,
    )
    nodes = tree.embeddings
    v_BNA = jnp.where(endings(nodes), nodes.reward[..., None], v_BNA)
    w_BNA = p_BNA * jnp.maximum(v_BNA, 1e-6)
    return w_BNA / jnp.sum(w_BNA, axis=-1, keepdims=True)


def endings(nodes) -> Array:
  """Candidates that end a response and were judged with their node, BN A."""
  A = nodes.log_prob_A.shape[-1]
  return jnp.arange(A) == nodes.ending[..., None]


def with_edges(tree: mctx.Tree) -> mctx.Tree:
  """Visits and values of edges: those of the nodes that they lead to."""
  rows_B11 = jnp.arange(tree.children_index.shape[0])[:, None, None]
  tried_BNA = tree.children_index != UNVISITED
  at = (rows_B11, jnp.maximum(tree.children_index, 0))
  return tree.replace(
    children_visits=jnp.where(tried_BNA, tree.node_visits[at], 0),
    children_values=jnp.where(tried_BNA, tree.node_values[at], 0.0),
  )
