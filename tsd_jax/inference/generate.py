"""Replies of a published model to text prompts."""

import functools
import math
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tsd_jax.base.errors import UserError
from tsd_jax.base.types import Array, PromptForm, Prompts
from tsd_jax.inference import sampling
from tsd_jax.inference.prefill import prefill
from tsd_jax.models import pretrained
from tsd_jax.models.text_tokenizer import TextTokenizer
from tsd_jax.tasks.task import real_tokens

_MAX_TOKENS = 128  # Of a reply, where none are named.
_STEP = 64  # Prompt lengths are rounded up to multiples: fewer compilations.


def generate(
  path: str | pathlib.Path,
  tokenizer: TextTokenizer,
  prompts: Sequence[Sequence[int]],
  *,
  max_tokens: int | None = None,
  temperature: float = 0.0,
  seed: int = 0,
) -> list[str]:
  """Reads a model and completes prompts in one batch.

  Args:
    path: Hugging Face folder or GGUF file.
    tokenizer: the model's.
    prompts: token ids of each.
    max_tokens: most tokens of a reply; None: 128, or as many as positions are
      left for.
    temperature: of sampling; 0 decodes greedily.
    seed: of sampling.

  Returns:
    The replies' texts, without special tokens.

  Raises:
    UserError: the model cannot be read, or a prompt and its reply exceed the
      positions that the model was trained on.
  """
  card = pretrained.read_card(path)
  if tokenizer.vocab_size > card.config.vocab_size:
    raise UserError(
      f"the tokenizer of {path} has {tokenizer.vocab_size} tokens, its model "
      f"{card.config.vocab_size}"
    )
  longest = max(map(len, prompts))
  left = math.inf if card.max_length is None else card.max_length - longest
  if max_tokens is None:
    max_tokens = max(1, int(min(_MAX_TOKENS, left)))
  if max_tokens > left:
    raise UserError(
      f"a prompt of {longest} tokens and a reply of {max_tokens} exceed the "
      f"{card.max_length} positions of {path}: shorten the prompt or the reply"
    )
  prompt_BP = tokenizer.pad(prompts, -(-longest // _STEP) * _STEP)
  _, graphdef, params = pretrained.load(path)
  tokens_BT, mask_BT = complete(
    graphdef,
    params,
    prompt_BP,
    None if temperature == 0 else jax.random.key(seed),
    temperature or 1.0,
    length=max_tokens,
    end_ids=tokenizer.end_ids,
    pad_id=tokenizer.pad_id,
  )
  rows = zip(np.asarray(tokens_BT), np.asarray(mask_BT), strict=True)
  return [tokenizer.decode(tokens[mask]) for tokens, mask in rows]


@functools.partial(
  jax.jit, static_argnames=("graphdef", "length", "end_ids", "pad_id")
)
def complete(
  graphdef,
  params,
  prompt_BP: Array,
  key: Array | None,
  temperature: Array | float = 1.0,
  *,
  length: int,
  end_ids: tuple[int, ...],
  pad_id: int,
) -> tuple[Array, Array]:
  """Completes right-padded prompts.

  Args:
    graphdef: structure of the model.
    params: its parameters.
    prompt_BP: tokens, padded on the right.
    key: consumed; None decodes greedily.
    temperature: of sampling.
    length: T, most tokens of a reply.
    end_ids: tokens that end a reply.
    pad_id: padding of prompts and replies.

  Returns:
    tokens_BT, and mask_BT: true up to and including the end token.
  """
  model = nnx.merge(graphdef, params)
  prompt_BP = jnp.asarray(prompt_BP)
  rows = prompt_BP.shape[0]
  length_B = jnp.sum(real_tokens(prompt_BP, pad_id), axis=1, dtype=jnp.int32)
  prompts = Prompts(prompt_BP, length_B, jnp.arange(rows))
  sampled = sampling.sample(
    model,
    prefill(model, prompts, PromptForm(padded=True)),
    None if key is None else sampling.row_keys(key, rows, 1),
    length=length,
    end_ids=end_ids,
    pad_id=pad_id,
    temperature=temperature,
  )
  return sampled.tokens_RT, sampled.mask_RT
