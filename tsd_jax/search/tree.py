"""Wires the language model into mctx: what a node is and how it is expanded.

A state is the tokens so far, a move one of A steps of at most S tokens
(`moves.py`; with S = 1 the likeliest tokens), the reward that of the finished
response. A node keeps its own best answer: the response that ends at it, or the
rollout that was made from it, so nothing paid for is lost.

Ending a response needs no forward. Where best-first makes no rollouts, the
likeliest step that ends is therefore no move: a new node is judged as if it
ended there, and every simulation is a forward that offers new steps.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import mctx

from tsd_jax.base.types import Array
from tsd_jax.inference import decode
from tsd_jax.models.transformer import Transformer
from tsd_jax.parallel import sharding
from tsd_jax.search import best_first, kv_pool, moves, rules, transpositions
from tsd_jax.search.node import empty
from tsd_jax.tasks.task import Task, next_observation


@dataclasses.dataclass(frozen=True)
class SearchConfig:
  """How the tree is searched."""

  rule: Literal["best_first", "puct", "gumbel"] = "best_first"
  num_simulations: int = 64
  # Prompts searched for each one that the policy samples on, and how many trees
  # grow at the same time: more of them need more memory. With `slot_reuse` it
  # holds the trees of all prompts.
  width: int = 16
  trees: int = 256
  num_candidates: int = 8  # A: the likeliest tokens of a node, or draws.
  # S: a move is a token (1), or a step of at most S tokens that is drawn from
  # the model and ends where the task says (`Task.step_end_ids`).
  step_tokens: int = 1
  # What a drawn step's prior is made of: how often it was drawn, or log pi.
  step_prior: moves.Prior = "draws"
  # Whether best-first draws a step when it tries it, and no other; A is then
  # the most draws of a node.
  lazy: bool = False
  # What an unfinished leaf is worth: V_search, a rollout to the end, or the
  # mean of both weighted by `mix`; "none" is for best-first without a value.
  leaf: Literal["none", "value", "rollout", "mix"] = "none"
  mix: float = 0.5  # Weight of the rollout in "mix".
  rollout_temperature: float = 1.0
  c_puct: float = 1.25
  revisit_penalty: float = 1.0
  gumbel_scale: float = 1.0
  value_scale: float = 0.1
  beta: float = 0.5  # Weight of log V_search in best-first, with a value leaf.
  epsilon: float = 0.02
  stop_when_solved: bool = True
  # Whether best-first leaves out what the tree has seen (`Task.state_key`).
  transpositions: bool = False
  # Whether all prompts are searched together, best-first, `trees` of them in a
  # simulation: one that is solved makes room for another.
  slot_reuse: bool = False

  def __post_init__(self):
    """Refuses impossible searches."""
    for field in (
      "num_simulations",
      "num_candidates",
      "step_tokens",
      "width",
      "trees",
    ):
      if getattr(self, field) < 1:
        raise ValueError(
          f"search.{field}={getattr(self, field)} must be at least 1"
        )
    if not 0.0 <= self.mix <= 1.0:
      raise ValueError(f"search.mix={self.mix} must lie in [0, 1]")
    if self.rollout_temperature <= 0:
      raise ValueError(
        f"search.rollout_temperature={self.rollout_temperature} must be > 0"
      )
    if self.slot_reuse and self.rule != "best_first":
      raise ValueError(
        "search.slot_reuse=true is of search.rule=best_first, not "
        f"{self.rule}, whose trees grow in step: set search.slot_reuse=false"
      )
    if self.lazy and (self.rule != "best_first" or self.transpositions):
      raise ValueError(
        "search.lazy=true is of search.rule=best_first without "
        f"search.transpositions, not of {self.rule} with transpositions="
        f"{self.transpositions}: set search.lazy=false"
      )
    if self.leaf == "none" and self.rule != "best_first":
      raise ValueError(
        f"search.leaf=none gives search.rule={self.rule} nothing to compare "
        "moves by: use value, rollout or mix, or rule best_first"
      )

  @property
  def needs_value(self) -> bool:
    """Whether leaves are valued by V_search, which must then be trained."""
    return self.leaf in ("value", "mix")

  def merges(self, task: Task) -> bool:
    """Whether moves that lead to one state_key are merged."""
    wanted = self.rule == "best_first" and self.transpositions
    return wanted and task.state_key is not None

  def block(self, prompts: int) -> int:
    """How many of some prompts have their trees at the same time."""
    return prompts if self.slot_reuse else min(self.trees, prompts)

  def rows(self, prompts: int) -> int:
    """How many of the trees of such a block grow in a simulation."""
    return min(self.trees, prompts) if self.slot_reuse else prompts

  def make_rule(self, prompts: int | None = None) -> rules.Rule:
    """The rule object with its tunables; to search, for so many prompts."""
    match self.rule:
      case "puct":
        return rules.PUCT(
          c_puct=self.c_puct, revisit_penalty=self.revisit_penalty
        )
      case "gumbel":
        return rules.Gumbel(
          gumbel_scale=self.gumbel_scale, value_scale=self.value_scale
        )
      case "best_first":
        return best_first.BestFirst(
          beta=self.beta if self.needs_value else 0.0,
          epsilon=self.epsilon,
          stop_when_solved=self.stop_when_solved,
          trees=self.rows(prompts) if self.slot_reuse and prompts else None,
        )


class SearchResult(NamedTuple):
  """A finished search over B prompts."""

  tree: mctx.Tree  # embeddings: Node
  simulations: Array  # float32 scalar, simulations made, a prompt.
  # int32 scalar, token forwards below the prompts, all trees; those of rows and
  # columns that are masked count as well.
  forwards: Array


def search(
  model: Transformer,
  task: Task,
  prompt_BP: Array,
  prefix: decode.Prefix,
  key: Array,
  config: SearchConfig,
  index_B: Array | None = None,
) -> SearchResult:
  """Searches one tree per prompt with a frozen model.

  Args:
    model: the search model; gradients through it are stopped by the loops.
    task: scores finished responses and gives their longest length T (= D).
    prompt_BP: prompts.
    prefix: the prompts after prefill by the same model.
    key: random key, consumed.
    config: rule, budget, leaves.
    index_B: the prompts' indices among all; randomness belongs to them.

  Returns:
    The tree, whose nodes hold every answer found.
  """
  model = model.written_out()
  prefix = prefix._replace(segments=decode.unstacked(model, prefix.segments))
  B, D = prompt_BP.shape[0], task.response_length
  A, S = config.num_candidates, config.step_tokens
  tree_key, rollout_key = jax.random.split(key)
  step_key = jax.random.split(rollout_key)[1]
  if index_B is None:
    index_B = sharding.prompt_indices(B)
  pool = kv_pool.KVPool(
    model, B, config.num_simulations, S, path=D, turns=config.slot_reuse
  )
  rolls_out = config.leaf in ("rollout", "mix")
  # Whether an ending is judged with its node; then a move to length D is of no
  # use, as it cannot end.
  ends_at_once = config.rule == "best_first" and not (rolls_out or config.lazy)
  room = D - 1 if ends_at_once else D
  merges = config.merges(task)
  loop = rules.StoppableLoop()

  def shown():
    """The prompts whose trees grow: tokens, keys, indices among all."""
    if pool.turn is None:
      return prompt_BP, prefix, index_B
    row_R = pool.turn.tree_R
    prompts = decode.take_prompts(prefix, row_R)
    return prompt_BP[row_R], prompts, index_B[row_R]

  def draw(prompts, node, x_BD, number, count, run_last=False):
    """Some steps drawn below each node, with keys of that number."""
    prompt_BP, prefix, index_B = prompts
    return moves.draw(
      model,
      task,
      decode.Prefix(prefix.segments, prefix.length_B + node.depth, x_BD),
      pool.path_segment(node.path_slots, node.depth),
      decode.row_keys(step_key, index_B, count, number),
      jnp.where(node.finished, 0, D - node.depth),
      count=count,
      step_tokens=S,
      observe=decode.observer(task, prompt_BP, node.path_tokens, node.depth),
      run_last=run_last,
    )

  def offer(prompts, node, x_BD, number):
    """A node with its moves, and the token forwards that they took."""
    prompt_BP, forwards = prompts[0], 0
    if config.lazy:
      node = node.replace(x_D=x_BD)
      offered = moves.action_slots(x_BD.shape[0], A, S, task.pad_id)
    elif S == 1:
      offered = moves.likeliest_tokens(model.logits(x_BD), A)
      if task.observe is not None:
        token_B = next_observation(
          task, prompt_BP, node.path_tokens, node.depth
        )
        offered = moves.observed_tokens(offered, token_B, task.pad_id)
    else:
      drawn = draw(prompts, node, x_BD, number, A)
      offered = moves.merged(*moves.steps(drawn, A), config.step_prior)
      forwards = drawn.forwards
    node = node.replace(**offered._asdict())
    if merges:
      state_key_A = transpositions.of_moves(task, prompt_BP, node)
      node = node.replace(state_key_A=state_key_A)
    return node, forwards

  def end(node):
    """A node with its ending, and the answer that it holds."""
    rows = jnp.arange(node.depth.shape[0])
    ends_BA = jnp.any(node.step_AU == task.eos_id, axis=-1) & ends_at_once
    has_B = jnp.any(ends_BA, axis=1)
    first_B = jnp.argmax(ends_BA, axis=1)
    tokens_BT, _ = moves.extend(
      node.path_tokens,
      node.depth,
      node.step_AU[rows, first_B],
      jnp.where(has_B, node.length_A[rows, first_B], 0),
    )
    log_prob_B = jnp.where(has_B, node.log_prob_A[rows, first_B], 0.0)
    node = node.replace(eos_action=jnp.where(has_B, first_B, A))
    log_prob_B += node.path_log_prob
    return node, (tokens_BT, log_prob_B, has_B | node.finished)

  def score_node(prompts, node, answer):
    """Mctx's value and reward of a node, and its stored answer."""
    tokens_BT, log_prob_B, has_answer_B = answer
    score = task.score(prompts[0], tokens_BT)
    reward_B = jnp.where(has_answer_B, score.reward_X, 0.0)
    done_B = node.finished | node.cut_off
    learned_B = jax.nn.sigmoid(node.value_logit)
    match config.leaf:
      case "none" | "rollout":
        leaf_B = reward_B
      case "value":
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
      answer_tokens=tokens_BT,
      answer_log_prob=log_prob_B,
      reward=reward_B,
      has_answer=has_answer_B,
      correct=has_answer_B & score.correct_X,
    )

  def recurrent_fn(turn, rng_key, action_B, parent):
    del rng_key  # Randomness comes from per-prompt keys below.
    pool.turn = turn or None
    prompts = shown()
    _, prefix, _ = prompts
    rows = jnp.arange(action_B.shape[0])
    step_BU, length_B, log_prob_B, prior_B = (
      a[rows, action_B]
      for a in (
        parent.step_AU, parent.length_A, parent.log_prob_A, parent.prior_A,
      )
    )  # fmt: skip
    if config.lazy:
      drawn = draw(prompts, parent, parent.x_D, pool.slot, 1, run_last=True)
      step_BU, length_B, log_prob_B = (a[:, 0] for a in moves.steps(drawn, 1))
      loop.count += drawn.forwards
    # A revisit of a finished node runs the model on it again, for nothing.
    over_B = parent.finished | parent.cut_off
    path_tokens, at_BT = moves.extend(
      parent.path_tokens, parent.depth, step_BU, length_B
    )
    path_tokens = jnp.where(over_B[:, None], parent.path_tokens, path_tokens)
    slot_X1 = jnp.reshape(pool.slot, (-1, 1))
    path_slots = jnp.where(at_BT, slot_X1, parent.path_slots)
    if config.lazy:
      x_BD = drawn.x_RD
      pool.keep(drawn.kv, parent.depth)
    else:
      x_BD = pool.forward(
        model,
        step_BU,
        length_B,
        prefix.length_B + parent.depth,
        prefix.segments,
        path_slots,
        parent.depth,
      )
    _, value_logit_B = model.values(x_BD)
    depth_B = jnp.minimum(parent.depth + length_B, D)
    ends_B = jnp.any(step_BU == task.eos_id, axis=-1)
    finished_B = parent.finished | (~over_B & ends_B)
    node = parent.replace(
      path_tokens=path_tokens,
      path_actions=jnp.where(at_BT, action_B[:, None], parent.path_actions),
      path_slots=path_slots,
      depth=depth_B,
      path_log_prob=parent.path_log_prob + log_prob_B,
      log_prob_gap=parent.log_prob_gap + prior_B - parent.prior_A[:, 0],
      value_logit=value_logit_B,
      state_key=parent.state_key_A[rows, action_B] if merges else None,
      finished=finished_B,
      cut_off=~finished_B & (depth_B >= room),
    )
    node, forwards = offer(prompts, node, x_BD, pool.slot + 1)
    loop.count += forwards
    if ends_at_once:
      return score_node(prompts, *end(node))
    answer = (path_tokens, node.path_log_prob, finished_B & ~over_B)
    if rolls_out:
      tokens_BT, log_prob_B, ended_B = roll_out(prompts, node, x_BD)
      answer = (tokens_BT, log_prob_B, ended_B & ~over_B)
    return score_node(prompts, node, answer)

  def roll_out(prompts, node, x_BD):
    """Samples each path to its end; finished paths stay as they are."""
    prompt_BP, prefix, index_B = prompts
    key_B = decode.row_keys(rollout_key, index_B, 1, pool.slot)
    path = pool.path_segment(node.path_slots, node.depth)
    done_B = node.finished | node.cut_off
    sampled = decode.sample(
      model,
      decode.Prefix(prefix.segments, prefix.length_B + node.depth, x_BD),
      key_B,
      length=D,
      eos_id=task.eos_id,
      pad_id=task.pad_id,
      temperature=config.rollout_temperature,
      more_segments=(path,),
      room_R=jnp.where(done_B, 0, D - node.depth),
      observe=decode.observer(task, prompt_BP, node.path_tokens, node.depth),
    )
    loop.count += sampled.forwards
    tokens_BT = decode.splice(node.path_tokens, node.depth, sampled.tokens_RT)
    ended_B = jnp.any(tokens_BT == task.eos_id, axis=1)
    log_prob_B = node.path_log_prob + jnp.sum(sampled.log_prob_RT, axis=1)
    return tokens_BT, log_prob_B, ended_B

  _, value_logit_B = model.values(prefix.x_BD)
  root_node = empty(task, B, A, S, value_logit_B)
  if merges:
    state_key_B = transpositions.state_keys(
      task, prompt_BP, root_node.path_tokens, root_node.depth
    )
    root_node = root_node.replace(state_key=state_key_B)
  root_node, root_forwards = offer(shown(), root_node, prefix.x_BD, 0)
  _, root_node = score_node(shown(), *end(root_node))
  root_value_B = config.needs_value * jax.nn.sigmoid(value_logit_B)
  root = mctx.RootFnOutput(
    prior_logits=root_node.prior_A, value=root_value_B, embedding=root_node
  )
  tree = config.make_rule(B).run(
    sharding.shard_key(tree_key),
    root,
    recurrent_fn,
    num_simulations=config.num_simulations,
    max_depth=D,
    loop_fn=pool.loop(loop),
    loop=loop,
  )
  rows = loop.steps * config.rows(B)
  return SearchResult(
    tree=jax.lax.stop_gradient(tree),
    simulations=rows / B,
    forwards=rows * S * (not config.lazy) + loop.count + root_forwards,
  )
