"""Plots as elements of a page: SVG that takes the page's colours.

A plot is data (`Plot`, `Bars`); what it is drawn with knows nothing of runs.
Written element by element, a page of twenty takes milliseconds, follows a
reader's dark or light scheme, and is the same bytes every time.
"""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LIGHT = ("#1b6ca8", "#d1495b", "#2e933c", "#7048b6")
LIGHT += ("#b97a00", "#4a4f57", "#008a8a", "#b05070")
DARK = ("#63b3ed", "#ff8793", "#6fd07d", "#b79cf2")
DARK += ("#f0b94d", "#b8c0cc", "#4fd1c5", "#f2a0bb")
_BORDERS = {"-": "solid", ":": "dotted", "--": "dashed"}  # In a legend.
DASHES = {"-": "", ":": "2 3", "--": "7 4"}
_POINTS = 400  # Of a line, at most: a page stays small however long a run.
_MARKED = 40  # Points that are marked one by one, and tell their values.
WIDTH, HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 38


class Line(NamedTuple):
  """A curve, with bounds where it has some."""

  name: str
  x: np.ndarray
  y: np.ndarray
  low: np.ndarray | None = None
  high: np.ndarray | None = None
  colour: int = 0  # Place in the colours; goes round.
  stroke: str = "-"  # A key of `DASHES`.


class Level(NamedTuple):
  """A value that curves are held against: a dotted line across."""

  name: str
  y: float


class Mark(NamedTuple):
  """Where something happened: a dotted line down."""

  name: str
  x: float


class Plot(NamedTuple):
  """Curves in axes."""

  key: str  # Names its files.
  title: str
  x_label: str
  y_label: str
  lines: Sequence[Line]
  levels: Sequence[Level] = ()
  from_zero: bool = False
  note: str = ""  # What a reader should know, in a sentence.
  named: bool = True  # Whether its lines have to be told apart.
  marks: Sequence[Mark] = ()


class Bars(NamedTuple):
  """Stacked bars, a row each."""

  key: str
  title: str
  x_label: str
  rows: Sequence[str]
  parts: dict[str, Sequence[float]]  # Their lengths in each row.
  note: str = ""


Figure = Plot | Bars

STYLE = (
  ":root { --ink: #222; --faint: #667; "
  "--rule: #d8dee4; --page: #fff; --box: #f5f6f8; --good: #22762f;\n"
  + " ".join(f"--c{i}: {colour};" for i, colour in enumerate(LIGHT))
  + " }\n@media (prefers-color-scheme: dark) { :root { --ink: #dfe3e8; "
  "--faint: #9aa4b0; --rule: #39414b; --page: #14171c; --box: #1e232a; "
  "--good: #6fd07d;\n"
  + " ".join(f"--c{i}: {colour};" for i, colour in enumerate(DARK))
  + """ } }
.plots { display: grid; gap: 1.4rem 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); }
.plots figure { margin: 0; min-width: 0; }
.plots figcaption { font-weight: 600; font-size: .92rem; }
.plots small { display: block; font-weight: 400; font-size: .78rem;
  color: var(--faint); margin-bottom: .2rem; }
.plots svg { display: block; width: 100%; height: auto; overflow: visible; }
.plots svg text { font: 11px system-ui, sans-serif; fill: var(--faint); }
.plots .legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem;
  padding: 0 0 0 2.6rem; margin: .1rem 0; list-style: none;
  font-size: .8rem; overflow-wrap: anywhere; }
.plots .legend i { display: inline-block; width: 20px; margin-right: .4em;
  vertical-align: middle; }
.plots .note { color: var(--faint); font-size: .78rem; margin: .1rem 0 0; }
"""
)


def grid(figures: Sequence[Figure]) -> str:
  """Figures beside each other, as many in a row as fit."""
  return f'<div class="plots">{"".join(map(element, figures))}</div>'


def element(figure: Figure) -> str:
  """A figure with its title, legend and note."""
  if isinstance(figure, Bars):
    drawn, legend, unit = _bars(figure), _bars_legend(figure), figure.x_label
  else:
    drawn, legend, unit = _plot(figure), _legend(figure), figure.y_label
  note = f'<p class="note">{html.escape(figure.note)}</p>' * bool(figure.note)
  return (
    f"<figure><figcaption>{html.escape(figure.title)}"
    f"<small>{html.escape(unit)}</small></figcaption>{drawn}"
    f'<ul class="legend">{legend}</ul>{note}</figure>'
  )


