"""Discrepancy best-first: the least surprising untried move of all comes next.

mctx grows its trees by a walk from the root. This rule knows the next leaf
without one, and closes moves that lead where the tree has been.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mctx

from tsd_jax.base.types import LOG_ZERO, UNVISITED, Array
from tsd_jax.search import moves, transpositions
from tsd_jax.search.kv_pool import Turn
from tsd_jax.search.node import Node
from tsd_jax.search.rules import (
  Budget,
  Rule,
  all_solved,
  may_grow,
  merged,
  most_turns,
  need_weights,
  next_turn,
  none_wait,
)

# Key of a move that cannot be expanded (any more).
CLOSED = 2 * LOG_ZERO

# (action_R, parent) -> (what mctx wants to know of the new nodes, the nodes).
Expand = Callable[[Array, Node], tuple[mctx.RecurrentFnOutput, Node]]


@dataclasses.dataclass(frozen=True)
class BestFirst(Rule):
  """Discrepancy best-first: expand the least surprising untried move.

  The open list holds every untried (node, move). Its key is
    sum over the path of log(p / p_max) + beta * log V(node) + epsilon * depth
  plus the move's own log(p / p_max), p its prior: the best one is free, so
  whole responses arise by themselves, each expansion is one new forward and
  nothing repeats. Related: limited discrepancy search (Harvey & Ginsberg,
  1995) and Levin tree search (arXiv:1811.10928).

  Attributes:
    beta: weight of the node's learned value, where leaves are valued by it.
    epsilon: bonus a token, so that ties go to the deeper node.
    lazy: draw a step when it is tried, and no other; a node then has at most
      `SearchConfig.num_candidates` draws.
    transpositions: where the task tells what responses have come to, close a
      move if the tree has been there in as many tokens or fewer
      (`transpositions.py`).
  """

  compares_values = False
  ends_with_node = True
  reuses_slots = True

  beta: float = 0.5
  epsilon: float = 0.02
  lazy: bool = False
  transpositions: bool = False

  def __post_init__(self):
    """Refuses what does not go together."""
    if self.lazy and self.transpositions:
      raise ValueError(
        "search.rule.lazy=true knows no states of moves that are not drawn: "
        "set search.rule.lazy=false or search.rule.transpositions=false"
      )
    need_weights(self, "beta", "epsilon")

  @property
  def draws_lazily(self) -> bool:
    """Whether it draws a step when it is tried."""
    return self.lazy

  @property
  def merges_states(self) -> bool:
    """Whether moves that lead to one state are merged."""
    return self.transpositions

  def run(self, key, root, recurrent_fn, budget):
    """Searches with `mctx.search`, its simulations replaced by `grow`.

    mctx walks down from the root and back up, all trees in step and their
    arrays copied at every node. Here the next leaf is known without a walk,
    and its path is known from its embedding.
    """
    beta = self.beta if budget.valued else 0.0
    keys = functools.partial(move_keys, beta=beta, epsilon=self.epsilon)
    # The open list: keys of all moves of all nodes.
    closed_BNA = jnp.full(
      (
        root.value.shape[0],
        budget.num_simulations + 1,
        root.prior_logits.shape[1],
      ),
      CLOSED,
    )
    simulate = self._in_step if budget.rows is None else self._in_turns
    return mctx.search(
      (),
      key,
      root=root,
      recurrent_fn=recurrent_fn,
      root_action_selection_fn=None,  # Used by mctx's own simulations only.
      interior_action_selection_fn=None,
      num_simulations=budget.num_simulations,
      max_depth=budget.max_depth,
      extra_data=closed_BNA.at[:, 0].set(keys(root.embedding)),
      loop_fn=functools.partial(simulate, budget, keys, recurrent_fn),
    )

  def _in_step(
    self, budget: Budget, keys, recurrent_fn, first, last, body, state
  ):
    """Every simulation grows all trees."""
    del body

    def step(simulation, state):
      rng_key, tree = state
      rng_key, expand_key = jax.random.split(rng_key)
      expand = functools.partial(recurrent_fn, (), expand_key)
      tree = grow(tree, expand, keys, simulation + 1)
      if self.stop_when_solved:
        budget.loop.done = all_solved(tree)
      return rng_key, tree

    rng_key, tree = budget.loop_fn(first, last, step, state)
    return rng_key, with_edges(tree).replace(extra_data=None)

  def _in_turns(
    self, budget: Budget, keys, recurrent_fn, first, last, body, state
  ):
    """Every simulation grows the smallest of the trees that are not done."""
    del body, last

    def turn(simulation, state):
      del simulation
      rng_key, tree, waits_B = state
      rng_key, expand_key = jax.random.split(rng_key)
      now = next_turn(tree, waits_B, budget.turn_rows)
      expand = functools.partial(recurrent_fn, now, expand_key)
      tree = grow(tree, expand, keys, now)
      waits_B = self.waits(tree)
      budget.loop.done = none_wait(waits_B)
      return rng_key, tree, waits_B

    most = most_turns(state[1].node_visits.shape[0], budget)
    state = (*state, self.waits(state[1]))
    rng_key, tree, _ = budget.loop_fn(first, most, turn, state)
    return rng_key, with_edges(tree).replace(extra_data=None)

  def waits(self, tree: mctx.Tree) -> Array:
    """Which trees may grow further, B."""
    open_B = jnp.any(tree.extra_data > CLOSED, axis=(1, 2))
    return open_B & may_grow(tree, self.stop_when_solved)

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
    v_BNA = jnp.where(eos_actions(nodes), nodes.reward[..., None], v_BNA)
    w_BNA = p_BNA * jnp.maximum(v_BNA, 1e-6)
    # Nothing is left of a node whose moves are all forbidden.
    total_BN1 = jnp.sum(w_BNA, axis=-1, keepdims=True)
    return w_BNA / jnp.maximum(total_BN1, 1e-30)


def move_keys(node: Node, *, beta: float, epsilon: float) -> Array:
  """Keys of the moves of nodes, BA; closed where a node has none."""
  key_B = (
    node.log_prob_gap
    + beta * jax.nn.log_sigmoid(node.value_logit)
    + epsilon * node.depth
  )
  log_ratio_BA = node.prior_A - node.prior_A[..., :1]
  closed_BA = (node.finished | node.cut_off)[:, None] | eos_actions(node)
  closed_BA |= merged(node)
  if node.state_key is not None:
    closed_BA |= node.state_key_A == node.state_key[:, None]
  return jnp.where(closed_BA, CLOSED, key_B[:, None] + log_ratio_BA)


class _Leaf(NamedTuple):
  """The best untried move of the trees that grow."""

  tree_R: Array  # Their numbers.
  node_R: Array
  action_R: Array
  exists_R: Array  # bool, whether there is one.


def grow(
  tree: mctx.Tree, expand: Expand, keys: Callable, at: Array | Turn
) -> mctx.Tree:
  """Expands the best untried move of trees as a new node of each.

  Visits and values of nodes are kept as mctx does. A tree in which nothing is
  left to expand stays as it is.

  Args:
    tree: the trees, with their open lists as extra data.
    expand: makes the new nodes.
    keys: of a node's moves in the open list.
    at: index of the new node, the same in all trees; or which trees grow.

  Returns:
    The trees, without visits and values of edges (`with_edges`).
  """
  B, N, _ = tree.children_index.shape
  turn = at if isinstance(at, Turn) else None
  leaf = best_leaf(tree, turn)
  parent = jax.tree.map(lambda a: a[leaf.tree_R, leaf.node_R], tree.embeddings)
  output, node = expand(leaf.action_R, parent)
  place = (leaf.tree_R, jnp.where(leaf.exists_R, leaf.node_R, N))
  if node.x_D is not None:
    tree, node = _enter_draw(tree, parent, node, leaf.action_R, place, keys)

  def write(old, new):
    """The new node of the trees that grow."""
    if turn is not None:
      row_R = jnp.where(leaf.exists_R, leaf.tree_R, B)
      return old.at[row_R, turn.slot_R + 1].set(new, mode="drop")
    # The same column in all trees, written as one.
    column = jax.lax.dynamic_index_in_dim(old, at, 1, keepdims=False)
    grows = leaf.exists_R.reshape(B, *[1] * (column.ndim - 1))
    column = jnp.where(grows, new, column).astype(old.dtype)
    return jax.lax.dynamic_update_index_in_dim(old, column, at, 1)

  visits_BN, values_BN = back_up(tree, node, output, leaf)
  edge = (*place, leaf.action_R)
  open_BNA, key_RA = close_seen(
    tree.extra_data.at[edge].set(CLOSED, mode="drop"),
    keys(node), tree, node, leaf, turn,
  )  # fmt: skip
  child_R = at if turn is None else turn.slot_R + 1
  return tree.replace(
    node_visits=write(visits_BN, 1),
    node_values=write(values_BN, output.value),
    raw_values=write(tree.raw_values, output.value),
    parents=write(tree.parents, leaf.node_R),
    action_from_parent=write(tree.action_from_parent, leaf.action_R),
    children_prior_logits=write(
      tree.children_prior_logits, output.prior_logits
    ),
    embeddings=jax.tree.map(write, tree.embeddings, node),
    children_index=tree.children_index.at[edge].set(child_R, mode="drop"),
    children_rewards=tree.children_rewards.at[edge].set(
      output.reward, mode="drop"
    ),
    children_discounts=tree.children_discounts.at[edge].set(
      output.discount, mode="drop"
    ),
    extra_data=write(open_BNA, key_RA),
  )


def best_leaf(tree: mctx.Tree, turn: Turn | None) -> _Leaf:
  """The open move with the greatest key of every tree that grows."""
  B, N, A = tree.children_index.shape
  tree_R, open_RNA = jnp.arange(B), tree.extra_data
  if turn is not None:
    tree_R = tree_R[turn.tree_R]
    open_RNA = open_RNA[turn.tree_R]
  key_RX = open_RNA.reshape(-1, N * A)
  # An argmax in two reductions, which vectorise; XLA on CPU's own does not.
  top_R1 = jnp.max(key_RX, axis=1, keepdims=True)
  place_1X = jnp.arange(N * A)[None]
  best_R = jnp.min(jnp.where(key_RX == top_R1, place_1X, N * A), axis=1)
  exists_R = top_R1[:, 0] > CLOSED
  if turn is not None:
    exists_R &= turn.grows_R
  return _Leaf(tree_R, best_R // A, best_R % A, exists_R)


def _enter_draw(tree, parent, node, action_R, place, keys):
  """A step that was drawn when it was tried, entered in its parent."""
  offered, node = moves.record(parent, node, action_R)
  offered = offered._asdict()
  embeddings = tree.embeddings.replace(
    **{
      name: getattr(tree.embeddings, name).at[place].set(new, mode="drop")
      for name, new in offered.items()
    }
  )
  prior_BNA = tree.children_prior_logits.at[place].set(
    offered["log_prob_A"], mode="drop"
  )
  later_RA = jnp.arange(prior_BNA.shape[-1])[None] > action_R[:, None]
  key_RA = jnp.where(later_RA, keys(parent.replace(**offered)), CLOSED)
  return tree.replace(
    embeddings=embeddings,
    children_prior_logits=prior_BNA,
    extra_data=tree.extra_data.at[place].set(key_RA, mode="drop"),
  ), node


def back_up(
  tree: mctx.Tree, node: Node, output: mctx.RecurrentFnOutput, leaf: _Leaf
) -> tuple[Array, Array]:
  """Visits and mean values of the nodes above new ones, BN each."""
  N = tree.children_index.shape[1]
  tree_R1 = leaf.tree_R[:, None]
  # Nodes from the root to the parent: slot s of the pool belongs to node s+1.
  # A node is named, and written alike, once for each token of its step; the
  # new node itself, where its step has several tokens, is overwritten later.
  above_RT = jnp.pad(node.path_slots[:, :-1] + 1, ((0, 0), (1, 0)))
  T = above_RT.shape[1]
  exists_RT = jnp.arange(T)[None] < node.depth[:, None]
  exists_RT &= leaf.exists_R[:, None]
  at_RT = (tree_R1, jnp.where(exists_RT, above_RT, N))
  count_RT = tree.node_visits[tree_R1, above_RT]
  mean_RT = tree.node_values[tree_R1, above_RT]
  # Edges above the last have no reward and no discount.
  value_R1 = (output.reward + output.discount * output.value)[:, None]
  mean_RT = (mean_RT * count_RT + value_R1) / (count_RT + 1.0)
  return (
    tree.node_visits.at[at_RT].set(count_RT + 1, mode="drop"),
    tree.node_values.at[at_RT].set(mean_RT, mode="drop"),
  )


def close_seen(
  open_BNA: Array,
  key_RA: Array,
  tree: mctx.Tree,
  node: Node,
  leaf: _Leaf,
  turn: Turn | None,
) -> tuple[Array, Array]:
  """The open list and new keys, without moves to where a tree has been."""
  if node.state_key is None:
    return open_BNA, key_RA

  def of_rows(x_B):
    """What belongs to the trees that grow."""
    return x_B if turn is None else x_B[turn.tree_R]

  nodes = jax.tree.map(of_rows, tree.embeddings)
  made_RN = of_rows(tree.node_visits) > 0
  reached_RA = transpositions.reached(nodes, made_RN, node)
  key_RA = jnp.where(reached_RA, CLOSED, key_RA)
  late_RNA = transpositions.late(nodes, node) & leaf.exists_R[:, None, None]
  if turn is None:
    return jnp.where(late_RNA, CLOSED, open_BNA), key_RA
  closed_RNA = jnp.where(late_RNA, CLOSED, jnp.inf)
  return open_BNA.at[leaf.tree_R].min(closed_RNA), key_RA


def eos_actions(nodes) -> Array:
  """Candidates that end a response and are scored with their node, BN A."""
  A = nodes.log_prob_A.shape[-1]
  return jnp.arange(A) == nodes.eos_action[..., None]


def with_edges(tree: mctx.Tree) -> mctx.Tree:
  """Visits and values of edges: those of the nodes that they lead to."""
  rows_B11 = jnp.arange(tree.children_index.shape[0])[:, None, None]
  tried_BNA = tree.children_index != UNVISITED
  at = (rows_B11, jnp.maximum(tree.children_index, 0))
  return tree.replace(
    children_visits=jnp.where(tried_BNA, tree.node_visits[at], 0),
    children_values=jnp.where(tried_BNA, tree.node_values[at], 0.0),
  )
