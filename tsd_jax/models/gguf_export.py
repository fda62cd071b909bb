"""GGUF files, written so that llama.cpp, transformers and `gguf.py` read them.

Tensors are gathered, stored and written one at a time. Value outputs, which
nobody else knows, are left out.
"""

import pathlib
from collections.abc import Iterable
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from tsd_jax.base import output_files, outside_files, paths
from tsd_jax.base.errors import UserError
from tsd_jax.models import families, gguf, gguf_vocabulary, names, weights
from tsd_jax.models.tokenizer import Tokenizer
from tsd_jax.models.transformer import ModelConfig

Dtype = Literal["float32", "bfloat16", "float16", "q8_0"]

# Ours -> ggml's name of a storage format, and its number of such a file.
_FORMATS = {
  "float32": ("F32", 0),
  "float16": ("F16", 1),
  "q8_0": ("Q8_0", 7),
  "bfloat16": ("BF16", 32),
}


def save(
  file: str | pathlib.Path,
  config: ModelConfig,
  params: Any,
  tokenizer: Tokenizer,
  *,
  max_length: int,
  dtype: Dtype = "float32",
) -> None:
  """Writes a GGUF file; it appears whole or not at all.

  Args:
    file: must not exist.
    config: shape of the model.
    params: its parameters.
    tokenizer: of symbols, or one that `gguf_vocabulary` can say.
    max_length: positions that the model was trained on.
    dtype: of the matrices; vectors stay float32, as llama.cpp wants them.
      `q8_0`: blocks of 32 bytes that share a scale.

  Raises:
    UserError: the file exists or cannot be written, the format cannot say the
      model or its tokenizer, or a parameter does not fit the precision.
  """
  file = paths.named(file)
  if file.suffix != ".gguf":
    raise UserError(f"--output={file}: name a file that ends with .gguf")
  if outside_files.is_there(file):
    raise UserError(f"--output={file} is there already: name a new file")
  library = gguf.library()
  kind, number = _FORMATS[dtype]
  metadata = {
    **families.to_gguf(config, max_length=max_length),
    "general.name": file.stem,
    "general.file_type": number,
    "general.quantization_version": library.GGML_QUANT_VERSION,
    **gguf_vocabulary.metadata(tokenizer, config.vocab_size),
  }
  leaves = weights.by_name(params)
  pieces = [*names.pieces(config, "gguf")]
  stored = library.GGMLQuantizationType[kind]
  _check_rows(pieces, dtype, library.GGML_QUANT_SIZES[stored][0])
  kept = jnp.dtype("float32" if dtype == "q8_0" else dtype)
  for ours in dict.fromkeys(piece.ours for piece in pieces):
    weights.check_fits(f"--dtype={dtype}", ours, leaves[ours], kept)
  with output_files.writing(f"--output={file}"):
    file.parent.mkdir(parents=True, exist_ok=True)
  with output_files.whole(file) as partial:
    _write(library, partial, metadata, config, pieces, leaves, stored)


def _check_rows(
  pieces: Iterable[names.Piece], dtype: Dtype, block: int
) -> None:
  """Refuses matrices whose rows are no whole blocks.

  Raises:
    UserError: naming one.
  """
  for piece in pieces:
    width = piece.their_shape[-1]
    if len(piece.their_shape) == 2 and width % block:
      raise UserError(
        f"--dtype={dtype} stores {block} numbers at a time, but a row of "
        f"{piece.theirs} has {width}: use float16"
      )


def _write(library, partial, metadata, config, pieces, leaves, stored) -> None:
  """Metadata, the list of tensors, then each tensor's numbers."""
  said = dict(metadata)
  arch = said.pop("general.architecture")
  writer = library.GGUFWriter(partial, arch)
  try:
    for name, value in said.items():
      _add(writer, name, value)
    matrix, vector = stored, library.GGMLQuantizationType.F32
    for piece in pieces:
      shape = piece.their_shape
      kind = matrix if len(shape) == 2 else vector
      size = np.prod(library.quant_shape_to_byte_shape(shape, kind))
      writer.add_tensor_info(
        piece.theirs, shape, np.dtype("float32"), int(size), kind
      )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for piece in pieces:
      array = _their_array(piece, config, leaves[piece.ours], arch)
      kind = matrix if array.ndim == 2 else vector
      writer.write_tensor_data(library.quantize(array, kind))
  finally:
    writer.close()


def _add(writer: Any, name: str, value: Any) -> None:
  """Metadata by the type of its value; integers are counts and ids."""
  add = {
    bool: writer.add_bool,
    float: writer.add_float32,
    int: writer.add_uint32,
    list: writer.add_array,
    str: writer.add_string,
  }
  add[type(value)](name, value)


def _their_array(
  piece: names.Piece, config: ModelConfig, leaf: Any, arch: str
) -> np.ndarray:
  """One tensor, float32, its rotary pairs as the architecture wants them."""
  array = np.asarray(leaf if piece.layer is None else leaf[piece.layer])
  array = np.ascontiguousarray(piece.to_theirs(array), np.float32)
  heads = {"query": config.num_heads, "key": config.num_kv_heads}
  part = piece.ours.removeprefix("layers.").partition("_")[0]
  if arch == "llama" and array.ndim == 2 and part in heads:
    return np.ascontiguousarray(gguf.neighbour_order(array, heads[part]))
  return array