def colour(place: int) -> str:
  """A colour of the page, by its place."""
  return f"var(--c{place % len(LIGHT)})"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
  """Round numbers within bounds, `most` of them at most."""
  span = high - low
  if not (span > 0 and math.isfinite(span)):
    return [low]
  power = 10.0 ** math.floor(math.log10(span / most))
  for factor in (1, 2, 2.5, 5, 10, 20):
    step = factor * power
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if last - first < most:
      # Rounded by digits, not places: the bounds may be far below 1.
      return [float(f"{i * step:.12g}") for i in range(first, last + 1)]
  return [low, high]


def number(x: float) -> str:
  """A number as a tick or a tooltip says it."""
  if x == 0:
    return "0"
  if abs(x) >= 1e6 or abs(x) < 1e-3:
    return f"{x:.3g}".replace("e-0", "e-").replace("e+0", "e")
  return f"{x:,.4g}" if abs(x) < 1e4 else f"{x:,.0f}"


class _Scale(NamedTuple):
  """Where values lie in a drawing."""

  low: float
  high: float
  start: float
  end: float

  def __call__(self, x: float) -> float:
    share = (x - self.low) / (self.high - self.low)
    return round(self.start + share * (self.end - self.start), 1)


def _scale(values: list[float], start: float, end: float) -> _Scale:
  low, high = min(values), max(values)
  if low == high == 0:
    high = 1.0
  elif low == high:
    low, high = low - abs(low) / 2, high + abs(high) / 2
  return _Scale(low, high, start, end)


def thinned(line: Line) -> Line:
  """At most `_POINTS` of a line's points, the first and the last among them."""
  if len(line.x) <= _POINTS:
    return line
  at = np.unique(np.linspace(0, len(line.x) - 1, _POINTS).round().astype(int))
  low, high = (None if b is None else b[at] for b in (line.low, line.high))
  return line._replace(x=line.x[at], y=line.y[at], low=low, high=high)


def _plot(plot: Plot) -> str:
  lines = [thinned(line) for line in plot.lines if len(line.x)]
  y = [level.y for level in plot.levels] + [0.0] * plot.from_zero
  for line in lines:
    for values in (line.y, line.low, line.high):
      y += [] if values is None else [v for v in values if math.isfinite(v)]
  x = [float(v) for line in lines for v in line.x]
  x += [mark.x for mark in plot.marks]
  x_at = _scale(x or [0.0, 1.0], _LEFT, WIDTH - _RIGHT)
  y_at = _scale(y or [0.0, 1.0], HEIGHT - _BOTTOM, _TOP)
  parts = [_axes(plot, x_at, y_at)]
  parts += [_band(line, x_at, y_at) for line in lines]
  parts += [_level(level, y_at) for level in plot.levels]
  parts += [_mark(mark, x_at) for mark in plot.marks]
  parts += [_curve(line, plot, x_at, y_at) for line in lines]
  label = html.escape(f"{plot.title}: {plot.y_label} against {plot.x_label}")
  return _svg(label, HEIGHT, parts)


def _svg(label: str, height: float, parts: Sequence[str]) -> str:
  return (
    f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{label}">'
    f"{''.join(parts)}</svg>"
  )


def _text(x: float, y: float, words: str, more: str = "") -> str:
  return f'<text x="{x:g}" y="{y:g}"{more}>{html.escape(words)}</text>'


def _axes(plot: Plot, x_at: _Scale, y_at: _Scale) -> str:
  """Grid, ticks and the name of the horizontal axis; the caption has both."""
  parts, bottom = [], HEIGHT - _BOTTOM
  for y in ticks(y_at.low, y_at.high, 5):
    parts.append(
      f'<path d="M{_LEFT} {y_at(y):g}H{WIDTH - _RIGHT}" '
      'stroke="var(--rule)" fill="none"/>'
    )
    parts.append(_text(_LEFT - 5, y_at(y) + 4, number(y), ' text-anchor="end"'))
  whole = all(float(v).is_integer() for line in plot.lines for v in line.x)
  for x in ticks(x_at.low, x_at.high, 6):
    if whole and not x.is_integer():
      continue
    parts.append(
      _text(x_at(x), bottom + 15, number(x), ' text-anchor="middle"')
    )
  middle = (_LEFT + WIDTH - _RIGHT) / 2
  parts.append(_text(middle, bottom + 31, plot.x_label, _MIDDLE))
  return "".join(parts)


_MIDDLE = ' text-anchor="middle"'


def _points(x: Sequence[float], y: Sequence[float], x_at, y_at) -> str:
  return "L".join(
    f"{x_at(a):g} {y_at(b):g}"
    for a, b in zip(x, y, strict=True)
    if math.isfinite(b)
  )


def _band(line: Line, x_at: _Scale, y_at: _Scale) -> str:
  if line.low is None or line.high is None:
    return ""
  there = _points(list(line.x), list(line.high), x_at, y_at)
  back = _points(list(line.x[::-1]), list(line.low[::-1]), x_at, y_at)
  return (
    f'<path d="M{there}L{back}z" fill="{colour(line.colour)}" '
    'fill-opacity=".16"/>'
  )


