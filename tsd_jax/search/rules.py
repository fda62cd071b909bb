"""Search rules: which node to expand next, and what a search learned.

A rule is a frozen config that is also what it configures: `run` wires one of
mctx's searches, `improved` reads the improved move distribution of every node
out of the finished tree. All rules search the same tree over the same model. A
new rule is a subclass of `Rule` in one file.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import mctx

from tsd_jax.base.errors import not_weights, refuse
from tsd_jax.base.types import LOG_ZERO, Array
from tsd_jax.parallel import sharding
from tsd_jax.search.kv_pool import LoopFn, Turn


class Budget(NamedTuple):
  """What a search gives its rule to work with."""

  num_simulations: int  # Of each tree.
  max_depth: int  # Moves of a path.
  rows: int | None  # Trees that grow in a simulation; None: all, in step.
  valued: bool  # Whether leaves are valued by V_search.
  loop_fn: LoopFn  # Runs simulations; ends in `loop`.
  loop: "StoppableLoop"  # By it a rule may stop early.

  @property
  def turn_rows(self) -> int:
    """Trees that grow in a turn, of a search in turns."""
    assert self.rows is not None
    return self.rows


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


def need_weights(rule: Rule, *fields: str) -> None:
  """Refuses fields of a rule by which no key is larger than another.

  Raises:
    ValueError: one is negative, infinite or NaN.
  """
  numbers = {field: getattr(rule, field) for field in fields}
  refuse(not_weights("search.rule", numbers))


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


def policy_loop(budget: Budget, stop_when_solved: bool) -> LoopFn:
  """What a policy of mctx gets for its loop; none where trees take turns."""
  if budget.rows is not None:
    return no_simulations
  return stopping(budget, stop_when_solved)


def no_simulations(first, last, body, state):
  """A loop that makes none, in place of mctx's: the trees are their roots."""
  del first, last, body
  return state


def in_turns(
  key: Array,
  start: mctx.Tree,
  recurrent_fn: Any,
  budget: Budget,
  stop_when_solved: bool,
  root_selection_fn: Callable,
  interior_selection_fn: Callable,
  data_of: Callable[[Turn], Any] | None = None,
) -> mctx.Tree:
  """Simulations as mctx makes them, of `Budget.rows` trees at a time.

  mctx's own simulation grows all trees that it is given, and names the new
  nodes after the number of the simulation. Here it is given the trees whose
  turn it is, with the number that each of them has made; what has become of
  them is written back. So a tree grows as it does among all others.

  Args:
    key: random key, consumed.
    start: B trees before their first simulation, as a policy of mctx makes
      them with `no_simulations`.
    recurrent_fn: expands nodes.
    budget: simulations, depth, the loop, how many trees grow at a time.
    stop_when_solved: give the place of a solved tree to another.
    root_selection_fn: the policy's, as `mctx.search` takes it.
    interior_selection_fn: the same below the root.
    data_of: extra data of the trees of a turn; by default their own.

  Returns:
    The B trees.
  """
  turns = _Turns(start, recurrent_fn, budget, stop_when_solved, data_of)
  R = budget.rows
  return mctx.search(
    (),
    key,
    # Of as many trees as a turn has; they are made and never used.
    root=mctx.RootFnOutput(
      prior_logits=start.children_prior_logits[:R, 0],
      value=start.node_values[:R, 0],
      embedding=jax.tree.map(lambda a: a[:R, 0], start.embeddings),
    ),
    recurrent_fn=turns.expand,
    root_action_selection_fn=root_selection_fn,
    interior_action_selection_fn=interior_selection_fn,
    num_simulations=budget.num_simulations,
    max_depth=budget.max_depth,
    loop_fn=turns.loop,
  )


