"""Reading a vocabulary: softmax, ranking and drawing, with few passes over it.

Logits of a real vocabulary are far larger than what is chosen of them. What can
be is found in blocks of columns first: then in one of them, not in all.

Inside `sharding.per_shard` the columns lie on the devices of the tensor axis.
The compiler would bring all of them together to rank or to add them; here a
device does its own columns and sends what the others need of it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from tsd_jax.base.types import Array
from tsd_jax.parallel import sharding

# Columns of a block: the largest power of two up to this that divides all.
_BLOCK = 512


class Softmax(NamedTuple):
  """A softmax in the parts that are read of it, over the last axis."""

  weight_XV: Array  # exp(z - max z).
  log_total_X: Array  # log sum exp z: log p = z - log_total.
  entropy_X: Array


def softmax(z_XV: Array) -> Softmax:
  """Softmax of logits, with one exponential of each."""
  top_X1 = jnp.max(z_XV, axis=-1, keepdims=True)
  below_XV = z_XV - top_X1
  weight_XV = jnp.exp(below_XV)
  total_X = jnp.sum(weight_XV, axis=-1)
  mean_X = jnp.sum(weight_XV * below_XV, axis=-1) / total_X
  log_total_X = jnp.log(total_X)
  return Softmax(weight_XV, top_X1[..., 0] + log_total_X, log_total_X - mean_X)


def top_k(x_XV: Array, count: int) -> tuple[Array, Array]:
  """`jax.lax.top_k`, ties in order of their index.

  Args:
    x_XV: what is ranked.
    count: how many.

  Returns:
    Values and indices, each behind a barrier: without it a slice of the result,
    merged into top_k's own, makes XLA on CPU sort the whole vocabulary instead.
  """

  def ranked(x_XV, count):
    return map(jax.lax.optimization_barrier, jax.lax.top_k(x_XV, count))

  def best(x_XV, count):
    block_XJV = _blocks(x_XV)
    blocks, size = block_XJV.shape[-2:]
    if blocks <= 2 * count:
      return ranked(x_XV, count)
    # No more than `count` blocks hold the best. In order, or ties were not.
    _, number_XA = ranked(jnp.max(block_XJV, axis=-1), count)
    number_XA = jnp.sort(number_XA, axis=-1)
    near_XAV = jnp.take_along_axis(block_XJV, number_XA[..., None], axis=-2)
    value_XA, place_XA = ranked(
      near_XAV.reshape(*x_XV.shape[:-1], count * size), count
    )
    number_XA = jnp.take_along_axis(number_XA, place_XA // size, axis=-1)
    return value_XA, number_XA * size + place_XA % size

  def own(x_XV):
    width = x_XV.shape[-1]
    value_XA, index_XA = best(x_XV, min(count, width))
    index_XA += width * jax.lax.axis_index("tensor")
    gathered_XA, gathered_index_XA = (
      jax.lax.all_gather(a, "tensor", axis=a.ndim - 1, tiled=True)
      for a in (value_XA, index_XA)
    )
    value_XA, place_XA = ranked(gathered_XA, count)
    return value_XA, jnp.take_along_axis(gathered_index_XA, place_XA, axis=-1)

  if not _shared(x_XV):
    return tuple(best(x_XV, count))
  return _per_device(own, x_XV)


def draw(uniform_R: Array, weight_RV: Array) -> Array:
  """One draw a row in proportion to weights, by inverting their running sum.

  It takes one random number a row; Gumbel noise would take V of them.

  Args:
    uniform_R: uniform random numbers of [0, 1).
    weight_RV: weights, not all 0; an index with weight 0 is never drawn.
  """

  def within(target_R, weight_RV):
    block_RJV = _blocks(weight_RV)
    blocks, size = block_RJV.shape[-2:]
    if blocks == 1:
      return _passes(target_R, weight_RV)[0]
    number_R, target_R = _passes(target_R, jnp.sum(block_RJV, axis=-1))
    block_R1V = jnp.take_along_axis(block_RJV, number_R[:, None, None], axis=1)
    return number_R * size + _passes(target_R, block_R1V[:, 0])[0]

  def own(weight_RV, uniform_R):
    total_R = jnp.sum(weight_RV, axis=-1)
    total_RJ = jax.lax.all_gather(total_R, "tensor", axis=1)
    target_R = uniform_R * jnp.sum(total_RJ, axis=1)
    device_R, target_R = _passes(target_R, total_RJ)
    index_R = within(target_R, weight_RV)
    device = jax.lax.axis_index("tensor")
    index_R += device * weight_RV.shape[-1]
    return jax.lax.psum(jnp.where(device_R == device, index_R, 0), "tensor")

  if _shared(weight_RV):
    return _per_device(own, weight_RV, uniform_R)
  return within(uniform_R * jnp.sum(weight_RV, axis=-1), weight_RV)


def _passes(target_R: Array, weight_RJ: Array) -> tuple[Array, Array]:
  """Where running sums pass a target, and what it is past all before that.

  Sums that are made in parallel rise, or fall, by a rounding where a weight is
  0: such a place passes nothing.
  """
  sum_RJ, J = jnp.cumsum(weight_RJ, axis=-1), weight_RJ.shape[1]
  # What was summed in another order may reach the end of this sum.
  target_R = jnp.minimum(target_R, sum_RJ[:, -1] * (1 - 2**-24))
  counts_RJ, place_1J = weight_RJ > 0, jnp.arange(J)[None]
  passes_RJ = counts_RJ & (sum_RJ > target_R[:, None])
  last_R = jnp.max(jnp.where(counts_RJ, place_1J, 0), axis=-1)
  first_R = jnp.min(jnp.where(passes_RJ, place_1J, J), axis=-1)
  index_R = jnp.minimum(first_R, last_R).astype(jnp.int32)
  before_RJ = place_1J < index_R[:, None]
  left_R = target_R - jnp.max(before_RJ * sum_RJ, axis=-1)
  return index_R, jnp.maximum(left_R, 0.0)


def _blocks(x_XV: Array) -> Array:
  """Columns in blocks, XJV."""
  V = x_XV.shape[-1]
  return x_XV.reshape(*x_XV.shape[:-1], -1, math.gcd(V, _BLOCK))


def _shared(x_XV: Array) -> bool:
  """Whether several devices hold some of the columns each."""
  parts = sharding.tensor_shards()
  return parts > 1 and x_XV.shape[-1] % parts == 0


def _per_device(fn: Callable, x_XV: Array, *others: Array) -> Any:
  """Runs a function of each device's own columns; the result is all's."""
  columns = PartitionSpec(*[None] * (x_XV.ndim - 1), "tensor")
  return jax.shard_map(
    fn,
    in_specs=(columns, *[PartitionSpec()] * len(others)),
    out_specs=PartitionSpec(),
    axis_names={"tensor"},
    check_vma=False,
  )(x_XV, *others)