def _level(level: Level, y_at: _Scale) -> str:
  y = y_at(level.y)
  above = y - 4 if y - _TOP > 14 else y + 12
  return (
    f'<path d="M{_LEFT} {y:g}H{WIDTH - _RIGHT}" stroke="var(--faint)" '
    'stroke-dasharray="1 3" stroke-width="1.4" fill="none"/>'
    + _text(WIDTH - _RIGHT - 2, above, level.name, ' text-anchor="end"')
  )


def _mark(mark: Mark, x_at: _Scale) -> str:
  x = x_at(mark.x)
  left = x > (_LEFT + WIDTH - _RIGHT) / 2  # Where there is room for its name.
  anchor = ' text-anchor="end"' * left
  return (
    f'<path class="mark" d="M{x:g} {_TOP}V{HEIGHT - _BOTTOM}" '
    'stroke="var(--ink)" stroke-dasharray="4 3" stroke-width="1.2" '
    'fill="none"/>'
    + _text(x - 4 if left else x + 4, _TOP + 9, mark.name, anchor)
  )


def _curve(line: Line, plot: Plot, x_at: _Scale, y_at: _Scale) -> str:
  points = _points(list(line.x), list(line.y), x_at, y_at)
  if not points:
    return ""
  said = html.escape(line.name)
  drawn = (
    f'<path class="curve" d="M{points}" {_stroke(line)} fill="none">'
    f"<title>{said}</title></path>"
  )
  if len(line.x) > _MARKED:
    return drawn
  for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
    if math.isfinite(y):
      bounds = (
        f" ({number(line.low[i])} to {number(line.high[i])})"
        if line.low is not None and line.high is not None
        else ""
      )
      value = f"{number(float(y))}{bounds} at {number(float(x))}"
      drawn += (
        f'<circle cx="{x_at(x):g}" cy="{y_at(y):g}" r="2" '
        f'fill="{colour(line.colour)}"><title>{said}: '
        f"{html.escape(f'{value} {plot.x_label}')}</title></circle>"
      )
  return drawn


def _stroke(line: Line) -> str:
  dashes = DASHES[line.stroke]
  return (
    f'stroke="{colour(line.colour)}" stroke-width="1.8" '
    'stroke-linejoin="round"' + f' stroke-dasharray="{dashes}"' * bool(dashes)
  )


def _legend(plot: Plot) -> str:
  if not plot.named:
    return ""
  return "".join(
    f'<li><i style="border-top: 2px {_BORDERS[line.stroke]} '
    f'{colour(line.colour)}"></i>{html.escape(line.name)}</li>'
    for line in plot.lines
  )


_BAR, _GAP, _NAME = 18, 12, 15  # Pixels: a bar, below it, its name above.


def _bars(bars: Bars) -> str:
  """Rows of bars, each below its name."""
  count = range(len(bars.rows))
  totals = [sum(part[i] for part in bars.parts.values()) for i in count]
  most = max(totals, default=0) or 1.0
  x_at = _Scale(0.0, most, 2, WIDTH - _RIGHT)
  parts, y = [], 2.0
  for row, name in enumerate(bars.rows):
    said = f"{name}: {number(totals[row])}"
    parts.append(_text(2, y + 11, said, ' style="fill: var(--ink)"'))
    y, left = y + _NAME, 0.0
    for i, (part, widths) in enumerate(bars.parts.items()):
      start, left = left, left + widths[row]
      if widths[row]:
        share = 100 * widths[row] / (totals[row] or 1)
        told = f"{name}, {part}: {number(widths[row])} ({share:.0f} %)"
        parts.append(
          f'<rect class="bar" x="{x_at(start):g}" y="{y:g}" '
          f'width="{max(x_at(left) - x_at(start), 0.5):g}" height="{_BAR}" '
          f'fill="{colour(i)}"><title>{html.escape(told)}</title></rect>'
        )
    y += _BAR + _GAP
  for x in ticks(0.0, most, 6):
    anchor = "start" if x == 0 else "middle" if x < 0.95 * most else "end"
    parts.append(_text(x_at(x), y + 6, number(x), f' text-anchor="{anchor}"'))
  parts.append(_text(WIDTH / 2, y + 22, bars.x_label, _MIDDLE))
  return _svg(html.escape(f"{bars.title}: {bars.x_label}"), y + 28, parts)


def _bars_legend(bars: Bars) -> str:
  return "".join(
    f'<li><i style="border-top: 9px solid {colour(i)}"></i>'
    f"{html.escape(part)}</li>"
    for i, part in enumerate(bars.parts)
    if any(bars.parts[part])
  )
