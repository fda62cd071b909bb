"""Parameters as one safetensors file: the warm start, and small checkpoints."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tsd_jax.base import output_files, outside_files
from tsd_jax.base.errors import UserError
from tsd_jax.base.types import Array
from tsd_jax.models.transformer import ModelConfig, abstract

_HEADER_BYTES = 16 * outside_files.MIB  # For some 100,000 tensors.


def named_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Shapes of a model's parameters by dotted name."""
  _, shapes = abstract(config)
  return {name: leaf.shape for name, leaf in by_name(shapes).items()}


def by_name(params) -> dict[str, Any]:
  """Leaves of parameters, or of their shapes, by dotted name; no copies."""
  flat = nnx.to_flat_state(params)
  return {".".join(map(str, k)): v.get_value() for k, v in flat}


def flatten(params) -> dict[str, np.ndarray]:
  """Parameters by dotted name, on the host."""
  return {name: np.asarray(leaf) for name, leaf in by_name(params).items()}


def value_trained(params: Any) -> bool:
  """Whether V_search has moved from its first weights, which are zero."""
  output_2D = by_name(params)["value_output_2D"]
  return bool(jnp.any(output_2D[1] != 0))


def unflatten(params, arrays: dict[str, np.ndarray]):
  """Arrays by dotted name, in the structure of given parameters."""
  filled = [
    (key, v.replace(jnp.asarray(arrays[".".join(map(str, key))], jnp.float32)))
    for key, v in nnx.to_flat_state(params)
  ]
  return nnx.from_flat_state(filled)


@functools.partial(jax.jit, static_argnames="dtype")
def is_finite(array, dtype=jnp.float32) -> Array:
  """Tells whether all numbers are finite in a precision."""
  if jnp.finfo(dtype).max < jnp.finfo(array.dtype).max:
    # Not cast to it: XLA on CPU leaves such a cast out.
    return largest(array) <= float(jnp.finfo(dtype).max)
  # What is not finite is NaN times 0; XLA on CPU makes an array of `isfinite`.
  return jnp.sum(array * 0) == 0


@jax.jit
def largest(array) -> Array:
  """The largest magnitude; NaN where there is one and nothing is infinite."""
  found = jnp.max(jnp.abs(array), initial=0)
  # The maximum of XLA on CPU passes over NaN.
  return jnp.where(is_finite(array) | jnp.isinf(found), found, jnp.nan)


def check_fits(setting: str, name: str, array, dtype) -> None:
  """Refuses to write a parameter as what it is not.

  Args:
    setting: what chose the precision.
    name: the parameter's.
    array: its values.
    dtype: the precision.

  Raises:
    UserError: a value is not finite, or not in this precision.
  """
  if is_finite(array, dtype):
    return
  if not is_finite(array):
    raise UserError(
      f"{name} holds values that are no finite numbers: the training diverged, "
      "take an earlier checkpoint"
    )
  raise UserError(
    f"{setting} ends at {float(jnp.finfo(dtype).max):.6g}, but {name} has "
    f"{float(largest(array)):.6g}: use float32"
  )


def save(path, params, *, metadata: dict[str, str], dtype="float16") -> None:
  """Writes parameters; half precision keeps a start small.

  Raises:
    UserError: a parameter is not finite in this precision, or the file cannot
      be written.
  """
  for name, leaf in by_name(params).items():
    check_fits(f"dtype={dtype}", name, leaf, jnp.dtype(dtype))
  arrays = {k: v.astype(dtype) for k, v in flatten(params).items()}
  with output_files.whole(pathlib.Path(path)) as partial:
    save_tensors(arrays, partial, metadata)


def save_tensors(
  arrays: dict[str, np.ndarray], file: pathlib.Path, metadata: dict[str, str]
) -> None:
  """Writes a safetensors file.

  Raises:
    OSError: it cannot be written.
  """
  file.touch()
  mode = file.stat().st_mode  # The library's own file is its owner's alone.
  try:
    save_file(arrays, str(file), metadata=metadata)
    file.chmod(mode)
  except SafetensorError as error:  # It knows no OSError.
    raise OSError(str(error)) from error


def load(path, params):
  """Reads parameters into the structure of given ones, as float32.

  Args:
    path: safetensors file that `save` wrote.
    params: parameters (or shapes) to fill.

  Returns:
    New parameters and the file's metadata.

  Raises:
    UserError: if the file is missing, damaged or of another model.
  """
  flat = nnx.to_flat_state(params)
  wanted = {".".join(map(str, k)): tuple(v.shape) for k, v in flat}
  try:
    file = open_file(path)
  except outside_files.MissingFile:
    raise UserError(
      f"no parameters at {path}: set --config.init=none to start from scratch"
    ) from None
  names = list(file.keys())
  found = {name: tuple(file.get_slice(name).get_shape()) for name in names}
  if wanted != found:
    odd = sorted(set(wanted.items()) ^ set(found.items()))
    raise UserError(
      f"{path} holds another model than the config's: differs in {odd[:4]}"
    )
  with outside_files.library(path):
    arrays = {name: file.get_tensor(name) for name in names}
  metadata = file.metadata() or {}
  for name, array in arrays.items():
    if not is_finite(array):
      raise UserError(f"{path}: {name} holds values that are no finite numbers")
  return unflatten(params, arrays), metadata


def open_file(path: str | pathlib.Path) -> Any:
  """Opens a safetensors file; its header is checked at once.

  Raises:
    MissingFile, UserError: it is missing, no regular file, or damaged.
  """
  _check_header(path)
  with outside_files.library(path):
    return safe_open(str(path), framework="numpy")


def _check_header(path: str | pathlib.Path) -> None:
  """Refuses a header that lists more tensors than any model has."""
  size = outside_files.read_start(path, 8)
  length = int.from_bytes(size, "little")
  if length > _HEADER_BYTES:
    raise UserError(
      f"{path} is damaged: its header has {length:,} bytes, more than "
      f"{_HEADER_BYTES:,}; fetch it again"
    )
