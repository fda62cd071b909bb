"""Search rules: which node to expand next, and what a search learned.

A rule is a small object with two methods: `run` wires one of mctx's searches,
`improved` reads the improved move distribution of every node out of the
finished tree. All rules search the same tree over the same model.
"""

import dataclasses
import functools
from typing import Any, Protocol

import chex
import jax
import jax.numpy as jnp
import mctx

from tsd_jax import sharding
from tsd_jax.search.kv_pool import LoopFn
from tsd_jax.types import LOG_ZERO, UNVISITED, Array


class Rule(Protocol):
  """How a tree grows."""

  def run(
    self,
    key: Array,
    root: mctx.RootFnOutput,
    recurrent_fn: Any,
    *,
    num_simulations: int,
    max_depth: int,
    loop_fn: LoopFn,
    loop: "StoppableLoop",
  ) -> mctx.Tree:
    """Searches. `loop_fn` ends in `loop`, which a rule may stop early."""

  def improved(self, tree: mctx.Tree) -> Array:
    """The improved distribution over candidates of every node, BNA."""


def value_or_node_mean(
  tree: mctx.Tree, node_index: chex.Numeric, *, revisit_penalty: float
) -> Array:
  """Q-values of a node; unvisited moves get the node's own mean value.

  Rewards lie in [0, 1] already, so there is nothing to rescale (mctx's min-max
  transform commits to the first branch that differs). A move whose child is a
  finished response teaches nothing when it is visited again: it is penalised.

  Args:
    tree: unbatched tree.
    node_index: scalar index.
    revisit_penalty: subtracted from moves that lead to a finished node.

  Returns:
    Q-values, shape A.
  """
  q_A = tree.qvalues(node_index)
  visited_A = tree.children_visits[node_index] > 0
  child_A = tree.children_index[node_index]
  finished_A = visited_A & tree.embeddings.finished[child_A]
  q_A = jnp.where(visited_A, q_A, tree.node_values[node_index])
  return q_A - revisit_penalty * finished_A


@dataclasses.dataclass(frozen=True)
class PUCT:
  """AlphaZero's rule: argmax of Q + c * prior * sqrt(visits) / (1 + visits)."""

  c_puct: float = 1.25
  revisit_penalty: float = 1.0

  def run(
    self, key, root, recurrent_fn, *, num_simulations, max_depth, loop_fn, loop
  ):
    """Searches with mctx's MuZero policy, without root noise."""
    output = mctx.muzero_policy(
      params=(),
      rng_key=key,
      root=root,
      recurrent_fn=recurrent_fn,
      num_simulations=num_simulations,
      max_depth=max_depth,
      loop_fn=loop_fn,
      qtransform=functools.partial(
        value_or_node_mean, revisit_penalty=self.revisit_penalty
      ),
      dirichlet_fraction=0.0,
      pb_c_init=self.c_puct,
    )
    del loop
    return output.search_tree

  def improved(self, tree):
    """Visit frequencies; the prior where no child was visited."""
    visits_BNA = tree.children_visits.astype(jnp.float32)
    total_BN1 = jnp.sum(visits_BNA, axis=-1, keepdims=True)
    return jnp.where(
      total_BN1 > 0,
      visits_BNA / jnp.maximum(total_BN1, 1.0),
      jax.nn.softmax(tree.children_prior_logits, axis=-1),
    )


@dataclasses.dataclass(frozen=True)
class Gumbel:
  """Gumbel MuZero: sequential halving at the root, completed Q inside.

  Paper: "Policy improvement by planning with Gumbel",
  https://openreview.net/forum?id=bERaNdoegnO.
  """

  gumbel_scale: float = 1.0
  value_scale: float = 0.1
  maxvisit_init: float = 50.0

  @property
  def _qtransform(self):
    return functools.partial(
      mctx.qtransform_completed_by_mix_value,
      value_scale=self.value_scale,
      maxvisit_init=self.maxvisit_init,
      rescale_values=False,  # Rewards lie in [0, 1] already.
    )

  def run(
    self, key, root, recurrent_fn, *, num_simulations, max_depth, loop_fn, loop
  ):
    """Searches with mctx's Gumbel MuZero policy."""
    output = mctx.gumbel_muzero_policy(
      params=(),
      rng_key=key,
      root=root,
      recurrent_fn=recurrent_fn,
      num_simulations=num_simulations,
      max_depth=max_depth,
      loop_fn=loop_fn,
      qtransform=self._qtransform,
      max_num_considered_actions=root.prior_logits.shape[-1],
      gumbel_scale=self.gumbel_scale,
    )
    del loop
    return output.search_tree

  def improved(self, tree):
    """softmax(prior logits + completed Q) at every node."""
    nodes_N = jnp.arange(tree.node_values.shape[1])

    def completed(tree):
      return jax.vmap(self._qtransform, in_axes=(None, 0))(tree, nodes_N)

    return jax.nn.softmax(
      tree.children_prior_logits + jax.vmap(completed)(tree), axis=-1
    )