@dataclasses.dataclass
class _Turns:
  """What `in_turns` gives to mctx; it lives while a program is traced."""

  start: mctx.Tree
  recurrent_fn: Any
  budget: Budget
  stop_when_solved: bool
  data_of: Callable[[Turn], Any] | None
  now: Turn | None = None  # Set before mctx's simulation, which expands in it.

  def expand(self, params, rng_key, action_R, parent):
    """The search's expansion, of the trees whose turn it is."""
    del params
    return self.recurrent_fn(self.now, rng_key, action_R, parent)

  def loop(self, first, last, body, state):
    """In place of mctx's loop: `body` is its simulation."""
    del last

    def turn(simulation, state):
      del simulation
      return self.turn(body, *state)

    rng_key, _ = state
    state = rng_key, self.start, self.waits(self.start)
    most = most_turns(self.start.node_visits.shape[0], self.budget)
    rng_key, trees, _ = self.budget.loop_fn(first, most, turn, state)
    return rng_key, trees

  def turn(self, body, rng_key: Array, trees: mctx.Tree, waits_B: Array):
    """A simulation of some of the trees."""
    now = self.now = next_turn(trees, waits_B, self.budget.turn_rows)
    grown = jax.tree.map(lambda a: a[now.tree_R], trees)
    if self.data_of is not None:
      grown = grown.replace(extra_data=self.data_of(now))
    rng_key, grown = body(now.slot_R, (rng_key, grown))
    if self.data_of is not None:
      grown = grown.replace(extra_data=None)
    # A place for which no tree waits holds one that stays as it is.
    row_R = jnp.where(now.grows_R, now.tree_R, waits_B.shape[0])
    trees = jax.tree.map(
      lambda a, new: a.at[row_R].set(new, mode="drop"), trees, grown
    )
    waits_B = self.waits(trees)
    self.budget.loop.done = none_wait(waits_B)
    return rng_key, trees, waits_B

  def waits(self, trees: mctx.Tree) -> Array:
    """Which trees may grow further, B."""
    return may_grow(trees, self.stop_when_solved)


def simulations(tree: mctx.Tree) -> Array:
  """How many each tree has made, B: visits of its root after the first."""
  return tree.node_visits[:, 0] - 1


def may_grow(tree: mctx.Tree, stop_when_solved: bool) -> Array:
  """Which trees have simulations left, and are not done, B."""
  waits_B = simulations(tree) < tree.node_visits.shape[1] - 1
  if stop_when_solved:
    waits_B &= ~solved(tree)
  return waits_B


def none_wait(waits_B: Array) -> Array:
  """Whether all trees are done, on all devices.

  Devices that share a model must make the same simulations.
  """
  return sharding.all_shards(~jnp.any(waits_B))


def next_turn(tree: mctx.Tree, waits_B: Array, rows: int) -> Turn:
  """The smallest of the trees that wait, so that the last ones end together."""
  made_B = simulations(tree)
  last = tree.node_visits.shape[1] - 1
  _, tree_R = jax.lax.top_k(jnp.where(waits_B, -made_B, -last), rows)
  slot_R = jnp.minimum(made_B[tree_R], last - 1)
  return Turn(tree_R, slot_R, waits_B[tree_R])


