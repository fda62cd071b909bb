"""Keys of tokens that are run one by one: a layer writes them, then reads.

They live in JAX Refs. As arrays that a loop carries they would be written
after the call that reads them, and XLA would copy all of them in every step:
what is written does not wait for what is read.
"""

import jax
import jax.numpy as jnp

from tsd_jax import sharding
from tsd_jax.models.transformer import KV, LayerMemory, Transformer
from tsd_jax.types import Array


class OwnKeys:
  """Keys and values of at most T tokens in each of R rows; made inside jit."""

  def __init__(self, model: Transformer, rows: int, length: int):
    """Makes zeros.

    Args:
      model: gives the shapes.
      rows: R.
      length: T.
    """
    c = model.config
    self._stacked, self._length = not c.unrolled, length
    shape = (rows, c.num_kv_heads, length, c.head_dim)
    if self._stacked:
      shape = (c.num_layers, *shape)
    zeros = sharding.split_heads(jnp.zeros(shape, model.dtype), len(shape) - 3)
    arrays = 1 if self._stacked else c.num_layers
    self._refs = KV(
      *([jax.new_ref(zeros) for _ in range(arrays)] for _ in range(2))
    )

  def at(self, column: Array | int) -> LayerMemory:
    """What a call sees whose one token belongs in a column: all up to it."""
    mask_11T = (jnp.arange(self._length) <= column)[None, None]

    def memory(layer, *new):
      keys = []
      for refs, new_RK1E in zip(self._refs, new, strict=True):
        if self._stacked:
          (ref,) = refs
          start, new_X = (layer, 0, 0, column, 0), new_RK1E[None]
        else:
          ref, start, new_X = refs[layer], (0, 0, column, 0), new_RK1E
        ref[...] = jax.lax.dynamic_update_slice(ref[...], new_X, start)
        keys.append(ref[...][layer] if self._stacked else ref[...])
      return *keys, mask_11T

    return memory

  def kv(self) -> KV:
    """All of them, in the form that the model reads."""
    if self._stacked:
      return KV(*(refs[0][...] for refs in self._refs))
    return KV(*(tuple(ref[...] for ref in refs) for refs in self._refs))