@chex.dataclass(frozen=True)
class Plan:
  """Where the next simulation of each tree goes: moves from the root down."""

  actions_BD: Array


@dataclasses.dataclass(frozen=True)
class BestFirst:
  """Discrepancy best-first: expand the least surprising untried move.

  The open list holds every untried (node, move). Its key is
    sum over the path of log(p / p_max) + beta * log V(node) + epsilon * depth
  plus the move's own log(p / p_max): the greedy continuation is free, so
  finished responses arise by themselves, each expansion is one new forward and
  nothing repeats. Related: limited discrepancy search (Harvey & Ginsberg, 1995)
  and Levin tree search (arXiv:1811.10928).

  Attributes:
    beta: weight of the node's learned value; 0 ignores it.
    epsilon: bonus a level, so that ties go to the deeper node.
    stop_when_solved: end when every tree holds a correct response.
  """

  beta: float = 0.0
  epsilon: float = 0.02
  stop_when_solved: bool = True

  def run(
    self, key, root, recurrent_fn, *, num_simulations, max_depth, loop_fn, loop
  ):
    """Searches with `mctx.search`; the plan travels in `extra_data`."""
    B = root.value.shape[0]

    def follow(_, tree, node_index, depth):
      del node_index
      # mctx counts depth in the dtype of the priors.
      return tree.extra_data.actions_BD[jnp.int32(depth)]

    def follow_root(rng_key, tree, node_index):
      return follow(rng_key, tree, node_index, 0)

    def planned_loop(first, last, body, state):
      def step(simulation, state):
        rng_key, tree = state
        plan = self.plan(tree)
        state = body(simulation, (rng_key, tree.replace(extra_data=plan)))
        if self.stop_when_solved:
          solved_B = jnp.any(state[1].embeddings.correct, axis=1)
          # All devices stop together: a tree is the same on any mesh.
          loop.done = sharding.all_parts(jnp.all(solved_B))
        return state

      return loop_fn(first, last, step, state)

    return mctx.search(
      (),
      key,
      root=root,
      recurrent_fn=recurrent_fn,
      root_action_selection_fn=follow_root,
      interior_action_selection_fn=follow,
      num_simulations=num_simulations,
      max_depth=max_depth,
      extra_data=Plan(actions_BD=jnp.zeros((B, max_depth), jnp.int32)),
      loop_fn=planned_loop,
    )

  def plan(self, tree: mctx.Tree) -> Plan:
    """The best untried (node, move) of every tree, as moves from the root."""
    nodes = tree.embeddings
    B, N, A = tree.children_index.shape
    open_BN = (tree.node_visits > 0) & ~nodes.finished & ~nodes.cut_off
    log_ratio_BNA = nodes.log_prob_A - nodes.log_prob_A[..., :1]
    key_BN = (
      nodes.discrepancy
      + self.beta * jax.nn.log_sigmoid(nodes.value_logit)
      + self.epsilon * nodes.depth
    )
    key_BNA = jnp.where(
      open_BN[..., None] & (tree.children_index == UNVISITED),
      key_BN[..., None] + log_ratio_BNA,
      2 * LOG_ZERO,
    )
    best_B = jnp.argmax(key_BNA.reshape(B, N * A), axis=1)
    node_B, action_B = best_B // A, best_B % A
    rows = jnp.arange(B)
    path_BD = nodes.path_actions[rows, node_B]
    depth_B = nodes.depth[rows, node_B]
    here_BD = jnp.arange(path_BD.shape[1])[None] == depth_B[:, None]
    return Plan(actions_BD=jnp.where(here_BD, action_B[:, None], path_BD))

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
    w_BNA = p_BNA * jnp.maximum(v_BNA, 1e-6)
    return w_BNA / jnp.sum(w_BNA, axis=-1, keepdims=True)


class StoppableLoop:
  """mctx's simulation loop, which a body may end early and add a count to.

  The two attributes are trace-time cells: a body assigns traced values to them
  while it is traced, and the loop carries them.

  Attributes:
    done: set by a body to end the loop after its simulation.
    count: added to by a body; its total after the loop.
    steps: simulations made, after the loop.
  """

  def __init__(self):
    """Starts at zero."""
    self.done = jnp.bool_(False)
    self.count = jnp.int32(0)
    self.steps = jnp.int32(0)

  def __call__(self, first, last, body, state):
    """Runs `state = body(i, state)` for i in [first, last) or until done."""

    def step(carry):
      i, _, self.count, state = carry
      self.done = jnp.bool_(False)
      state = body(i, state)
      return i + 1, self.done, self.count, state

    start = (jnp.int32(first), jnp.bool_(False), jnp.int32(0), state)
    self.steps, self.done, self.count, state = jax.lax.while_loop(
      lambda carry: (carry[0] < last) & ~carry[1], step, start
    )
    return state
