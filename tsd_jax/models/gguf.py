"""GGUF files of Llama, Qwen2 and Qwen3 models, any quantisation of ggml's.

Tensors are expanded to float32 one at a time as they are read.
"""

import functools
import pathlib
from typing import Any

import numpy as np

from tsd_jax.base.errors import UserError
from tsd_jax.models import assemble, families
from tsd_jax.models.transformer import ModelConfig


def open_file(path: str | pathlib.Path) -> "File":
  """Opens a file.

  Raises:
    UserError: if it is missing or damaged, or the `gguf` package is missing.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"no model at {path}")
  stat = path.stat()
  return _open(path.absolute(), stat.st_mtime_ns, stat.st_size)


class File:
  """An opened file: its metadata is read, its tensors are not."""

  def __init__(self, path: pathlib.Path):
    """Opens a file; see `open_file`."""
    try:
      import gguf
    except ImportError:
      raise UserError(
        "GGUF files need the extra `text`: pip install -e '.[text]'"
      ) from None
    self.path = path
    self._dequantize = gguf.dequantize
    try:
      reader = gguf.GGUFReader(self.path)
      self._tensors = {tensor.name: tensor for tensor in reader.tensors}
      self.metadata: dict[str, Any] = {
        name: field.contents() for name, field in reader.fields.items()
      }
    # What the reader raises depends on where in the file the bytes end.
    except (ValueError, LookupError, OverflowError, TypeError) as error:
      raise UserError(
        f"{path} is damaged or no GGUF file ({error}): fetch it again"
      ) from error
    if self.metadata.get("split.count", 1) != 1:
      raise UserError(
        f"{path} is one of several: split.count="
        f"{self.metadata['split.count']}; merge them with llama-gguf-split"
      )

  def card(self) -> families.Card:
    """Our shape of the model.

    Raises:
      UserError: naming what this model has and our core has not.
    """
    embedding = self._tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
      raise UserError(f"{self.path} lacks a matrix token_embd.weight")
    try:
      return families.from_gguf(
        self.metadata,
        vocab_size=int(embedding.shape[1]),  # ggml names axes in reverse.
        tied="output.weight" not in self._tensors,
      )
    except UserError as error:
      raise UserError(f"{self.path}: {error}") from None

  def tensors(self, config: ModelConfig) -> dict[str, assemble.Stored]:
    """All tensors, to be read later."""
    interleaved = self.metadata["general.architecture"] == "llama"
    heads = {"q": config.num_heads, "k": config.num_kv_heads}

    def stored(tensor) -> assemble.Stored:
      shape = tuple(int(n) for n in reversed(tensor.shape))

      def read() -> np.ndarray:
        try:
          array = self._dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
          raise UserError(
            f"{self.path}: {tensor.name} is stored as "
            f"{tensor.tensor_type.name}, which gguf cannot expand"
          ) from None
        # What is stored as float32 is a view of the file, which may change
        # while JAX still reads the same memory.
        if isinstance(array, np.memmap):
          array = np.array(array)
        array = array.reshape(shape)
        for kind, count in heads.items():
          if interleaved and tensor.name.endswith(f".attn_{kind}.weight"):
            array = rotate_half_order(array, count)
        return array

      return assemble.Stored(str(self.path), shape, read)

    return {name: stored(tensor) for name, tensor in self._tensors.items()}


@functools.lru_cache(maxsize=1)
def _open(path: pathlib.Path, mtime_ns: int, size: int) -> File:
  """Reading a vocabulary takes seconds: config, tokenizer, tensors share it."""
  del mtime_ns, size  # They tell one state of a file from another.
  return File(path)


def rotate_half_order(array: np.ndarray, heads: int) -> np.ndarray:
  """Undoes llama.cpp's order of rotary pairs: neighbours become halves."""
  paired = array.reshape(heads, -1, 2, *array.shape[1:])
  return paired.swapaxes(1, 2).reshape(array.shape)
