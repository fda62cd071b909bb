"""Reads compiled programs (HLO text): what they multiply, what they send."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence

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
_LESS = re.compile(r"%[\w.\-]+, %([\w.\-]+)\), direction=LT")
_CONTRACTED = re.compile(r"%([\w.\-]+).*?lhs_contracting_dims=\{([\d,]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One instruction that moves data between devices.

  Attributes:
    kind: one of `KINDS`.
    bytes: size of its result on one device; of what is summed, where that is
      scattered.
    groups: devices that talk to each other; empty if all of them do.
    scope: where in the Python code it comes from.
    computation: the HLO computation it stands in.
  """

  kind: str
  bytes: int
  groups: tuple[tuple[int, ...], ...]
  scope: str
  computation: str


@dataclasses.dataclass(frozen=True)
class Product:
  """One matrix multiplication: its operations, and where it stands."""

  flops: int
  scope: str
  computation: str


@dataclasses.dataclass(frozen=True)
class Loop:
  """A while instruction: where it stands, what it calls, how often."""

  computation: str
  scope: str
  called: frozenset[str] | set[str]
  trips: int | None  # None where it depends on the numbers.


def shape_bytes(text: str) -> int:
  """Bytes of a type; a tuple's are summed."""
  return sum(
    _BYTES.get(dtype, 4) * math.prod(int(d) for d in dims.split(",") if d)
    for dtype, dims in _SHAPE.findall(text)
  )


def dimensions(text: str) -> list[int]:
  """Sizes of a type's axes; of the first one, if it is a tuple."""
  dims = _SHAPE.search(text)
  return [int(d) for d in dims[2].split(",") if d] if dims else []


def replica_groups(text: str) -> tuple[tuple[int, ...], ...]:
  """Reads `{{0,1},{2,3}}`, `[2,2]<=[4]` and `[2,2]<=[2,2]T(1,0)`, or names.

  With names, `mesh['a'=2,'b'=4] {'b'}`, the groups run along the named axes.
  """
  listed = re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", text)
  if listed:
    inner = re.findall(r"\{([\d,]*)\}", listed[1])
    return tuple(tuple(int(i) for i in g.split(",") if i) for g in inner)
  pattern = r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
  found = re.search(pattern, text)
  if found:
    groups, dims, order = (
      [int(i) for i in (part or "").split(",") if i] for part in found.groups()
    )
    ids = np.arange(math.prod(dims)).reshape(dims)
    ids = ids.transpose(order) if order else ids
    return tuple(tuple(row) for row in ids.reshape(groups).tolist())
  named = re.search(r"replica_groups=mesh\[([^]]*)\] \{([^}]*)\}", text)
  if named:
    size = {k: int(n) for k, n in re.findall(r"'(\w+)'=(\d+)", named[1])}
    along = re.findall(r"'(\w+)'", named[2])
    ids = np.arange(math.prod(size.values())).reshape(list(size.values()))
    ids = np.moveaxis(ids, [list(size).index(a) for a in along],
                      range(-len(along), 0))  # fmt: skip
    groups = math.prod(size[a] for a in along)
    return tuple(tuple(row) for row in ids.reshape(-1, groups).tolist())
  pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", text)
  if pairs:
    inner = re.findall(r"\{(\d+),(\d+)\}", pairs[1])
    return tuple((int(a), int(b)) for a, b in inner)
  return ()


def result_of(pair: str) -> str:
  """The type of a send's result: (operand, result), and a TPU's own words."""
  kept = re.sub(r", u32\[\](\{[^}]*\})?", "", pair)
  return kept.strip("()").rpartition(" ")[2]


