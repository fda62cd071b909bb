"""Counts and lengths of a GGUF file, held against the bytes that are there."""

import struct
import time

import pytest

from tsd_jax.models import gguf_layout

KINDS = {0}  # float32


def text(value):
  content = value.encode()
  return struct.pack("<Q", len(content)) + content


def entry(name, kind, value):
  return text(name) + struct.pack("<I", kind) + value


def array(kind, count, content):
  return struct.pack("<IQ", kind, count) + content


def tensor(name, shape, kind=0, start=0):
  dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
  return text(name) + dimensions + struct.pack("<IQ", kind, start)


def write(path, entries=(), tensors=(), counts=None, version=3):
  counts = counts or (len(tensors), len(entries))
  head = b"GGUF" + struct.pack("<IQQ", version, *counts)
  path.write_bytes(head + b"".join(entries) + b"".join(tensors))
  return path


def test_metadata_and_tensors_are_read_as_written(tmp_path):
  path = write(
    tmp_path / "m.gguf",
    [
      entry("a", 4, struct.pack("<I", 7)),
      entry("b", 6, struct.pack("<f", 0.5)),
      entry("c", 7, b"\x01"),
      entry("d", 8, text("é")),
      entry("e", 9, array(8, 2, text("x") + text(""))),
      entry("f", 9, array(5, 3, struct.pack("<3i", -1, 0, 1))),
      entry("g", 9, array(7, 2, b"\x00\x01")),
    ],
    [tensor("t", (3, 2)), tensor("u", (4,), start=32)],
  )
  found = gguf_layout.read(path, KINDS)
  assert found.metadata == {
    "a": 7, "b": 0.5, "c": True, "d": "é", "e": ["x", ""], "f": [-1, 0, 1],
    "g": [False, True],
  }  # fmt: skip
  assert [(t.name, t.shape) for t in found.tensors] == [
    ("t", (2, 3)), ("u", (4,)),
  ]  # fmt: skip
  first, second = (t.start for t in found.tensors)
  assert first % 32 == 0 and second == first + 32
  assert first - path.stat().st_size in range(32)


@pytest.mark.parametrize(
  ("entries", "tensors", "counts", "message"),
  [
    ((), (), (0, 2**63), "entries of metadata do not fit"),
    ((), (), (2**63, 0), "tensors do not fit"),
    ([entry("a", 9, array(0, 2**62, b""))], (), None, "items, too many"),
    ([entry("a", 9, array(0, 10**6, b""))], (), None, "do not end before"),
    ([entry("a", 9, array(8, 10**6, b""))], (), None, "items of a do not fit"),
    ([entry("a", 9, array(9, 1, array(0, 1, b"1")))], (), None, "of kind 9"),
    ([entry("a", 99, b"")], (), None, "a is of kind 99"),
    ([entry("a", 7, b"1")] * 2, (), None, "a is there twice"),
    ([entry("a", 8, struct.pack("<Q", 2**60))], (), None, "a text of"),
    ([entry("a", 8, struct.pack("<Q", 9))], (), None, "do not end before"),
    ((), [tensor("t", (2**40, 2**40))], None, "t has shape"),
    ((), [tensor("t", (0, 2))], None, "t has shape"),
    ((), [tensor("t", (1,) * 9)], None, "t has 9 dimensions"),
    ((), [tensor("t", (1,), kind=77)], None, "unknown format, 77"),
    ((), [tensor("t", (1,))] * 2, None, "two tensors have one name"),
    ([entry("general.alignment", 4, b"\0" * 4)], (), None, "alignment=0"),
  ],
)
def test_more_than_there_is_is_refused_at_once(
  tmp_path, entries, tensors, counts, message
):
  path = write(tmp_path / "m.gguf", entries, tensors, counts)
  start = time.monotonic()
  with pytest.raises(ValueError, match=message):
    gguf_layout.read(path, KINDS)
  assert time.monotonic() - start < 1


def test_five_million_bytes_in_an_array_take_no_time(tmp_path):
  content = array(0, 3_000_000, bytes(3_000_000))
  path = write(tmp_path / "m.gguf", [entry("a", 9, content)])
  start = time.monotonic()
  assert len(gguf_layout.read(path, KINDS).metadata["a"]) == 3_000_000
  assert time.monotonic() - start < 2
