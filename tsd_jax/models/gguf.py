"""GGUF files of Llama, Qwen2 and Qwen3 models, any quantisation of ggml's.

Tensors are expanded to float32 one at a time as they are read.
"""

import functools
import math
import pathlib
from typing import Any

import numpy as np

from tsd_jax.base import outside_files
from tsd_jax.base.errors import UserError
from tsd_jax.models import assemble, families, gguf_layout
from tsd_jax.models.transformer import ModelConfig


def open_file(path: str | pathlib.Path) -> "File":
  """Opens a file.

  Raises:
    UserError: if it is missing or damaged, or the `gguf` package is missing.
  """
  path = pathlib.Path(path)
  try:
    outside_files.read_start(path, 0)
  except outside_files.MissingFile:
    raise UserError(f"no model at {path}") from None
  stat = path.stat()
  return _open(path.absolute(), stat.st_mtime_ns, stat.st_size)


def library() -> Any:
  """The package `gguf`.

  Raises:
    UserError: it is not installed.
  """
  try:
    import gguf
  except ImportError:
    raise UserError(
      "GGUF files need the extra `text`: pip install -e '.[text]'"
    ) from None
  return gguf


class File:
  """An opened file: its metadata is read, its tensors are not."""

  def __init__(self, path: pathlib.Path):
    """Opens a file; see `open_file`."""
    self.path = path
    self._gguf = library()
    try:
      layout = gguf_layout.read(path, self._gguf.GGML_QUANT_SIZES)
      self.metadata: dict[str, Any] = layout.metadata
      data = np.memmap(path, mode="r")
      self._tensors = {t.name: self._stored(t, data) for t in layout.tensors}
    except ValueError as error:
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
        vocab_size=embedding.shape[0],
        tied="output.weight" not in self._tensors,
      )
    except UserError as error:
      raise UserError(f"{self.path}: {error}") from None

  def tensors(self, config: ModelConfig) -> dict[str, assemble.Stored]:
    """All tensors, to be read later."""
    if self.metadata["general.architecture"] != "llama":
      return dict(self._tensors)
    heads = {"q": config.num_heads, "k": config.num_kv_heads}

    def ordered(name: str, tensor: assemble.Stored) -> assemble.Stored:
      part = name.rpartition(".attn_")[2].removesuffix(".weight")
      if part not in heads:
        return tensor
      return tensor._replace(
        read=lambda: rotate_half_order(tensor.read(), heads[part])
      )

    return {name: ordered(name, t) for name, t in self._tensors.items()}

  def _stored(
    self, tensor: gguf_layout.Tensor, data: np.memmap
  ) -> assemble.Stored:
    """A tensor of the file.

    Raises:
      ValueError: it reaches past the file's end, or has no whole blocks.
    """
    kind = self._gguf.GGMLQuantizationType(tensor.kind)
    shape = self._gguf.quant_shape_to_byte_shape(tensor.shape, kind)
    end = tensor.start + math.prod(shape)
    if end > data.size:
      raise ValueError(f"{tensor.name} ends at byte {end:,} of {data.size:,}")

    def read() -> np.ndarray:
      stored = data[tensor.start : end].reshape(shape)
      try:
        array = self._gguf.dequantize(stored, kind)
      except NotImplementedError:
        raise UserError(
          f"{self.path}: {tensor.name} is stored as {kind.name}, which gguf "
          "cannot expand"
        ) from None
      # What is stored as float32 is a view of the file, which may change
      # while JAX still reads the same memory.
      if isinstance(array, np.memmap):
        array = np.array(array)
      return array.reshape(tensor.shape)

    return assemble.Stored(str(self.path), tensor.shape, read)


@functools.lru_cache(maxsize=1)
def _open(path: pathlib.Path, mtime_ns: int, size: int) -> File:
  """Reading a vocabulary takes seconds: config, tokenizer, tensors share it."""
  del mtime_ns, size  # They tell one state of a file from another.
  return File(path)


def rotate_half_order(array: np.ndarray, heads: int) -> np.ndarray:
  """Undoes llama.cpp's order of rotary pairs: neighbours become halves."""
  paired = array.reshape(heads, -1, 2, *array.shape[1:])
  return paired.swapaxes(1, 2).reshape(array.shape)


def neighbour_order(array: np.ndarray, heads: int) -> np.ndarray:
  """llama.cpp's order of rotary pairs: halves become neighbours."""
  halves = array.reshape(heads, 2, -1, *array.shape[1:])
  return halves.swapaxes(1, 2).reshape(array.shape)