class Program:
  """A compiled program's computations and what they call."""

  def __init__(self, text: str):
    """Parses `compiled.as_text()`."""
    self.collectives: list[Collective] = []
    self.products: list[Product] = []
    self.instructions = 0
    shape_of: dict[str, list[int]] = {}
    constant: dict[str, int] = {}
    bound: dict[str, int] = {}  # Of conditions that only count from 0.
    self._calls: dict[str, set[str]] = {}
    self._loops: list[Loop] = []
    channels: list[str] = []  # Of the collectives.
    starts: set[str] = set()  # Computations that begin a send.
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
        known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', found["rest"])
        trips = int(known[1]) if known else None
        self._loops.append(Loop(computation, scope, called, trips))
      shape_of[found["name"]] = dimensions(found["type"])
      if found["op"] == "constant" and (n := re.match(r"\d+\)", found["rest"])):
        constant[found["name"]] = int(n[0][:-1])
      less = _LESS.search(found["rest"]) if "ROOT" in line else None
      if found["op"] == "compare" and less and less[1] in constant:
        bound[computation] = constant[less[1]]
      if found["op"] == "dot":
        (left, axes), *_ = _CONTRACTED.findall(found["rest"])
        inner = [shape_of[left][int(a)] for a in axes.split(",") if a]
        flops = 2 * math.prod(shape_of[found["name"]] + inner)
        self.products.append(Product(flops, scope, computation))
      if 'custom_call_target="AsyncCollectiveStart"' in found["rest"]:
        starts.add(computation)
      kind = found["op"].removesuffix("-start")
      if kind in KINDS:
        size = shape_bytes(found["type"])
        groups = replica_groups(found["rest"])
        if found["op"].endswith("-start") and kind != "all-reduce":
          size = shape_bytes(result_of(found["type"]))
        if computation.startswith("all-reduce-scatter"):
          # A sum of which a TPU's device keeps its part: two instructions.
          kind = "reduce-scatter"
        elif kind == "reduce-scatter" and groups:
          size *= len(groups[0])
        self.collectives.append(
          Collective(kind, size, groups, scope, computation)
        )
        channel = re.search(r"channel_id=(\d+)", found["rest"])
        channels.append(channel[1] if channel else "")

    # A TPU names a send again in all that it computes until the send is done.
    pairs = list(zip(self.collectives, channels, strict=True))
    begun = {channel for c, channel in pairs if c.computation in starts}
    self.collectives = [
      c
      for c, channel in pairs
      if channel not in begun or c.computation in starts
    ]
    # A TPU's program leaves out how often its loops run.
    self._loops = [
      dataclasses.replace(loop, trips=limits[0])
      if loop.trips is None
      and (limits := [bound[name] for name in loop.called if name in bound])
      else loop
      for loop in self._loops
    ]

  def _reached(self, start: set[str]) -> set[str]:
    reached, new = set(), set(start)
    while new:
      reached |= new
      new = {c for n in new for c in self._calls.get(n, ())} - reached
    return reached

  def in_loops(self, scope: str) -> list[Collective]:
    """Collectives in any loop that a scope of the Python code makes."""
    roots = [loop.called for loop in self._loops if scope in loop.scope]
    inside = self._reached(set().union(*roots)) if roots else set()
    return [c for c in self.collectives if c.computation in inside]

  def has_loops(self, scope: str) -> bool:
    """Whether a scope makes a loop at all."""
    return any(scope in loop.scope for loop in self._loops)

  def _count(self, loop: Loop, trips: Mapping[str, Sequence[int]]) -> int:
    """How often a loop's body runs each time that the loop is reached."""
    if loop.trips is not None:
      return loop.trips
    for scope, counts in trips.items():
      if scope in loop.scope:
        around = {
          other.scope
          for other in self._loops
          if other.trips is None
          and scope in other.scope
          and loop.scope.startswith(other.scope + "/")
        }
        return counts[len(around)] if len(around) < len(counts) else 1
    return 1

  def _times(self, trips: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """How often every computation runs when the program runs once."""
    factor = {}
    for loop in self._loops:
      count = self._count(loop, trips)
      factor |= {(loop.computation, name): count for name in loop.called}
    callers: dict[str, list[tuple[str, int]]] = {}
    for caller, names in self._calls.items():
      for name in names:
        weight = factor.get((caller, name), 1)
        callers.setdefault(name, []).append((caller, weight))

    @functools.cache
    def times(name: str) -> int:
      if name not in callers:
        return 1  # The entry.
      return sum(times(caller) * n for caller, n in callers[name])

    return {name: times(name) for name in self._calls}

  def totals(
    self, trips: Mapping[str, Sequence[int]] | None = None, scope: str = ""
  ) -> dict[str, dict[str, int]]:
    """Collectives of one run of the program, by kind.

    Args:
      trips: how often the loops of a scope run whose length the compiler does
        not know: the outermost of them, those inside of it, and so on; once,
        where it is not given.
      scope: count only what comes from there.

    Returns:
      kind -> instructions, how often they run, and bytes of all results.
    """
    times, totals = self._times(trips or {}), {}
    for c in self.collectives:
      if scope not in c.scope:
        continue
      entry = totals.setdefault(c.kind, dict(instructions=0, runs=0, bytes=0))
      runs = times.get(c.computation, 1)
      entry["instructions"] += 1
      entry["runs"] += runs
      entry["bytes"] += runs * c.bytes
    return totals

  def flops(
    self, trips: Mapping[str, Sequence[int]] | None = None, scope: str = ""
  ) -> int:
    """Operations of all multiplications in one run, on one device.

    A CPU's program keeps them as `dot` instructions; a TPU's does not.

    Args:
      trips: as for `totals`.
      scope: count only what comes from there.
    """
    times = self._times(trips or {})
    return sum(
      p.flops * times.get(p.computation, 1)
      for p in self.products
      if scope in p.scope
    )
