"""What the drawings of results share: colours, lines, and text in SVG.

Drawings are written element by element, so that they are small and the same
bytes on every machine.
"""

import pathlib
from collections.abc import Callable
from typing import NamedTuple
from xml.sax import saxutils

FOLDER = pathlib.Path(__file__).parent
IMAGES = FOLDER.parent.parent / "docs" / "images"
MIDDLE = ' text-anchor="middle"'


class Line(NamedTuple):
  """How a method is shown: its name, its colours and its stroke."""

  name: str
  light: str
  dark: str
  width: float = 1.6
  dashes: str = ""


# From the last to the first drawn: TSD lies on top.
LINES = {
  "tsd": Line("TSD", "#0a58ca", "#58a6ff", 2.8),
  "expert_iteration": Line("champions only", "#0a58ca", "#a5d0ff", 1.6, "5 3"),
  "filtered_best_of_n": Line(
    "filtered sampling", "#c46200", "#f0a04b", 1.6, "5 3"
  ),
  "stopped_best_of_n": Line(
    "sampling until right", "#8a6d00", "#e3c04d", 1.6, "5 3"
  ),
  "grpo": Line("GRPO", "#1a7f45", "#56d37f"),
  "ppo": Line("PPO", "#c2304a", "#ff7b86"),
}


class Theme(NamedTuple):
  """Colours of what is not a line."""

  text: str
  grid: str
  band: float  # Opacity.


THEMES = {
  "light": Theme("#24292f", "#d8dee4", 0.14),
  "dark": Theme("#d0d7de", "#30363d", 0.2),
}


def page(
  width: int, height: int, title: str, theme: str, parts: list[str]
) -> str:
  """A drawing of some elements.

  Args:
    width: pixels.
    height: pixels.
    title: what a screen reader says.
    theme: light or dark.
    parts: its elements.
  """
  head = (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
    f'width="{width}" height="{height}" role="img" font-size="12" '
    'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, '
    f'sans-serif" fill="{THEMES[theme].text}">'
  )
  whole = [head, f"<title>{saxutils.escape(title)}</title>", *parts, "</svg>"]
  return "\n".join(whole) + "\n"


def text(x: float, y: float, words: str, more: str = "") -> str:
  """A line of text; `more` are attributes."""
  return f'<text x="{x:g}" y="{y:g}"{more}>{saxutils.escape(words)}</text>'


def stroke(line: Line, theme: str) -> str:
  """Attributes of a line."""
  dashes = f' stroke-dasharray="{line.dashes}"' if line.dashes else ""
  colour = getattr(line, theme)
  return f'stroke="{colour}" stroke-width="{line.width}"{dashes}'


def write(name: str, draw: Callable[[str], str]) -> None:
  """Writes a drawing for each theme.

  Args:
    name: of the files, docs/images/NAME-THEME.svg.
    draw: what it is of a theme.
  """
  for theme in THEMES:
    file = IMAGES / f"{name}-{theme}.svg"
    file.write_text(draw(theme), encoding="utf-8")
    print(f"wrote {file}")
