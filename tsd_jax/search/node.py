"""What a node of a search tree holds."""

import jax.numpy as jnp
from flax import struct

from tsd_jax.base.types import Array
from tsd_jax.tasks.task import Task


class Node(struct.PyTreeNode):
  """Embedding of a node; arrays lead with B, or BN inside a tree."""

  step_AU: Array  # int32, moves offered, PAD after their ends.
  length_A: Array  # int32, tokens of each move.
  log_prob_A: Array  # float32, log pi(move | path) over the whole vocabulary.
  prior_A: Array  # float32, logits, best first; LOG_ZERO where no move is left.
  path_tokens: Array  # int32 T, response tokens up to this node, PAD after.
  path_actions: Array  # int32 T, the move that each token belongs to.
  path_slots: Array  # int32 T, where each token's keys lie in the pool.
  depth: Array  # int32, number of response tokens.
  path_log_prob: Array  # float32, sum of log pi over the path.
  log_prob_gap: Array  # float32, sum of log(prior / best prior) over the path.
  # float32, log odds of what it is worth by itself (`SearchConfig.leaf`): of
  # V_search, unless the reward says how far it has come.
  value_logit: Array
  # Hidden states at the last token, where steps are drawn when they are tried.
  x_D: Array | None
  # uint32, what the node and its moves have come to; None: nothing is merged.
  state_key: Array | None
  state_key_A: Array | None
  # int32, the first candidate that ends the response, where its answer is
  # judged with the node itself, which has then no such move; A without one.
  eos_action: Array
  # int32, of the automaton that reads for what may not be said
  # (`models.phrases`), and bool, moves that would say it: they stand last, and
  # have no prior. None: anything may be said.
  rules_state: Array | None
  forbidden_A: Array | None
  # bool, a guard does not let the path pass, or the answer that ends with the
  # node; None: there is no guard.
  refused: Array | None
  end_refused: Array | None
  finished: Array  # bool, the path ends with the end token.
  # bool, the path is full, says what it may not or can say nothing else, is
  # refused, or was drawn before: no move leads on from here.
  cut_off: Array
  answer_tokens: Array  # int32 T, finished response found at this node.
  answer_log_prob: Array  # float32, of that response under the search model.
  # float32, of that response, from 0 (the least there is) to 1; 0 without one.
  reward: Array
  has_answer: Array  # bool.
  correct: Array  # bool.

  @property
  def candidate_A(self) -> Array:
    """First tokens of the steps offered: the tokens offered, where S = 1."""
    return self.step_AU[..., 0]


def empty(task: Task, B: int, A: int, U: int) -> Node:
  """Roots before they offer anything: no tokens, no value, no answer."""
  zero_B, no_B = jnp.zeros((B,)), jnp.zeros((B,), bool)
  none_BT = jnp.zeros((B, task.response_length), jnp.int32)
  return Node(
    step_AU=jnp.zeros((B, A, U), jnp.int32),
    length_A=jnp.zeros((B, A), jnp.int32),
    log_prob_A=jnp.zeros((B, A)),
    prior_A=jnp.zeros((B, A)),
    path_tokens=jnp.full_like(none_BT, task.pad_id),
    path_actions=none_BT,
    path_slots=none_BT,
    depth=jnp.zeros((B,), jnp.int32),
    path_log_prob=zero_B,
    log_prob_gap=zero_B,
    value_logit=zero_B,
    x_D=None,
    state_key=None,
    state_key_A=None,
    eos_action=jnp.full((B,), A),
    rules_state=None,
    forbidden_A=None,
    refused=None,
    end_refused=None,
    finished=no_B,
    cut_off=no_B,
    answer_tokens=jnp.full_like(none_BT, task.pad_id),
    answer_log_prob=zero_B,
    reward=zero_B,
    has_answer=no_B,
    correct=no_B,
  )
