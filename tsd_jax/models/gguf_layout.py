"""The layout of a GGUF file: metadata and where its tensors lie.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count and
length is compared with the bytes that are there before anything is made of it.
"""

import math
import mmap
import pathlib
import struct
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from tsd_jax.base.outside_files import MIB

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_HEADER_BYTES = 256 * MIB  # Of metadata and the list of tensors.
_ITEMS = 4_000_000  # Of all arrays in the metadata.
_DIMENSIONS = 4
_NAME_BYTES = 1_000
_TEXT_BYTES = MIB  # Of one text.
_SCALARS = {
  0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4",
  7: "u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_BOOL, _TEXT, _ARRAY = 7, 8, 9


class Tensor(NamedTuple):
  """Where a tensor lies."""

  name: str
  shape: tuple[int, ...]  # Rows first, as NumPy says it.
  kind: int  # ggml's number of a storage format.
  start: int  # From the beginning of the file.


class Layout(NamedTuple):
  """What a file says before its data begin."""

  metadata: dict[str, Any]
  tensors: list[Tensor]


def read(path: pathlib.Path, kinds: Collection[int]) -> Layout:
  """Reads metadata and the list of tensors.

  Args:
    path: of a regular file.
    kinds: storage formats that are known.

  Raises:
    ValueError: the file is damaged, or no GGUF file.
  """
  with path.open("rb") as file:
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  with data:
    return _Reader(data).layout(kinds)


class _Reader:
  """Reads from the front to the back, never past the end."""

  def __init__(self, data: mmap.mmap):
    self._data, self._at, self._items = data, 0, 0

  def layout(self, kinds: Collection[int]) -> Layout:
    if self._take(4) != _MAGIC:
      raise ValueError("it does not begin with GGUF")
    version = self._number("<I")
    if version not in _VERSIONS:
      raise ValueError(f"version {version} is not read")
    tensors, entries = self._number("<Q"), self._number("<Q")
    # A name's length, a kind and a value; for a tensor more.
    self._expect(entries, 13, "entries of metadata")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
      name = self._text(_NAME_BYTES)
      if name in metadata:
        raise ValueError(f"{name} is there twice")
      metadata[name] = self._value(self._number("<I"), name)
    self._expect(tensors, 24, "tensors")
    listed = [self._tensor(kinds) for _ in range(tensors)]
    if len({tensor.name for tensor in listed}) < tensors:
      raise ValueError("two tensors have one name")
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= MIB:
      raise ValueError(f"general.alignment={alignment!r:.60}")
    begin = -(-self._at // alignment) * alignment
    return Layout(metadata, [t._replace(start=begin + t.start) for t in listed])

  def _expect(self, count: int, size: int, what: str) -> None:
    """Refuses more than can be in the bytes that are left."""
    if count * size > len(self._data) - self._at:
      raise ValueError(f"{count:,} {what} do not fit into the file")

  def _take(self, size: int) -> bytes:
    start, self._at = self._at, self._at + size
    if self._at > min(len(self._data), _HEADER_BYTES):
      raise ValueError(f"its metadata do not end before byte {start:,}")
    return self._data[start : self._at]

  def _number(self, form: str) -> int:
    (value,) = struct.unpack(form, self._take(struct.calcsize(form)))
    return value

  def _text(self, most: int = _TEXT_BYTES) -> str:
    size = self._number("<Q")
    if size > most:
      raise ValueError(f"a text of {size:,} bytes")
    return self._take(size).decode()

  def _value(self, kind: int, name: str) -> Any:
    if kind == _TEXT:
      return self._text()
    if kind != _ARRAY:
      return self._scalars(kind, 1, name)[0]
    kind, count = self._number("<I"), self._number("<Q")
    self._items += count
    if self._items > _ITEMS:
      raise ValueError(f"{name} has {count:,} items, too many")
    if kind == _TEXT:
      self._expect(count, 8, f"items of {name}")
      return [self._text() for _ in range(count)]
    return self._scalars(kind, count, name)

  def _scalars(self, kind: int, count: int, name: str) -> list[Any]:
    if kind not in _SCALARS:  # Arrays of arrays among them.
      raise ValueError(f"{name} is of kind {kind}, which is not read")
    dtype = np.dtype(_SCALARS[kind])
    values = np.frombuffer(self._take(count * dtype.itemsize), dtype)
    return (values != 0 if kind == _BOOL else values).tolist()

  def _tensor(self, kinds: Collection[int]) -> Tensor:
    name, dimensions = self._text(_NAME_BYTES), self._number("<I")
    if not 0 < dimensions <= _DIMENSIONS:
      raise ValueError(f"{name} has {dimensions} dimensions")
    shape = struct.unpack(f"<{dimensions}Q", self._take(8 * dimensions))
    kind, start = self._number("<I"), self._number("<Q")
    if kind not in kinds:
      raise ValueError(f"{name} is stored in an unknown format, {kind}")
    if not 0 < math.prod(shape) < 2**48:
      raise ValueError(f"{name} has shape {list(shape)}")
    # ggml names axes in reverse.
    return Tensor(name, shape[::-1], kind, start)
