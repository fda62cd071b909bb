"""Discrepancy best-first: the least surprising untried move of all comes next.

mctx grows its trees by a walk from the root. This rule knows the next leaf
without one, and closes moves that lead where the tree has been.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import mctx

from tsd_jax.base.types import LOG_ZERO, UNVISITED, Array
from tsd_jax.parallel import sharding
from tsd_jax.search import moves, transpositions
from tsd_jax.search.kv_pool import Turn
from tsd_jax.search.rules import merged

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
  (`transpositions.py`). Related: limited discrepancy search (Harvey &
  Ginsberg, 1995) and Levin tree search (arXiv:1811.10928).

  Attributes:
    beta: weight of the node's learned value; 0 ignores it.
    epsilon: bonus a token, so that ties go to the deeper node.
    stop_when_solved: end when every tree holds a correct response.
    trees: how many grow in a simulation, at most all there are: the smallest of
      those that are not finished; None is all, in step.
  """

  beta: float = 0.0
  epsilon: float = 0.02
  stop_when_solved: bool = True
  trees: int | None = None

  def run(
    self, key, root, recurrent_fn, *, num_simulations, max_depth, loop_fn, loop
  ):
    """Searches with `mctx.search`, its simulations replaced by `grow`.

    mctx walks down from the root and back up, all trees in step and their
    arrays copied at every node. Here the next leaf is known without a walk,
    and its path is known from its embedding.
    """

    B = root.value.shape[0]

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
          loop.done = sharding.all_shards(jnp.all(solved_B))
        return rng_key, tree

      def turn(simulation, state):
        del simulation
        rng_key, tree, waits_B = state
        rng_key, expand_key = jax.random.split(rng_key)
        now = next_turn(tree, waits_B, self.trees)
        tree = self.grow(
          tree, functools.partial(recurrent_fn, now, expand_key), now
        )
        waits_B = self.waits(tree)
        # Devices that share a model must make the same simulations.
        loop.done = sharding.all_shards(~jnp.any(waits_B))
        return rng_key, tree, waits_B

      if self.trees is None:
        rng_key, tree = loop_fn(first, last, step, state)
      else:
        state = (*state, self.waits(state[1]))
        # Full turns, and those in which the last trees end.
        most = (B // self.trees + 1) * num_simulations
        rng_key, tree, _ = loop_fn(first, most, turn, state)
      return rng_key, with_edges(tree).replace(extra_data=None)

    # The open list: keys of all moves of all nodes.
    closed_BNA = jnp.full(
      (B, num_simulations + 1, root.prior_logits.shape[1]), CLOSED
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
      node.log_prob_gap
      + self.beta * jax.nn.log_sigmoid(node.value_logit)
      + self.epsilon * node.depth
    )
    log_ratio_BA = node.prior_A - node.prior_A[..., :1]
    closed_BA = (node.finished | node.cut_off)[:, None] | eos_actions(node)
    closed_BA |= merged(node)
    if node.state_key is not None:
      closed_BA |= node.state_key_A == node.state_key[:, None]
    return jnp.where(closed_BA, CLOSED, key_B[:, None] + log_ratio_BA)

  def waits(self, tree: mctx.Tree) -> Array:
    """Which trees may grow further, B."""
    waits_B = jnp.any(tree.extra_data > CLOSED, axis=(1, 2))
    waits_B &= simulations(tree) < tree.node_visits.shape[1] - 1
    if self.stop_when_solved:
      waits_B &= ~jnp.any(tree.embeddings.correct, axis=1)
    return waits_B

  def grow(self, tree: mctx.Tree, expand, at: Array | Turn) -> mctx.Tree:
    """Expands the best untried move of trees as a new node of each.

    Visits and values of nodes are kept as mctx does. A tree in which nothing
    is left to expand stays as it is.

    Args:
      tree: the trees, with their open lists as extra data.
      expand: (action_R, parent) -> (mctx.RecurrentFnOutput, node).
      at: index of the new node, the same in all trees; or which trees grow.

    Returns:
      The trees, without visits and values of edges (`with_edges`).
    """
    B, N, A = tree.children_index.shape
    turn = at if isinstance(at, Turn) else None

    def of_rows(x_B):
      """What belongs to the trees that grow."""
      return x_B if turn is None else x_B[turn.tree_R]

    tree_R = of_rows(jnp.arange(B))
    open_RNA = of_rows(tree.extra_data)
    R = tree_R.shape[0]
    key_RX = open_RNA.reshape(R, N * A)
    # An argmax in two reductions, which vectorise; XLA on CPU's own does not.
    top_R1 = jnp.max(key_RX, axis=1, keepdims=True)
    place_1X = jnp.arange(N * A)[None]
    best_R = jnp.min(jnp.where(key_RX == top_R1, place_1X, N * A), axis=1)
    exists_R = top_R1[:, 0] > CLOSED
    if turn is not None:
      exists_R &= turn.grows_R
    node_R, action_R = best_R // A, best_R % A
    parent = jax.tree.map(lambda a: a[tree_R, node_R], tree.embeddings)
    output, node = expand(action_R, parent)
    place = (tree_R, jnp.where(exists_R, node_R, N))
    embeddings, prior_BNA = tree.embeddings, tree.children_prior_logits
    open_BNA = tree.extra_data
    if node.x_D is not None:
      offered, node = moves.record(parent, node, action_R)
      offered = offered._asdict()
      embeddings = embeddings.replace(
        **{
          name: embeddings[name].at[place].set(new, mode="drop")
          for name, new in offered.items()
        }
      )
      prior_BNA = prior_BNA.at[place].set(offered["log_prob_A"], mode="drop")
      later_RA = jnp.arange(A)[None] > action_R[:, None]
      key_RA = jnp.where(later_RA, self.keys(parent.replace(**offered)), CLOSED)
      open_BNA = open_BNA.at[place].set(key_RA, mode="drop")

    def write(old, new):
      """The new node of the trees that grow."""
      if turn is not None:
        row_R = jnp.where(exists_R, tree_R, B)
        return old.at[row_R, turn.slot_R + 1].set(new, mode="drop")
      # The same column in all trees, written as one.
      column = jax.lax.dynamic_index_in_dim(old, at, 1, keepdims=False)
      grows = exists_R.reshape(B, *[1] * (column.ndim - 1))
      column = jnp.where(grows, new, column).astype(old.dtype)
      return jax.lax.dynamic_update_index_in_dim(old, column, at, 1)

    # Nodes from the root to the parent: slot s of the pool belongs to node s+1.
    # A node is named, and written alike, once for each token of its step; the
    # new node itself, where its step has several tokens, is overwritten below.
    above_RT = jnp.pad(node.path_slots[:, :-1] + 1, ((0, 0), (1, 0)))
    D = above_RT.shape[1]
    exists_RT = (jnp.arange(D)[None] < node.depth[:, None]) & exists_R[:, None]
    at_RT = (tree_R[:, None], jnp.where(exists_RT, above_RT, N))
    count_RT = tree.node_visits[tree_R[:, None], above_RT]
    mean_RT = tree.node_values[tree_R[:, None], above_RT]
    # Edges above the last have no reward and no discount.
    value_R1 = (output.reward + output.discount * output.value)[:, None]
    mean_RT = (mean_RT * count_RT + value_R1) / (count_RT + 1.0)
    edge = (*place, action_R)
    open_BNA = open_BNA.at[edge].set(CLOSED, mode="drop")
    key_RA = self.keys(node)
    if node.state_key is not None:
      nodes = jax.tree.map(of_rows, tree.embeddings)
      made_RN = of_rows(tree.node_visits) > 0
      key_RA = jnp.where(
        transpositions.reached(nodes, made_RN, node), CLOSED, key_RA
      )
      late_RNA = transpositions.late(nodes, node) & exists_R[:, None, None]
      if turn is None:
        open_BNA = jnp.where(late_RNA, CLOSED, open_BNA)
      else:
        closed_RNA = jnp.where(late_RNA, CLOSED, jnp.inf)
        open_BNA = open_BNA.at[tree_R].min(closed_RNA)
    child_R = at if turn is None else turn.slot_R + 1
    return tree.replace(
      node_visits=write(
        tree.node_visits.at[at_RT].set(count_RT + 1, mode="drop"), 1
      ),
      node_values=write(
        tree.node_values.at[at_RT].set(mean_RT, mode="drop"), output.value
      ),
      raw_values=write(tree.raw_values, output.value),
      parents=write(tree.parents, node_R),
      action_from_parent=write(tree.action_from_parent, action_R),
      children_prior_logits=write(prior_BNA, output.prior_logits),
      embeddings=jax.tree.map(write, embeddings, node),
      children_index=tree.children_index.at[edge].set(child_R, mode="drop"),
      children_rewards=tree.children_rewards.at[edge].set(
        output.reward, mode="drop"
      ),
      children_discounts=tree.children_discounts.at[edge].set(
        output.discount, mode="drop"
      ),
      extra_data=write(open_BNA, key_RA),
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
    v_BNA = jnp.where(eos_actions(nodes), nodes.reward[..., None], v_BNA)
    w_BNA = p_BNA * jnp.maximum(v_BNA, 1e-6)
    return w_BNA / jnp.sum(w_BNA, axis=-1, keepdims=True)


def simulations(tree: mctx.Tree) -> Array:
  """How many each tree has made, B: its nodes but the root."""
  return jnp.sum(tree.node_visits > 0, axis=1) - 1


def next_turn(tree: mctx.Tree, waits_B: Array, rows: int) -> Turn:
  """The smallest of the trees that wait, so that the last ones end together."""
  made_B = simulations(tree)
  last = tree.node_visits.shape[1] - 1
  _, tree_R = jax.lax.top_k(jnp.where(waits_B, -made_B, -last), rows)
  slot_R = jnp.minimum(made_B[tree_R], last - 1)
  return Turn(tree_R, slot_R, waits_B[tree_R])


def eos_actions(nodes) -> Array:
  """Candidates that end a response and were judged with their node, BN A."""
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
