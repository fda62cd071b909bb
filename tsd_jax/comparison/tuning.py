"""How a method's settings are chosen: a climb over a few knobs.

A point says how many steps each knob stands from the recipe. The next trial is
a neighbour of the best point so far that has an untried one: a method whose
best setting lies at the edge of what was tried goes on beyond it. All methods
make the same number of trials.
"""

from collections.abc import Callable, Iterator, Mapping

Point = tuple[int, ...]  # Steps from the recipe along each knob.

_RATE = 1.5  # Of a knob that is a real number, a step; whole numbers double.


def value(start: int | float | bool, steps: int) -> int | float | bool | None:
  """What a knob says some steps from its start; None where it has no more.

  Args:
    start: a switch, of which there is one more value, a whole number, which
      doubles and halves, or a real number.
    steps: how many, below 0 for less.
  """
  if steps and not start and not isinstance(start, bool):
    return None  # Every step of 0 is 0.
  match start:
    case bool():
      return start ^ bool(steps) if steps in (0, 1) else None
    case int():
      if steps >= 0:
        return start << steps
      return None if start % (1 << -steps) else start >> -steps
    case _:
      return float(f"{start * _RATE**steps:.2g}")


def neighbours(point: Point) -> Iterator[Point]:
  """Points that are a step away, the first knob's before the next one's."""
  for i, at in enumerate(point):
    for step in (1, -1):
      yield (*point[:i], at + step, *point[i + 1 :])


def next_point(
  knobs: int, scores: Mapping[Point, float], exists: Callable[[Point], bool]
) -> Point | None:
  """The point to try next; None where all that exist are tried.

  Args:
    knobs: how many there are.
    scores: of the points that were tried, in the order of their trials.
    exists: whether a point is a setting that can run.
  """
  if not scores:
    return (0,) * knobs
  for point in sorted(scores, key=scores.__getitem__, reverse=True):
    for near in neighbours(point):
      if near not in scores and exists(near):
        return near
  return None


def best(scores: Mapping[Point, float]) -> Point:
  """The point that scored highest, the first of those that are equal."""
  return max(scores, key=scores.__getitem__)


def edges(
  scores: Mapping[Point, float], exists: Callable[[Point], bool]
) -> list[int]:
  """Knobs of which a value beside the best one exists and was not tried."""
  at = best(scores)
  open_knobs = {
    next(i for i, (a, b) in enumerate(zip(at, near, strict=True)) if a != b)
    for near in neighbours(at)
    if near not in scores and exists(near)
  }
  return sorted(open_knobs)
