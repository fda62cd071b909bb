"""Parameters from the tensors of a published model, one tensor at a time.

Layers are stacked on the devices, so that the host never holds more than the
tensor on its way; under a sharding each device receives its part only.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from tsd_jax.base.errors import UserError
from tsd_jax.base.types import Array
from tsd_jax.models import names, transformer, weights
from tsd_jax.models.transformer import ModelConfig, Transformer


class Stored(NamedTuple):
  """A tensor in a file, not read yet."""

  file: str  # For messages.
  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


# Where a parameter is to lie, by its dotted name and shape.
Placement = Callable[[str, tuple[int, ...]], Sharding]


def assemble(
  config: ModelConfig,
  stored: Mapping[str, Stored],
  dialect: names.Dialect,
  *,
  where: str,
  placement: Placement | None = None,
  heads: Mapping[str, np.ndarray] | None = None,
):
  """Builds float32 parameters out of a published model's tensors.

  Args:
    config: shape of the model.
    stored: its tensors by their names.
    dialect: whose names those are.
    where: what an error calls the model.
    placement: sharding of each parameter; the default device without it.
    heads: value outputs by our names; fresh ones without them.

  Returns:
    graphdef and params.

  Raises:
    UserError: naming tensors that are missing, too many or misshapen (nothing
      has been read then), or one that holds what is no finite number.
  """
  if config.num_layers > len(stored):
    raise UserError(
      f"{where} has {len(stored):,} tensors, and its config says "
      f"{config.num_layers:,} layers: it is of another model, or incomplete"
    )
  pieces = list(names.pieces(config, dialect))
  check(pieces, stored, where)
  graphdef, shapes = transformer.abstract(config)
  heads = fresh_heads(config) if heads is None else heads
  check_heads(heads, weights.by_name(shapes), where)
  arrays: dict[str, Array] = {}
  for name, leaf in weights.by_name(shapes).items():
    sharding = None if placement is None else placement(name, leaf.shape)
    if names.is_value(name):
      arrays[name] = _put(np.asarray(heads[name], np.float32), sharding)
      continue
    mine = [piece for piece in pieces if piece.ours == name]
    if mine[0].layer is None:
      array = _put(mine[0].to_ours(stored[mine[0].theirs].read()), sharding)
      if array.dtype != jnp.float32:
        array = _as_float32(sharding)(array)
      arrays[name] = array.block_until_ready()
      _check_finite(array, mine, stored)
      continue
    stack, write = _zeros(leaf.shape, sharding)(), _write_layer(sharding)
    for piece in mine:
      array = piece.to_ours(stored[piece.theirs].read())
      stack = write(stack, _put(array, _of_one_layer(sharding)), piece.layer)
      stack.block_until_ready()  # Else tensors would queue up on the host.
    _check_finite(stack, mine, stored)
    arrays[name] = stack
  return graphdef, fill(shapes, arrays)


def check(
  pieces: list[names.Piece], stored: Mapping[str, Stored], where: str
) -> None:
  """Compares the tensors that a model has with those that it must have.

  Raises:
    UserError: naming what is missing, too many or misshapen.
  """
  wanted = {piece.theirs: piece for piece in pieces}
  if missing := [name for name in wanted if name not in stored]:
    raise UserError(
      f"{where} lacks {len(missing)} tensors: {', '.join(missing[:3])}; it is "
      "incomplete, or its config is of another model"
    )
  if extra := [name for name in stored if name not in wanted]:
    raise UserError(
      f"{where} has {len(extra)} tensors that a model of its config has not: "
      f"{', '.join(extra[:3])}"
    )
  for name, piece in wanted.items():
    if tuple(stored[name].shape) != piece.their_shape:
      raise UserError(
        f"{stored[name].file}: {name} has shape {list(stored[name].shape)}, "
        f"not {list(piece.their_shape)}: the config is of another model"
      )


def _check_finite(
  array: Array, pieces: list[names.Piece], stored: Mapping[str, Stored]
) -> None:
  """Refuses a parameter that is no number.

  Raises:
    UserError: naming the tensor.
  """
  if weights.is_finite(array):
    return
  for piece in pieces:
    part = array if piece.layer is None else array[piece.layer]
    if not weights.is_finite(part):
      raise UserError(
        f"{stored[piece.theirs].file}: {piece.theirs} holds values that are no "
        "finite numbers: the file is damaged, or of a training that diverged"
      )


def check_heads(heads: Mapping[str, np.ndarray], shapes, where: str) -> None:
  """Compares value outputs with those that a model must have.

  Raises:
    UserError: naming one of another shape, or all names where they differ.
  """
  wanted = {k: leaf.shape for k, leaf in shapes.items() if names.is_value(k)}
  if set(heads) != set(wanted):
    raise UserError(
      f"the value outputs of {where} are {', '.join(sorted(heads))}, not "
      f"{', '.join(sorted(wanted))}"
    )
  for name, shape in wanted.items():
    if heads[name].shape != shape:
      raise UserError(
        f"{where}: {name} has shape {list(heads[name].shape)}, not "
        f"{list(shape)}: these value outputs are of another model"
      )
    if not np.isfinite(heads[name]).all():
      raise UserError(
        f"{where}: {name} holds values that are no finite numbers"
      )


def fresh_heads(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
  """Value outputs as a new model has them; its trunk is never allocated."""

  @jax.jit  # XLA drops what is not returned.
  def heads():
    params = nnx.state(Transformer(config, nnx.Rngs(params=seed)), nnx.Param)
    leaves = weights.by_name(params)
    return {name: leaves[name] for name in leaves if names.is_value(name)}

  return jax.device_get(heads())


def fill(shapes, arrays: Mapping[str, Array]):
  """Arrays by dotted name as parameters; their placement stays."""
  return nnx.from_flat_state(
    (key, leaf.replace(arrays[".".join(map(str, key))]))
    for key, leaf in nnx.to_flat_state(shapes)
  )


def _put(array: np.ndarray, sharding: Sharding | None) -> Array:
  """Sends each device its part; several processes each send their own."""
  if sharding is None:
    return jax.device_put(array)
  return jax.make_array_from_callback(
    array.shape, sharding, lambda index: array[index]
  )


def _of_one_layer(sharding: Sharding | None) -> Sharding | None:
  """The sharding of a stack's slice."""
  if isinstance(sharding, NamedSharding):
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
  return sharding


@functools.cache
def _zeros(shape: tuple[int, ...], sharding: Sharding | None):
  return jax.jit(lambda: jnp.zeros(shape), out_shardings=sharding)


# Conversion happens on the device: tensors travel as they are stored.
@functools.cache
def _as_float32(sharding: Sharding | None):
  return jax.jit(lambda x: x.astype(jnp.float32), out_shardings=sharding)


@functools.cache
def _write_layer(sharding: Sharding | None):
  """Writes one layer of a stack in place."""

  def write(stack, layer, i):
    return jax.lax.dynamic_update_index_in_dim(
      stack, layer.astype(stack.dtype), i, axis=0
    )

  return jax.jit(write, out_shardings=sharding, donate_argnums=0)
