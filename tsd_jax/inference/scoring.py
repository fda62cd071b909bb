"""Scores given responses, a part of the vocabulary's numbers at a time.

Log-probabilities over a real vocabulary are the largest tensor of a training
step by far, and losses need a few numbers a token of them. So the loss says
what it reads, and never holds more than `CHUNK` of them, forward or backward.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tsd_jax.base.types import Array, PromptForm, Prompts
from tsd_jax.inference import prefill as prefill_lib
from tsd_jax.models.transformer import Transformer

CHUNK = 2**24  # Log-probabilities held at a time by a copy of the weights.


def hidden_states(
  model: Transformer,
  prompts: Prompts,
  tokens_BGT: Array,
  form: PromptForm = prefill_lib.FULL,
) -> Array:
  """Hidden states before every token of given responses, BGTD.

  The prompt is run once and shared by its rows, with gradients through it.

  Args:
    model: the model.
    prompts: B prompts.
    tokens_BGT: G responses to each.
    form: of the prompts, as in `prefill.prefill`.
  """
  B, G, T = tokens_BGT.shape
  prefix = prefill_lib.prefill(model, prompts, form)
  rows = prefill_lib.repeat_rows(prefix, G)
  hidden = model.trunk(
    tokens_BGT.reshape(B * G, T)[:, :-1],
    rows.length_B[:, None] + jnp.arange(T - 1)[None],
    segments=rows.segments,
  )
  x_RTD = jnp.concatenate([rows.x_BD[:, None], hidden.x_RTD], axis=1)
  return x_RTD.reshape(B, G, T, -1)


def read_log_probs(
  model: Transformer,
  read: Callable[..., Any],
  x_BGTD: Array,
  *inputs: Array,
  temperature: float = 1.0,
  chunk: int = CHUNK,
) -> Any:
  """Reads log pi over the vocabulary, chunk by chunk.

  The backward pass computes a chunk's logits again instead of keeping them.

  Args:
    model: its output matrix makes the logits.
    read: (log_prob_BXV, *inputs_BX) -> arrays that lead with BX, for any number
      X of the positions.
    x_BGTD: hidden states.
    *inputs: what else it reads of every position; arrays that lead with BGT.
    temperature: divides the logits.
    chunk: the most log-probabilities that are held.

  Returns:
    What `read` returns, for all positions: BGT.
  """
  B, G, T, _ = x_BGTD.shape
  size = max(1, chunk // (B * model.config.vocab_size))
  count = -(-G * T // size)
  size = -(-G * T // count)

  def split(a):
    # Positions are split, prompts are not: they may lie on several devices.
    a_BX = a.reshape(B, G * T, *a.shape[3:])
    spare = [(0, 0)] * a_BX.ndim
    spare[1] = (0, count * size - G * T)
    a_BX = jnp.pad(a_BX, spare)
    return a_BX.reshape(B, count, size, *a.shape[3:]).swapaxes(0, 1)

  def join(a):
    a_BX = a.swapaxes(0, 1).reshape(B, count * size, *a.shape[3:])
    return a_BX[:, : G * T].reshape(B, G, T, *a.shape[3:])

  def one(chunk):
    x_BXD, *inputs_BX = chunk
    logits_BXV = model.logits(x_BXD) / temperature
    return read(jax.nn.log_softmax(logits_BXV), *inputs_BX)

  chunks = jax.tree.map(split, (x_BGTD, *inputs))
  # In a loop nothing can be kept by common subexpressions either.
  out = jax.lax.map(jax.checkpoint(one, prevent_cse=False), chunks)
  return jax.tree.map(join, out)


def log_prob_of(log_prob_XV: Array, token_X: Array) -> Array:
  """Log pi of given tokens; a masked sum, whose gradient is no scatter."""
  chosen_XV = token_X[..., None] == jnp.arange(log_prob_XV.shape[-1])
  return jnp.sum(jnp.where(chosen_XV, log_prob_XV, 0.0), axis=-1)
