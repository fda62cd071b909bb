"""Prompts through the model: keys that every response to them attends to.

A prompt's keys are computed once. Its G responses, its search tree and its
forks attend to them where they lie, without a copy.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tsd_jax.base.types import Array, Media, PromptForm, Prompts
from tsd_jax.models.transformer import KV, Segment, Transformer

FULL = PromptForm()  # All prompts have P tokens, none in common.


class Prefix(NamedTuple):
  """A prompt after its forward pass."""

  # Keys of the prompt, with the mask of its padding; two where all prompts
  # begin alike: that beginning, one row for all of them, and the rest.
  segments: tuple[Segment, ...]
  length_B: Array  # int32, prompt tokens without padding.
  x_BD: Array  # Hidden states at the last prompt token.


def prefill(
  model: Transformer, prompts: Prompts, form: PromptForm = FULL
) -> Prefix:
  """Runs the model over prompts, padded on the right.

  What all prompts begin with (a system message, worked examples) is run once
  and attended to by all, with the numbers and gradients of running it in each.

  Args:
    model: the model.
    prompts: B prompts; their media stand in the part that is not shared.
    form: whether there is padding, which costs nothing where there is none, and
      how many leading tokens are the same in all prompts and real, fewer than
      the shortest prompt has.

  Returns:
    The prompts' keys and the hidden states at their last real tokens.
  """
  head = form.shared_prefix_length
  shared = ()
  if head:
    head_1P = prompts.tokens_BP[:1, :head]
    kv = model.trunk(head_1P, jnp.arange(head)[None]).kv
    shared = (Segment(kv, jnp.ones((1, 1, head), bool)),)
  token_BP, media = prompts.tokens_BP[:, head:], prompts.media
  if media is not None:
    media = Media(media.embedding_BJD, media.position_BJ - head)
  B, P = token_BP.shape
  mask_BP = jnp.ones((B, P), bool)
  if form.padded:
    mask_BP = jnp.arange(head, head + P)[None] < prompts.length_B[:, None]
  positions_BP = jnp.broadcast_to(jnp.arange(head, head + P)[None], (B, P))
  causal_1PP = jnp.tril(jnp.ones((1, P, P), bool))
  hidden = model.trunk(
    model.embed(token_BP, media),
    positions_BP,
    segments=shared,
    self_mask_RTT=causal_1PP & mask_BP[:, None],
  )
  length_B = jnp.sum(mask_BP, axis=1, dtype=jnp.int32)
  last_B11 = (length_B - 1)[:, None, None]
  return Prefix(
    segments=(*shared, Segment(hidden.kv, mask_BP[:, None])),
    length_B=head + length_B,
    x_BD=jnp.take_along_axis(hidden.x_RTD, last_B11, axis=1)[:, 0],
  )


def prefill_tokens(
  prompts: int, length: int, form: PromptForm, calls: int = 1
) -> int:
  """Token forwards of some `prefill`s: each runs the shared prefix once."""
  head = form.shared_prefix_length
  return calls * head + prompts * (length - head)


def repeat_rows(prefix: Prefix, group: int) -> Prefix:
  """Serves `group` rows from each prompt; its keys are not copied."""
  *shared, own = prefix.segments
  return Prefix(
    segments=(*shared, repeat_segment(own, group)),
    length_B=jnp.repeat(prefix.length_B, group),
    x_BD=jnp.repeat(prefix.x_BD, group, axis=0),
  )


def take_prompts(prefix: Prefix, row_R: Array) -> Prefix:
  """Copies the keys of some prompts; those that all share stay as they are."""
  *shared, own = prefix.segments
  own = Segment(take_rows(own.kv, row_R), own.mask_RTS[row_R])
  return Prefix((*shared, own), prefix.length_B[row_R], prefix.x_BD[row_R])


def unstacked(model: Transformer, segments) -> tuple[Segment, ...]:
  """Segments with their keys in the form that the model reads in a loop."""
  return tuple(s._replace(kv=model.unstack(s.kv)) for s in segments)


def repeat_segment(segment: Segment, group: int) -> Segment:
  """Keys that serve `group` rows each; they are not copied."""
  return Segment(segment.kv, jnp.repeat(segment.mask_RTS, group, axis=0))


def take_rows(kv: KV, row_R: Array) -> KV:
  """Copies the keys of given rows."""
  return jax.tree.map(lambda a: jnp.take(a, row_R, axis=a.ndim - 4), kv)
