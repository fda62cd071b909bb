"""Wires the language model into mctx: what a node is and how it is expanded.

A state is the tokens so far, a move one of A moves of at most U tokens
(`moves.py`; the likeliest tokens, or drawn steps), the reward that of the
finished response. A node keeps its own best answer: the response that ends at
it, or the rollout that was made from it, so nothing paid for is lost.

Ending a response needs no forward. Where a rule scores ends with their node,
the likeliest move that ends is therefore none: a new node is scored as if it
ended there, and every simulation is a forward that offers new moves.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import mctx

from tsd_jax.base.types import Array, Prompts
from tsd_jax.inference import prefill as prefill_lib
from tsd_jax.inference import sampling
from tsd_jax.inference.prefill import Prefix
from tsd_jax.models.phrases import VIOLATED
from tsd_jax.models.tokenizer import is_end
from tsd_jax.models.transformer import Transformer
from tsd_jax.parallel import sharding
from tsd_jax.rewards.reward import Scorer, response_mask
from tsd_jax.search import moves, transpositions
from tsd_jax.search.config import SearchConfig
from tsd_jax.search.kv_pool import KVPool
from tsd_jax.search.node import Node, empty
from tsd_jax.search.rules import Budget, StoppableLoop
from tsd_jax.tasks.task import Task, next_observation, prompt_form

_LEAST = 1e-6  # Of progress, in a key: nothing is hopeless for certain.


class SearchResult(NamedTuple):
  """A finished search over B prompts."""

  tree: mctx.Tree  # embeddings: Node
  simulations: Array  # float32 scalar, simulations made, a prompt.
  # int32 scalar, token forwards below the prompts, all trees; those of rows and
  # columns that are masked count as well.
  forwards: Array
  scored: Array  # int32 scalar, responses that the reward has scored.


class Growing(NamedTuple):
  """What belongs to the trees that grow in a simulation."""

  prompts: Prompts
  prefix: Prefix
  index_B: Array  # Their prompts' indices among all.


class Answer(NamedTuple):
  """The response that is scored with a node."""

  tokens_BT: Array
  log_prob_B: Array
  exists_B: Array  # bool, whether the node has one.


def search(
  model: Transformer,
  task: Task,
  prompts: Prompts,
  key: Array,
  config: SearchConfig,
  *,
  scorer: Scorer | None = None,
  index_B: Array | None = None,
  prefix: Prefix | None = None,
) -> SearchResult:
  """Searches one tree per prompt with a frozen model.

  Args:
    model: the search model; gradients through it are stopped by the loops.
    task: lengths, tokens, what the environment writes.
    prompts: B prompts.
    key: random key, consumed.
    config: rule, budget, leaves.
    scorer: the task's reward with its parameters; by default one that has none.
    index_B: the prompts' indices among all; randomness belongs to them.
    prefix: the prompts after prefill by the same model; made here by default.

  Returns:
    The tree, whose nodes hold every answer found.
  """
  if index_B is None:
    index_B = sharding.prompt_indices(len(prompts))
  if scorer is None:
    scorer = Scorer(task.reward, task.end_ids)
  if prefix is None:
    prefix = prefill_lib.prefill(model, prompts, prompt_form(task))
  model = model.written_out()
  segments = prefill_lib.unstacked(model, prefix.segments)
  everything = Growing(prompts, prefix._replace(segments=segments), index_B)
  return Search(model, task, scorer, everything, key, config).run()


class Search:
  """A search of B trees: what mctx calls, over keys that it does not know of.

  It lives while a program is traced. `expand` is mctx's `recurrent_fn`; the
  other methods are its steps, in their order.
  """

  def __init__(
    self,
    model: Transformer,
    task: Task,
    scorer: Scorer,
    everything: Growing,
    key: Array,
    config: SearchConfig,
  ):
    """Makes the pool of keys; the arguments are those of `search`."""
    self.model, self.task, self.scorer = model, task, scorer
    self.config, self._everything = config, everything
    self.tree_key, self.rollout_key = jax.random.split(key)
    self.step_key = jax.random.split(self.rollout_key)[1]
    self.A, self.U = config.num_candidates, config.move_tokens(task)
    self.T = task.response_length
    # A move to length T is of no use where it could not end any more.
    self.room = self.T - 1 if config.ends_with_node else self.T
    self.rules, self.guards = scorer.rules, scorer.reward.guards
    self.merges, self.paying = config.merges(task), scorer.unguarded
    self.loop = StoppableLoop()
    self.pool = KVPool(
      model,
      len(everything.prompts),
      config.num_simulations,
      self.U,
      path=self.T,
      turns=config.slot_reuse,
    )

  def run(self) -> SearchResult:
    """Grows the trees."""
    config, B = self.config, len(self._everything.prompts)
    root, forwards = self.root()
    tree = config.rule.run(
      # Of a rule's noise at the roots: other blocks of prompts have other.
      jax.random.fold_in(self.tree_key, self._everything.index_B[0]),
      root,
      self.expand,
      Budget(
        num_simulations=config.num_simulations,
        max_depth=self.T,
        rows=config.rows(B) if config.slot_reuse else None,
        valued=config.values_leaves,
        loop_fn=self.pool.loop(self.loop),
        loop=self.loop,
      ),
    )
    rows = self.loop.steps * config.rows(B)
    forwards += self.loop.count + rows * self.U * (not config.lazy)
    return SearchResult(
      tree=jax.lax.stop_gradient(tree),
      simulations=rows / B,
      forwards=forwards,
      # Of paths a guard is asked as well.
      scored=rows * (1 + (self.guards and self.answers_apart)) + B,
    )

  @property
  def answers_apart(self) -> bool:
    """Whether a node's answer is more than its path."""
    return self.config.ends_with_node or self.config.rolls_out

  def root(self) -> tuple[mctx.RootFnOutput, Array | int]:
    """The roots with their moves, and the token forwards that they took."""
    growing = self.growing()
    x_BD = growing.prefix.x_BD
    node = empty(self.task, x_BD.shape[0], self.A, self.U)
    value_logit_B = self.value_logit(
      growing, node.path_tokens, node.depth, x_BD
    )
    node = node.replace(value_logit=value_logit_B)
    if self.rules is not None:
      node = node.replace(rules_state=self.rules.start(x_BD.shape[0]))
    if self.guards:
      nothing_B = node.cut_off  # Nothing is said yet.
      node = node.replace(refused=nothing_B, end_refused=nothing_B)
    if self.merges:
      state_key_B = transpositions.state_keys(
        self.task, growing.prompts.tokens_BP, node.path_tokens, node.depth
      )
      node = node.replace(state_key=state_key_B)
    node, forwards = self.offer(growing, node, x_BD, 0)
    _, node = self.score_node(growing, *self.end(node))
    value_B = self.config.values_leaves * jax.nn.sigmoid(value_logit_B)
    root = mctx.RootFnOutput(
      prior_logits=node.prior_A, value=value_B, embedding=node
    )
    return root, forwards

  def value_logit(
    self, growing: Growing, path_BT: Array, depth_B: Array, x_BD: Array
  ) -> Array:
    """Log odds of what nodes are worth: the reward's word, or V_search."""
    if self.config.leaf != "progress":
      return self.model.values(x_BD)[1]
    progress_B = self.scorer.progress(growing.prompts, path_BT, depth_B)
    return jax.scipy.special.logit(jnp.clip(progress_B, _LEAST, 1 - _LEAST))

  def growing(self) -> Growing:
    """The prompts whose trees grow in this simulation."""
    everything, turn = self._everything, self.pool.turn
    if turn is None:
      return everything
    return Growing(
      everything.prompts[turn.tree_R],
      prefill_lib.take_prompts(everything.prefix, turn.tree_R),
      everything.index_B[turn.tree_R],
    )

  def expand(self, turn, rng_key, action_B: Array, parent: Node):
    """What a move leads to, as a new node: `recurrent_fn` of mctx."""
    del rng_key  # Randomness comes from per-prompt keys.
    self.pool.turn = turn or None
    growing = self.growing()
    node, x_BD = self.follow(growing, parent, action_B)
    node, forwards = self.offer(growing, node, x_BD, self.pool.slot + 1)
    self.loop.count += forwards
    if self.config.ends_with_node:
      return self.score_node(growing, *self.end(node))
    # A revisit of a finished node runs the model on it again, for nothing.
    new_B = ~(parent.finished | parent.cut_off)
    answer = Answer(node.path_tokens, node.path_log_prob, node.finished & new_B)
    if self.config.rolls_out:
      answer = self.roll_out(growing, node, x_BD)
      answer = answer._replace(exists_B=answer.exists_B & new_B)
    return self.score_node(growing, node, answer)

  def follow(
    self, growing: Growing, parent: Node, action_B: Array
  ) -> tuple[Node, Array]:
    """Runs the model over a move: the node below, and its hidden states."""
    pool, rows = self.pool, jnp.arange(action_B.shape[0])
    step_BU, length_B, log_prob_B, prior_B = (
      a[rows, action_B]
      for a in (
        parent.step_AU, parent.length_A, parent.log_prob_A, parent.prior_A,
      )
    )  # fmt: skip
    if self.config.lazy:
      assert parent.x_D is not None
      drawn = self.draw(growing, parent, parent.x_D, pool.slot, 1, True)
      step_BU, length_B, log_prob_B = (a[:, 0] for a in moves.steps(drawn, 1))
      self.loop.count += drawn.forwards
    over_B = parent.finished | parent.cut_off
    path_tokens, at_BT = moves.extend(
      parent.path_tokens, parent.depth, step_BU, length_B
    )
    path_tokens = jnp.where(over_B[:, None], parent.path_tokens, path_tokens)
    slot_X1 = jnp.reshape(pool.slot, (-1, 1))
    path_slots = jnp.where(at_BT, slot_X1, parent.path_slots)
    if self.config.lazy:
      x_BD = drawn.x_RD
      pool.keep(drawn.kv, parent.depth)
    else:
      x_BD = pool.forward(
        self.model,
        step_BU,
        length_B,
        growing.prefix.length_B + parent.depth,
        growing.prefix.segments,
        path_slots,
        parent.depth,
      )
    depth_B = jnp.minimum(parent.depth + length_B, self.T)
    ends_B = jnp.any(is_end(step_BU, self.task.end_ids), axis=-1)
    finished_B = parent.finished | (~over_B & ends_B)
    state_key_B = None
    if parent.state_key_A is not None:
      state_key_B = parent.state_key_A[rows, action_B]
    cut_off_B = ~finished_B & (depth_B >= self.room)
    rules_state_B = None
    if self.rules is not None:
      assert parent.rules_state is not None
      rules_state_B = self.rules.after_all(
        parent.rules_state, step_BU, jnp.where(over_B, 0, length_B)
      )
      cut_off_B |= rules_state_B == VIOLATED
    refused_B = None
    if self.guards:
      assert parent.refused is not None
      shown_BT = jnp.arange(self.T) < depth_B[:, None]
      shown_BT &= ~over_B[:, None]  # Of others it was asked before.
      passes_B = self.passes(growing, path_tokens, shown_BT)
      refused_B = jnp.where(over_B, parent.refused, ~passes_B)
      cut_off_B |= refused_B
    node = parent.replace(
      path_tokens=path_tokens,
      path_actions=jnp.where(at_BT, action_B[:, None], parent.path_actions),
      path_slots=path_slots,
      depth=depth_B,
      path_log_prob=parent.path_log_prob + log_prob_B,
      log_prob_gap=parent.log_prob_gap + prior_B - parent.prior_A[:, 0],
      value_logit=self.value_logit(growing, path_tokens, depth_B, x_BD),
      state_key=state_key_B,
      rules_state=rules_state_B,
      refused=refused_B,
      finished=finished_B,
      cut_off=cut_off_B,
    )
    return node, x_BD

  def offer(
    self, growing: Growing, node: Node, x_BD: Array, number
  ) -> tuple[Node, Array | int]:
    """A node with its moves, and the token forwards that they took.

    Args:
      growing: the trees.
      node: without moves.
      x_BD: hidden states at its last token.
      number: of the call, for the random keys of draws.
    """
    config, task, forwards = self.config, self.task, 0
    if config.lazy:
      node = node.replace(x_D=x_BD)
      offered = moves.action_slots(x_BD.shape[0], self.A, self.U, task.pad_id)
    elif config.step_tokens == 1:
      offered = moves.likeliest_tokens(self.model.logits(x_BD), self.A)
      if task.observe is not None:
        offered = moves.padded(offered, self.U, task.pad_id)
        token_BO, count_B = next_observation(
          task, growing.prompts, node.path_tokens, node.depth
        )
        # Of one that has no room left a response holds the beginning.
        count_B = jnp.minimum(count_B, self.T - node.depth)
        offered = moves.observations(offered, token_BO, count_B, task.pad_id)
    else:
      drawn = self.draw(growing, node, x_BD, number, self.A)
      offered = moves.merged(*moves.steps(drawn, self.A), config.step_prior)
      forwards = drawn.forwards
    if self.rules is not None and not config.lazy:
      node, offered = self.forbid(node, offered)
    node = node.replace(**offered._asdict())
    if self.merges:
      state_key_A = transpositions.of_moves(
        task, growing.prompts.tokens_BP, node
      )
      node = node.replace(state_key_A=state_key_A)
    return node, forwards

  def forbid(
    self, node: Node, offered: moves.Moves
  ) -> tuple[Node, moves.Moves]:
    """A node, and those of its moves that say nothing that may not be said.

    The others cost nothing: no forward, no simulation, no call of the reward.
    """
    assert self.rules is not None and node.rules_state is not None
    state_BA = self.rules.after_all(
      jnp.broadcast_to(node.rules_state[:, None], offered.length_A.shape),
      offered.step_AU,
      offered.length_A,
    )
    offered, forbidden_BA = moves.without(offered, state_BA == VIOLATED)
    cut_off_B = node.cut_off | (jnp.all(forbidden_BA, axis=1) & ~node.finished)
    return node.replace(forbidden_A=forbidden_BA, cut_off=cut_off_B), offered

  def draw(
    self,
    growing: Growing,
    node: Node,
    x_BD: Array,
    number,
    count: int,
    run_last: bool = False,
  ) -> sampling.Sampled:
    """Some steps drawn below each node, with keys of that number."""
    prefix = growing.prefix
    return moves.draw(
      self.model,
      self.task,
      Prefix(prefix.segments, prefix.length_B + node.depth, x_BD),
      self.pool.path_segment(node.path_slots, node.depth),
      sampling.row_keys(self.step_key, growing.index_B, count, number),
      jnp.where(node.finished, 0, self.T - node.depth),
      count=count,
      step_tokens=self.U,
      observe=sampling.observer(
        self.task, growing.prompts, node.path_tokens, node.depth
      ),
      run_last=run_last,
    )

  def passes(
    self, growing: Growing, tokens_BT: Array, shown_BT: Array
  ) -> Array:
    """Which responses a guard lets pass that is shown some of the tokens, B."""
    return self.scorer.passes(
      growing.prompts, tokens_BT[:, None], shown_BT[:, None]
    )[:, 0]

  def end(self, node: Node) -> tuple[Node, Answer]:
    """A node with its end-of-response move, and the answer that it holds."""
    rows = jnp.arange(node.depth.shape[0])
    ends_BA = jnp.any(is_end(node.step_AU, self.task.end_ids), axis=-1)
    # An observation may have filled the response: its end has no room then.
    ends_BA &= node.depth[:, None] + node.length_A <= self.T
    # Below the end of a response nothing ends again.
    ends_BA &= self.config.ends_with_node & ~node.finished[:, None]
    if node.forbidden_A is not None:
      ends_BA &= ~node.forbidden_A
    has_B = jnp.any(ends_BA, axis=1)
    first_B = jnp.argmax(ends_BA, axis=1)
    tokens_BT, _ = moves.extend(
      node.path_tokens,
      node.depth,
      node.step_AU[rows, first_B],
      jnp.where(has_B, node.length_A[rows, first_B], 0),
    )
    log_prob_B = jnp.where(has_B, node.log_prob_A[rows, first_B], 0.0)
    node = node.replace(eos_action=jnp.where(has_B, first_B, self.A))
    log_prob_B += node.path_log_prob
    return node, Answer(tokens_BT, log_prob_B, has_B | node.finished)

  def roll_out(self, growing: Growing, node: Node, x_BD: Array) -> Answer:
    """Samples each path to its end; finished paths stay as they are."""
    task, T = self.task, self.T
    key_B = sampling.row_keys(
      self.rollout_key, growing.index_B, 1, self.pool.slot
    )
    path = self.pool.path_segment(node.path_slots, node.depth)
    done_B = node.finished | node.cut_off
    prefix = growing.prefix
    sampled = sampling.sample(
      self.model,
      Prefix(prefix.segments, prefix.length_B + node.depth, x_BD),
      key_B,
      length=T,
      end_ids=task.end_ids,
      pad_id=task.pad_id,
      temperature=self.config.rollout_temperature,
      own_log_prob=self.config.rollout_temperature != 1.0,
      more_segments=(path,),
      room_R=jnp.where(done_B, 0, T - node.depth),
      observe=sampling.observer(
        task, growing.prompts, node.path_tokens, node.depth
      ),
    )
    self.loop.count += sampled.forwards
    tokens_BT = sampling.splice(node.path_tokens, node.depth, sampled.tokens_RT)
    ended_B = jnp.any(is_end(tokens_BT, task.end_ids), axis=1)
    log_prob_B = node.path_log_prob + jnp.sum(sampled.log_prob_RT, axis=1)
    return Answer(tokens_BT, log_prob_B, ended_B)

  def score_node(
    self, growing: Growing, node: Node, answer: Answer
  ) -> tuple[mctx.RecurrentFnOutput, Node]:
    """What mctx wants to know of a node, and the node with its answer."""
    config, exists_B = self.config, answer.exists_B
    if self.rules is not None:  # Such a response is no answer.
      exists_B &= ~self.rules.said(answer.tokens_BT)
    if node.refused is not None:
      exists_B &= ~node.refused
      if self.answers_apart:
        shown_BT = response_mask(answer.tokens_BT, self.task.end_ids)
        shown_BT &= exists_B[:, None]
        refused_B = ~self.passes(growing, answer.tokens_BT, shown_BT)
        if config.ends_with_node:
          node = node.replace(end_refused=refused_B & exists_B)
        exists_B &= ~refused_B
    score = self.paying.one(growing.prompts, answer.tokens_BT)
    reward_B = self.scorer.unit(score.reward_X)
    reward_B = jnp.where(exists_B, reward_B, 0.0)
    correct_B = jnp.zeros_like(exists_B)
    if score.correct_X is not None:
      correct_B = exists_B & score.correct_X
    done_B = node.finished | node.cut_off
    learned_B = jax.nn.sigmoid(node.value_logit)
    match config.leaf:
      case "none" | "rollout":
        leaf_B = reward_B
      case "value" | "progress":
        leaf_B = learned_B
      case "mix":
        leaf_B = config.mix * reward_B + (1.0 - config.mix) * learned_B
    output = mctx.RecurrentFnOutput(
      reward=jnp.where(done_B, reward_B, 0.0),
      discount=jnp.where(done_B, 0.0, 1.0),
      prior_logits=node.prior_A,
      value=jnp.where(done_B, 0.0, leaf_B),
    )
    return output, node.replace(
      answer_tokens=answer.tokens_BT,
      answer_log_prob=answer.log_prob_B,
      reward=reward_B,
      has_answer=exists_B,
      correct=correct_B,
    )
