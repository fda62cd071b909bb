"""Search rules: which node to expand next, and what a search learned.

A rule is a frozen config that is also what it configures: `run` wires one of
mctx's searches, `improved` reads the improved move distribution of every node
out of the finished tree. All rules search the same tree over the same model. A
new rule is a subclass of `Rule` in one file.
"""

import abc
import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import mctx

from tsd_jax.base.types import LOG_ZERO, Array
from tsd_jax.parallel import sharding
from tsd_jax.search.kv_pool import LoopFn


class Budget(NamedTuple):
  """What a search gives its rule to work with."""

  num_simulations: int  # Of each tree.
  max_depth: int  # Moves of a path.
  rows: int | None  # Trees that grow in a simulation; None: all, in step.
  valued: bool  # Whether leaves are valued by V_search.
  loop_fn: LoopFn  # Runs simulations; ends in `loop`.
  loop: "StoppableLoop"  # By it a rule may stop early.


@dataclasses.dataclass(frozen=True)
class Rule(abc.ABC):
  """How a tree grows.

  Attributes:
    compares_values: whether it needs unfinished leaves to have a value.
    ends_with_node: whether the answer that ends at a node is scored with the
      node, and is no move: that at the place `Node.eos_action` leads nowhere.
    reuses_slots: whether `Budget.rows` may be less than the trees.
    draws_lazily: whether it draws a step when it is tried.
    merges_states: whether moves that lead to one state are merged.
    stop_when_solved: end when every tree holds a correct response.
  """

  compares_values: ClassVar[bool] = True
  ends_with_node: ClassVar[bool] = False
  reuses_slots: ClassVar[bool] = False
  draws_lazily: ClassVar[bool] = False
  merges_states: ClassVar[bool] = False

  stop_when_solved: bool = True

  @abc.abstractmethod
  def run(
    self, key: Array, root: mctx.RootFnOutput, recurrent_fn: Any, budget: Budget
  ) -> mctx.Tree:
    """Searches.

    Args:
      key: random key, consumed.
      root: of B trees; its embedding is a `node.Node`.
      recurrent_fn: expands nodes, as mctx calls it, with () for parameters.
      budget: simulations, depth, and the loop that mctx must be given as
        `loop_fn`, by itself or as `stopping` makes it.
    """

  @abc.abstractmethod
  def improved(self, tree: mctx.Tree) -> Array:
    """The improved distribution over candidates of every node, BNA."""


def stopping(budget: Budget, stop_when_solved: bool) -> LoopFn:
  """Simulations as mctx makes them, ended when all trees are solved."""
  if not stop_when_solved:
    return budget.loop_fn

  def run(first, last, body, state):
    def step(simulation, state):
      rng_key, tree = body(simulation, state)
      budget.loop.done = all_solved(tree)
      return rng_key, tree

    return budget.loop_fn(first, last, step, state)

  return run


def all_solved(tree: mctx.Tree) -> Array:
  """Whether every tree holds a correct response, on all devices.

  All devices stop together: a tree is the same on any mesh.
  """
  solved_B = jnp.any(tree.embeddings.correct, axis=1)
  return sharding.all_shards(jnp.all(solved_B))


def value_or_node_mean(
  tree: mctx.Tree, node_index: chex.Numeric, *, revisit_penalty: float
) -> Array:
  """Q-values of a node; unvisited moves get the node's own mean value.

  Values lie in [0, 1] already, so there is nothing to rescale (mctx's min-max
  transform commits to the first branch that differs). A move whose child is a
  finished response teaches nothing when it is visited again: it is penalised.
  Steps that were merged into another are no moves.

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
  merged_A = tree.embeddings.prior_A[node_index] <= LOG_ZERO
  q_A = jnp.where(merged_A, LOG_ZERO, q_A)
  return q_A - revisit_penalty * finished_A


@dataclasses.dataclass(frozen=True)
class PUCT(Rule):
  """AlphaZero's rule: argmax of Q + c * prior * sqrt(visits) / (1 + visits)."""

  c: float = 1.25
  revisit_penalty: float = 1.0

  def run(self, key, root, recurrent_fn, budget):
    """Searches with mctx's MuZero policy, without root noise."""
    output = mctx.muzero_policy(
      params=(),
      rng_key=key,
      root=root,
      recurrent_fn=recurrent_fn,
      num_simulations=budget.num_simulations,
      max_depth=budget.max_depth,
      loop_fn=stopping(budget, self.stop_when_solved),
      qtransform=functools.partial(
        value_or_node_mean, revisit_penalty=self.revisit_penalty
      ),
      dirichlet_fraction=0.0,
      pb_c_init=self.c,
    )
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
class Gumbel(Rule):
  """Gumbel MuZero: sequential halving at the root, completed Q inside.

  Paper: "Policy improvement by planning with Gumbel",
  https://openreview.net/forum?id=bERaNdoegnO.
  """

  scale: float = 1.0  # Of the Gumbel noise at the root; 0 searches without.
  value_scale: float = 0.1
  maxvisit_init: float = 50.0

  @property
  def _qtransform(self):
    return functools.partial(
      mctx.qtransform_completed_by_mix_value,
      value_scale=self.value_scale,
      maxvisit_init=self.maxvisit_init,
      rescale_values=False,  # Values lie in [0, 1] already.
    )

  def run(self, key, root, recurrent_fn, budget):
    """Searches with mctx's Gumbel MuZero policy."""
    output = mctx.gumbel_muzero_policy(
      params=(),
      rng_key=key,
      root=root,
      recurrent_fn=recurrent_fn,
      num_simulations=budget.num_simulations,
      max_depth=budget.max_depth,
      loop_fn=stopping(budget, self.stop_when_solved),
      qtransform=self._qtransform,
      # Tokens are all distinct, and mctx would shift their logits.
      invalid_actions=(
        merged(root.embedding) if root.embedding.step_AU.shape[-1] > 1 else None
      ),
      max_num_considered_actions=root.prior_logits.shape[-1],
      gumbel_scale=self.scale,
    )
    return output.search_tree

  def improved(self, tree):
    """softmax(prior logits + completed Q) at every node."""
    nodes_N = jnp.arange(tree.node_values.shape[1])

    def completed(tree):
      return jax.vmap(self._qtransform, in_axes=(None, 0))(tree, nodes_N)

    return jax.nn.softmax(
      tree.children_prior_logits + jax.vmap(completed)(tree), axis=-1
    )


def merged(nodes) -> Array:
  """Candidates that are no moves: equal to another, and merged into it."""
  return nodes.prior_A <= LOG_ZERO


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