def most_turns(trees: int, budget: Budget) -> int:
  """Turns in which all trees have come to their end.

  Full ones, and those in which the last trees end.
  """
  return (trees // budget.turn_rows + 1) * budget.num_simulations


def all_solved(tree: mctx.Tree) -> Array:
  """Whether every tree holds a correct response, on all devices.

  All devices stop together: a tree is the same on any mesh.
  """
  return sharding.all_shards(jnp.all(solved(tree)))


def solved(tree: mctx.Tree) -> Array:
  """Which trees hold a correct response, B."""
  return jnp.any(tree.embeddings.correct, axis=1)


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
    revisit_penalty: subtracted from moves that lead to a finished node, or to
      one that is refused.

  Returns:
    Q-values, shape A.
  """
  q_A = tree.qvalues(node_index)
  visited_A = tree.children_visits[node_index] > 0
  child_A = tree.children_index[node_index]
  over_N = tree.embeddings.finished
  if tree.embeddings.refused is not None:
    over_N |= tree.embeddings.refused
  over_A = visited_A & over_N[child_A]
  q_A = jnp.where(visited_A, q_A, tree.node_values[node_index])
  merged_A = tree.embeddings.prior_A[node_index] <= LOG_ZERO
  q_A = jnp.where(merged_A, LOG_ZERO, q_A)
  return q_A - revisit_penalty * over_A


@dataclasses.dataclass(frozen=True)
class PUCT(Rule):
  """AlphaZero's rule: argmax of Q + c * prior * sqrt(visits) / (1 + visits)."""

  reuses_slots = True

  c: float = 1.25
  revisit_penalty: float = 1.0

  def __post_init__(self):
    """Refuses what orders no moves."""
    need_weights(self, "c", "revisit_penalty")

  def run(self, key, root, recurrent_fn, budget):
    """Searches with mctx's MuZero policy, without root noise."""
    qtransform = functools.partial(
      value_or_node_mean, revisit_penalty=self.revisit_penalty
    )
    output = mctx.muzero_policy(
      params=(),
      rng_key=key,
      root=root,
      recurrent_fn=recurrent_fn,
      num_simulations=budget.num_simulations,
      max_depth=budget.max_depth,
      loop_fn=policy_loop(budget, self.stop_when_solved),
      qtransform=qtransform,
      dirichlet_fraction=0.0,
      pb_c_init=self.c,
    )
    if budget.rows is None:
      return output.search_tree
    return self._in_turns(
      key, output.search_tree, recurrent_fn, budget, qtransform
    )

  def _in_turns(self, key, start, recurrent_fn, budget, qtransform):
    """Trees that take turns, and break ties as they do in step.

    mctx breaks them by a key of the simulation and the tree's place in it. In
    turns a tree has neither, but knows which they would be.
    """
    B = start.node_visits.shape[0]
    key = jax.random.split(key, 3)[2]  # As the policy splits it.
    key_NB = walk_keys(key, budget.num_simulations, B)

    def select(rng_key, tree, node_index, depth):
      del rng_key
      key = jax.lax.fori_loop(
        0,
        jnp.int32(depth),
        lambda _, key: jax.random.split(key)[0],
        tree.extra_data,
      )
      return mctx.muzero_action_selection(
        jax.random.split(key)[1], tree, node_index, depth,
        pb_c_init=self.c, qtransform=qtransform,
      )  # fmt: skip

    return in_turns(
      key,
      start,
      recurrent_fn,
      budget,
      self.stop_when_solved,
      functools.partial(select, depth=0),
      select,
      lambda turn: key_NB[turn.slot_R, turn.tree_R],
    )

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

  reuses_slots = True

  scale: float = 1.0  # Of the Gumbel noise at the root; 0 searches without.
  value_scale: float = 0.1
  maxvisit_init: float = 50.0

  def __post_init__(self):
    """Refuses what orders no moves."""
    need_weights(self, "scale", "value_scale", "maxvisit_init")

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
    A = root.prior_logits.shape[-1]
    output = mctx.gumbel_muzero_policy(
      params=(),
      rng_key=key,
      root=root,
      recurrent_fn=recurrent_fn,
      num_simulations=budget.num_simulations,
      max_depth=budget.max_depth,
      loop_fn=policy_loop(budget, self.stop_when_solved),
      qtransform=self._qtransform,
      # Tokens are all distinct, and mctx would shift their logits.
      invalid_actions=(
        merged(root.embedding)
        if root.embedding.step_AU.shape[-1] > 1
        or root.embedding.forbidden_A is not None
        else None
      ),
      max_num_considered_actions=A,
      gumbel_scale=self.scale,
    )
    if budget.rows is None:
      return output.search_tree
    # A tree's noise is in it, and its halving goes by its own visits: no
    # selection knows of other trees, or of random keys.
    return in_turns(
      key,
      output.search_tree,
      recurrent_fn,
      budget,
      self.stop_when_solved,
      functools.partial(
        mctx.gumbel_muzero_root_action_selection,
        num_simulations=budget.num_simulations,
        max_num_considered_actions=A,
        qtransform=self._qtransform,
      ),
      functools.partial(
        mctx.gumbel_muzero_interior_action_selection,
        qtransform=self._qtransform,
      ),
    )

  def improved(self, tree):
    """softmax(prior logits + completed Q) at every node."""
    nodes_N = jnp.arange(tree.node_values.shape[1])

    def completed(tree):
      return jax.vmap(self._qtransform, in_axes=(None, 0))(tree, nodes_N)

    return jax.nn.softmax(
      tree.children_prior_logits + jax.vmap(completed)(tree), axis=-1
    )


def walk_keys(key: Array, simulations: int, trees: int) -> Array:
  """Keys of mctx's walks from the root, of trees that grow in step, NB."""

  def step(key, _):
    key, walk_key, _ = jax.random.split(key, 3)
    return key, jax.random.split(walk_key, trees)

  return jax.lax.scan(step, key, length=simulations)[1]


def merged(nodes) -> Array:
  """Candidates that are no moves: merged into an equal one, or forbidden."""
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
