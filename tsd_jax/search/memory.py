"""What a search needs of a device's memory, known before it is compiled."""

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tsd_jax import sharding
from tsd_jax.config import UserError
from tsd_jax.models import transformer
from tsd_jax.search.tree import SearchConfig
from tsd_jax.tasks.task import Task

_NUMBER = 4  # Bytes of an int32 and of a float32.
# Float32 copies of the parameters that a run holds: trained, two moments,
# search model, reference.
_COPIES = 5


class Memory(NamedTuple):
  """Bytes of one device while it searches some trees."""

  pool: int  # Keys and values of the nodes.
  prompts: int  # Keys and values of the prompts.
  tree: int  # The nodes and their edges.
  work: int  # What a simulation makes and forgets.

  @property
  def total(self) -> int:
    """All of it."""
    return sum(self)


def estimate_memory(
  model: transformer.ModelConfig,
  task: Task,
  config: SearchConfig,
  *,
  trees: int,
  tensor: int = 1,
) -> Memory:
  """Bytes that a search of some trees takes beside the parameters.

    pool     2 L N S B K E, in the model's dtype: nodes x step tokens
    prompts  2 L P B K E
    tree     4 B (N + 1) (A (S + 9) + 4 T + 13)
    work     the largest of a simulation's parts: see the comments

  Args:
    model: shape of the model.
    task: gives the lengths.
    config: the search.
    trees: B, how many grow at the same time.
    tensor: devices that share the heads and the vocabulary.
  """
  c, B, N, S = model, trees, config.num_simulations, config.step_tokens
  A, T, P = config.num_candidates, task.response_length, task.prompt_length
  heads = (
    c.num_kv_heads // tensor
    if c.num_kv_heads % tensor == 0
    else (c.num_kv_heads)
  )
  # Keys and values of one position, all layers.
  position = 2 * c.num_layers * heads * c.head_dim
  position *= jnp.dtype(c.compute_dtype).itemsize
  logits = 2 * _NUMBER * c.vocab_size // tensor  # And their logarithms.
  path = B * T * position

  def sampled(rows, length):
    """Paths gathered and turned, keys of the draws, their logits."""
    return 2 * path + rows * (length * position + logits)

  parts = [2 * path // c.num_layers + B * logits]  # A layer's paths.
  if S > 1:
    parts.append(sampled(B * A, S))
  if config.leaf in ("rollout", "mix"):
    parts.append(sampled(B, T))
  return Memory(
    pool=B * N * S * position,
    prompts=B * P * position,
    tree=_NUMBER * B * (N + 1) * (A * (S + 9) + 4 * T + 13),
    work=max(parts),
  )
