"""Keys of tokens that are run one by one: a layer writes them, then reads.

They live in JAX Refs. As arrays that a loop carries they would be written
after the call that reads them, and XLA would copy all of them in every step:
what is written does not wait for what is read.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tsd_jax.base.types import Array
from tsd_jax.models.transformer import KV, LayerMemory, Transformer
from tsd_jax.parallel import sharding


def put(
  a: Array, new: Array, at: Array | int, layer: Array | None, axis: int = -2
) -> Array:
  """Keys with new ones written from an index of an axis on.

  Args:
    a: of a layer; or of all, stacked, with `layer` or `new` of all.
    new: what is written.
    at: the first index.
    layer: the layer of a stack that is written.
    axis: the axis.
  """
  start: list[Array | int] = [0] * a.ndim
  start[axis] = at
  if layer is not None:
    start[0], new = layer, new[None]
  return jax.lax.dynamic_update_slice(a, new, start)


# Keys and values, a list each: of one Ref (or array) of all layers, or of one a
# layer.
Kept = tuple[list[Any], list[Any]]


def write_first(
  refs: Kept,
  stacked: bool,
  mask: Array,
  write: Callable[[Array, Array, Array | None], Array],
  read: Callable[[Array], Array] = lambda a: a,
) -> LayerMemory:
  """A layer's memory in Refs, written before it is read.

  Args:
    refs: keys and values, in Refs.
    stacked: which of the two.
    mask: what tokens may see of what is read.
    write: (what is kept, new keys, layer of a stack) -> what is kept.
    read: what is attended to of what a layer keeps.
  """

  def memory(layer, *new):
    keys = []
    for arrays, new_RKTE in zip(refs, new, strict=True):
      ref, of_stack = (arrays[0], layer) if stacked else (arrays[layer], None)
      ref[...] = write(ref[...], new_RKTE, of_stack)
      # Read by way of `[...]`, which copies nothing: an index into the Ref
      # itself makes devices that share the heads gather all of it.
      keys.append(read(ref[...][layer] if stacked else ref[...]))
    return *keys, mask

  return memory


def as_read(arrays: Kept, stacked: bool, read: Callable[[Any], Array]) -> KV:
  """Keys of all layers in the form that the model reads.

  Args:
    arrays: keys and values.
    stacked: whether they are one of all layers.
    read: what is attended to of one of them.
  """
  layers = KV(*(tuple(read(a[...]) for a in own) for own in arrays))
  return KV(*(a for (a,) in layers)) if stacked else layers


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
    self._stacked, self.length = not c.unrolled, length
    shape = (rows, c.num_kv_heads, length, c.head_dim)
    if self._stacked:
      shape = (c.num_layers, *shape)
    zeros = sharding.split_heads(jnp.zeros(shape, model.dtype), len(shape) - 3)
    arrays = 1 if self._stacked else c.num_layers
    k, v = ([jax.new_ref(zeros) for _ in range(arrays)] for _ in range(2))
    self._refs: Kept = k, v

  def at(self, column: Array | int) -> LayerMemory:
    """What a call sees whose one token belongs in a column: all up to it."""
    mask_11T = (jnp.arange(self.length) <= column)[None, None]
    return write_first(
      self._refs,
      self._stacked,
      mask_11T,
      lambda a, new, layer: put(a, new, column, layer),
    )

  def kv(self) -> KV:
    """All of them, in the form that the model reads."""
    return as_read(self._refs, self._stacked, lambda a: a)
