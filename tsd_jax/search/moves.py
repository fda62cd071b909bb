"""Moves: the steps that a node offers, and how a path grows by one.

A move has at most U tokens. Where steps have one (`SearchConfig.step_tokens`) a
node offers its likeliest tokens, and a whole observation of the environment is
one move. Longer steps are drawn from the model when the node is made: a draw
ends at one of the task's delimiters, at the end token, or after U tokens, and
equal draws are one move that counts how often it was drawn, as in Sampled
MuZero (https://arxiv.org/abs/2104.06303).

Drawn lazily (`BestFirst.lazy`) a node has A places instead, a step is drawn
when its place is tried, and the draw is the node's forward as well: a
simulation takes the forwards of one step, not of A + 1.

Where a step ends depends on its own tokens and on the room that is left alone:
a response is cut into steps in one way, and two paths never spell the same one.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp

from tsd_jax.base.types import LOG_ZERO, Array
from tsd_jax.inference import sampling, vocabulary
from tsd_jax.inference.prefill import Prefix, repeat_rows, repeat_segment
from tsd_jax.models.transformer import Segment, Transformer
from tsd_jax.search.node import Node
from tsd_jax.tasks.task import Task

# What the prior of a drawn step is made of; see `SearchConfig.step_prior`.
Prior = Literal["draws", "log_prob"]
# A node has no further place where its steps leave less probability than this.
_SPENT = 1e-4


class Moves(NamedTuple):
  """A moves of each of B nodes, by descending prior; fields of `node.Node`."""

  step_AU: Array  # int32 BAU, PAD after a move's end.
  length_A: Array  # int32 BA, tokens of each move.
  log_prob_A: Array  # float32 BA, log pi(move | path).
  prior_A: Array  # float32 BA, logits; LOG_ZERO where no move is left.


def likeliest_tokens(logits_BV: Array, count: int) -> Moves:
  """The likeliest next tokens as steps of one token; log pi is their prior."""
  logit_BA, token_BA = vocabulary.top_k(logits_BV, count)
  log_prob_BA = logit_BA - vocabulary.softmax(logits_BV).log_total_X[:, None]
  length_BA = jnp.ones_like(token_BA)
  return Moves(token_BA[..., None], length_BA, log_prob_BA, log_prob_BA)


def padded(offered: Moves, tokens: int, pad_id: int) -> Moves:
  """The same moves with room for so many tokens each."""
  spare = tokens - offered.step_AU.shape[-1]
  step_BAU = jnp.pad(
    offered.step_AU, ((0, 0), (0, 0), (0, spare)), constant_values=pad_id
  )
  return offered._replace(step_AU=step_BAU)


def observations(
  offered: Moves, token_BO: Array, count_B: Array, pad_id: int
) -> Moves:
  """Moves; where the environment writes, its whole observation is the one.

  Args:
    offered: what the nodes offer where the model chooses; U >= O.
    token_BO: what the environment writes next.
    count_B: how many tokens of it there are, 0 where the model chooses.
    pad_id: fills what is no move.
  """
  written_B1 = count_B[:, None] > 0
  A, U = offered.step_AU.shape[1:]
  first_1A = jnp.arange(A)[None] == 0
  spare = ((0, 0), (0, U - token_BO.shape[1]))
  token_BU = jnp.pad(token_BO, spare, constant_values=pad_id)
  real_BU = jnp.arange(U)[None] < count_B[:, None]
  token_BU = jnp.where(real_BU, token_BU, pad_id)
  step_BAU = jnp.where(first_1A[..., None], token_BU[:, None], pad_id)
  certain_1A = jnp.where(first_1A, 0.0, LOG_ZERO)
  length_BA = jnp.where(first_1A, count_B[:, None], 1)
  return Moves(
    step_AU=jnp.where(written_B1[..., None], step_BAU, offered.step_AU),
    length_A=jnp.where(written_B1, length_BA, offered.length_A),
    log_prob_A=jnp.where(written_B1, certain_1A, offered.log_prob_A),
    prior_A=jnp.where(written_B1, certain_1A, offered.prior_A),
  )


def draw(
  model: Transformer,
  task: Task,
  prefix: Prefix,
  path: Segment,
  key_R: Array,
  room_B: Array,
  *,
  count: int,
  step_tokens: int,
  observe: sampling.Observer | None = None,
  run_last: bool = False,
) -> sampling.Sampled:
  """Draws steps from the model.

  Args:
    model: the search model.
    task: says which tokens end a step.
    prefix: keys of the prompts, with lengths and hidden states at the nodes.
    path: keys of the paths to the nodes.
    key_R: a random key a draw, consumed; `count` in a row belong to a node.
    room_B: tokens that fit below each node; where it is 0, steps are empty.
    count: draws a node.
    step_tokens: U.
    observe: what the environment writes into the draws (`sampling.observer`).
    run_last: run the steps' last tokens too, to go on from there.

  Returns:
    The draws.
  """
  return sampling.sample(
    model,
    repeat_rows(prefix, count),
    key_R,
    length=step_tokens,
    end_ids=task.end_ids,
    pad_id=task.pad_id,
    more_segments=(repeat_segment(path, count),),
    room_R=jnp.repeat(room_B, count),
    stop_ids=task.step_end_ids,
    observe=observe,
    run_last=run_last,
  )


def steps(drawn: sampling.Sampled, count: int) -> tuple[Array, Array, Array]:
  """Steps drawn for nodes: tokens BAU, PAD after their end, length, log pi."""
  length_R = jnp.sum(drawn.mask_RT, axis=1, dtype=jnp.int32)
  log_prob_R = jnp.sum(drawn.log_prob_RT, axis=1)

  def of_nodes(a_R: Array) -> Array:
    return a_R.reshape(-1, count, *a_R.shape[1:])

  return of_nodes(drawn.tokens_RT), of_nodes(length_R), of_nodes(log_prob_R)


def merged(
  step_BAU: Array, length_BA: Array, log_prob_BA: Array, prior: Prior
) -> Moves:
  """Merges equal draws and sorts by prior, then by log-probability.

  Args:
    step_BAU: the draws, PAD after their end.
    length_BA: their tokens, for PAD may have been drawn as well.
    log_prob_BA: log pi of each.
    prior: "draws" is log(times drawn / A), for the draws come from pi already;
      "log_prob" is log pi once more.
  """
  A = length_BA.shape[1]
  same_BAA = jnp.all(step_BAU[:, :, None] == step_BAU[:, None], axis=-1)
  same_BAA &= length_BA[:, :, None] == length_BA[:, None]
  first_BA = ~jnp.any(jnp.tril(same_BAA, k=-1), axis=2)
  prior_BA = log_prob_BA
  if prior == "draws":
    prior_BA = jnp.log(jnp.sum(same_BAA, axis=2) / A)
  prior_BA = jnp.where(first_BA, prior_BA, LOG_ZERO)
  order_BA = jnp.lexsort((-log_prob_BA, -prior_BA), axis=-1)
  at = (jnp.arange(step_BAU.shape[0])[:, None], order_BA)
  return Moves(step_BAU[at], length_BA[at], log_prob_BA[at], prior_BA[at])


def without(offered: Moves, forbidden_BA: Array) -> tuple[Moves, Array]:
  """Moves of which some may not be made: they stand last, and have no prior.

  Args:
    offered: all moves.
    forbidden_BA: those that may not be made.

  Returns:
    The moves, and which of them those are.
  """
  order_BA = jnp.argsort(forbidden_BA, axis=1, stable=True)
  at = (jnp.arange(order_BA.shape[0])[:, None], order_BA)
  offered, forbidden_BA = Moves(*(a[at] for a in offered)), forbidden_BA[at]
  prior_BA = jnp.where(forbidden_BA, LOG_ZERO, offered.prior_A)
  return offered._replace(prior_A=prior_BA), forbidden_BA


def action_slots(
  nodes: int, count: int, step_tokens: int, pad_id: int
) -> Moves:
  """Room for steps that are drawn when they are tried; one of it is open.

  The prior of a place is log of the probability that is left to it: 0 for the
  first one, and after a draw what `record` makes it.
  """
  shape = (nodes, count)
  no_step_BA = jnp.full(shape, LOG_ZERO)
  return Moves(
    jnp.full((*shape, step_tokens), pad_id, jnp.int32),
    jnp.zeros(shape, jnp.int32),
    no_step_BA,
    no_step_BA.at[:, 0].set(0.0),
  )


def record(parent: Node, child: Node, place_B: Array) -> tuple[Moves, Node]:
  """Enters a step that was drawn in its node, and opens the next place.

  That place's prior is log of 1 - sum of pi(step | path) over the steps drawn
  so far: beside a likely step another one is surprising. A step that was drawn
  before leads nowhere, and the place that it took holds none.

  Args:
    parent: nodes with an open place.
    child: what the draws led to.
    place_B: the places.

  Returns:
    The parents' moves and the children, up to date.
  """
  A, U = parent.step_AU.shape[1:]
  length_B = child.depth - parent.depth
  column_1U = jnp.arange(U)[None]
  at_BU = jnp.minimum(
    parent.depth[:, None] + column_1U, child.path_tokens.shape[1] - 1
  )
  step_BU = jnp.where(
    column_1U < length_B[:, None],
    jnp.take_along_axis(child.path_tokens, at_BU, axis=1),
    # PAD: places are filled in order, the last one is empty as yet.
    parent.step_AU[:, -1],
  )
  here_BA = jnp.arange(A)[None] == place_B[:, None]
  same_BA = jnp.all(parent.step_AU == step_BU[:, None], axis=-1)
  same_BA &= (parent.length_A == length_B[:, None]) & ~here_BA
  again_B = jnp.any(same_BA, axis=1)
  log_prob_B = child.path_log_prob - parent.path_log_prob
  log_prob_BA = jnp.where(
    here_BA & ~again_B[:, None], log_prob_B[:, None], parent.log_prob_A
  )
  left_B1 = 1.0 - jnp.sum(jnp.exp(log_prob_BA), axis=1, keepdims=True)
  left_B1 = jnp.where(
    left_B1 > _SPENT, jnp.log(jnp.maximum(left_B1, _SPENT)), LOG_ZERO
  )
  next_BA = jnp.arange(A)[None] == place_B[:, None] + 1
  offered = Moves(
    jnp.where(here_BA[..., None], step_BU[:, None], parent.step_AU),
    jnp.where(here_BA, length_B[:, None], parent.length_A),
    log_prob_BA,
    jnp.where(next_BA, left_B1, parent.prior_A),
  )
  return offered, child.replace(
    cut_off=child.cut_off | again_B,
    reward=jnp.where(again_B, 0.0, child.reward),
    has_answer=child.has_answer & ~again_B,
    correct=child.correct & ~again_B,
  )


def extend(
  path_BT: Array, depth_B: Array, step_BU: Array, length_B: Array
) -> tuple[Array, Array]:
  """Paths with a step at their end.

  Returns:
    The tokens of the longer paths, and a mask of the step's positions.
  """
  B, T = path_BT.shape
  # Position in the step of each position of the path.
  offset_BT = jnp.arange(T)[None] - depth_B[:, None]
  at_BT = (offset_BT >= 0) & (offset_BT < length_B[:, None])
  source_BT = jnp.clip(offset_BT, 0, step_BU.shape[1] - 1)
  token_BT = step_BU[jnp.arange(B)[:, None], source_BT]
  return jnp.where(at_BT, token_BT, path_BT), at_BT
