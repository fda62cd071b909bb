"""Ranking and adding up along a vocabulary that devices share.

Inside `sharding.per_part` the columns of logits lie on the devices of the
tensor axis. The compiler would bring all of them together to rank or to add
them; here a device does its own columns and sends what the others need of it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from tsd_jax import sharding
from tsd_jax.types import Array


def top_k(x_XV: Array, count: int) -> tuple[Array, Array]:
  """`jax.lax.top_k`, ties in order of their index.

  Args:
    x_XV: what is ranked.
    count: how many.

  Returns:
    Values and indices, each behind a barrier: without it a slice of the result,
    merged into top_k's own, makes XLA on CPU sort the whole vocabulary instead.
  """

  def best(x_XV, count):
    return map(jax.lax.optimization_barrier, jax.lax.top_k(x_XV, count))

  def own(x_XV):
    width = x_XV.shape[-1]
    value_XA, index_XA = best(x_XV, min(count, width))
    index_XA += width * jax.lax.axis_index("tensor")
    value_XE, index_XE = (
      jax.lax.all_gather(a, "tensor", axis=a.ndim - 1, tiled=True)
      for a in (value_XA, index_XA)
    )
    value_XA, place_XA = best(value_XE, count)
    return value_XA, jnp.take_along_axis(index_XE, place_XA, axis=-1)

  if not _shared(x_XV):
    return tuple(best(x_XV, count))
  return _per_device(own, x_XV, PartitionSpec())


def cumsum(x_XV: Array) -> Array:
  """Cumulative sums along the last axis."""

  def own(x_XV):
    sum_XV = jnp.cumsum(x_XV, axis=-1)
    sum_NX = jax.lax.all_gather(sum_XV[..., -1], "tensor")
    earlier_N = jnp.arange(len(sum_NX)) < jax.lax.axis_index("tensor")
    before_X = jnp.tensordot(earlier_N.astype(sum_NX.dtype), sum_NX, axes=1)
    return before_X[..., None] + sum_XV

  if not _shared(x_XV):
    return jnp.cumsum(x_XV, axis=-1)
  return _per_device(own, x_XV, _columns(x_XV))


def _shared(x_XV: Array) -> bool:
  """Whether several devices hold some of the columns each."""
  parts = sharding.tensor_parts()
  return parts > 1 and x_XV.shape[-1] % parts == 0


def _columns(x_XV: Array) -> PartitionSpec:
  return PartitionSpec(*[None] * (x_XV.ndim - 1), "tensor")


def _per_device(fn: Callable, x_XV: Array, out: PartitionSpec) -> Any:
  """Runs a function of each device's own columns."""
  return jax.shard_map(
    fn,
    in_specs=_columns(x_XV),
    out_specs=out,
    axis_names={"tensor"},
    check_vma=False,
  )(x_XV)
