"""Reads compiled programs (HLO text): what they send, and from which loops."""

import dataclasses
import math
import re

import numpy as np

_BYTES = {
  "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
  "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
# `%name = TYPE opcode(operands), attributes`
_LINE = re.compile(
  r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>\(.*?\)|\S+) "
  r"(?P<op>[a-z][\w\-]*)\((?P<rest>.*)$"
)
_HEAD = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) .*\{\s*$")
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition|true_computation|false_computation)="
  r"%?([\w.\-]+)|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One instruction that moves data between devices.

  Attributes:
    kind: one of `KINDS`.
    bytes: size of its result on one device.
    groups: devices that talk to each other; empty if all of them do.
    scope: where in the Python code it comes from.
    computation: the HLO computation it stands in.
  """

  kind: str
  bytes: int
  groups: tuple[tuple[int, ...], ...]
  scope: str
  computation: str


def shape_bytes(text: str) -> int:
  """Bytes of a type; a tuple's are summed."""
  return sum(
    _BYTES.get(dtype, 4) * math.prod(int(d) for d in dims.split(",") if d)
    for dtype, dims in _SHAPE.findall(text)
  )


def replica_groups(text: str) -> tuple[tuple[int, ...], ...]:
  """Reads `{{0,1},{2,3}}`, or `[2,2]<=[4]` and `[2,2]<=[2,2]T(1,0)`."""
  listed = re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", text)
  if listed:
    inner = re.findall(r"\{([\d,]*)\}", listed[1])
    return tuple(tuple(int(i) for i in g.split(",") if i) for g in inner)
  pattern = r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
  found = re.search(pattern, text)
  if found:
    groups, dims, order = (
      [int(i) for i in part.split(",")] if part else None
      for part in found.groups()
    )
    ids = np.arange(math.prod(dims)).reshape(dims)
    ids = ids.transpose(order) if order else ids
    return tuple(tuple(row) for row in ids.reshape(groups).tolist())
  pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", text)
  if pairs:
    inner = re.findall(r"\{(\d+),(\d+)\}", pairs[1])
    return tuple((int(a), int(b)) for a, b in inner)
  return ()


class Program:
  """A compiled program's computations and what they call."""

  def __init__(self, text: str):
    """Parses `compiled.as_text()`."""
    self.collectives: list[Collective] = []
    self.instructions = 0
    self._calls: dict[str, set[str]] = {}
    self._loops: list[tuple[str, str, set[str]]] = []
    computation = ""
    for line in text.splitlines():
      head = _HEAD.match(line)
      if head and " = " not in line.partition("->")[0]:
        computation = head["name"]
        self._calls.setdefault(computation, set())
        continue
      found = _LINE.match(line)
      if not found:
        continue
      self.instructions += 1
      called = set()
      for one, many in _CALLED.findall(found["rest"]):
        names = [one] if one else many.split(",")
        called |= {n.strip().lstrip("%") for n in names}
      self._calls.setdefault(computation, set()).update(called)
      scope = re.search(r'op_name="([^"]*)"', found["rest"])
      scope = scope[1] if scope else ""
      if found["op"] == "while":
        self._loops.append((computation, scope, called))
      kind = found["op"].removesuffix("-start")
      if kind in KINDS:
        size = shape_bytes(found["type"])
        if found["op"].endswith("-start") and kind != "all-reduce":
          size = shape_bytes(found["type"].strip("()").rpartition(" ")[2])
        self.collectives.append(
          Collective(
            kind, size, replica_groups(found["rest"]), scope, computation
          )
        )

  def _reached(self, start: set[str]) -> set[str]:
    reached, new = set(), set(start)
    while new:
      reached |= new
      new = {c for n in new for c in self._calls.get(n, ())} - reached
    return reached

  def in_loops(self, scope: str) -> list[Collective]:
    """Collectives in any loop that a scope of the Python code makes."""
    roots = [called for _, at, called in self._loops if scope in at]
    inside = self._reached(set().union(*roots)) if roots else set()
    return [c for c in self.collectives if c.computation in inside]

  def has_loops(self, scope: str) -> bool:
    """Whether a scope makes a loop at all."""
    return any(scope in at for _, at, _ in self._loops)

  def totals(self) -> dict[str, dict[str, int]]:
    """Instructions and result bytes by kind; a loop's body counts once."""
    totals = {}
    for c in self.collectives:
      entry = totals.setdefault(c.kind, {"count": 0, "bytes": 0})
      entry["count"] += 1
      entry["bytes"] += c.bytes
    return totals
