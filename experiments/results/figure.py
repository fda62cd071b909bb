"""Draws the learning curves of the README from the committed comparisons.

One panel a task: held-out accuracy against ledger tokens, the mean over seeds
as a line, the lowest and the highest seed as a band; `tests/figure_test.py`
draws it again and compares.

Command (a second): python -m experiments.results.figure
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.results.svg import (
  FOLDER,
  LINES,
  MIDDLE,
  THEMES,
  page,
  stroke,
  text,
  write,
)
from tsd_jax.base import config as config_lib

MODE = "mean@16"


class Panel(NamedTuple):
  """A task: its file, its title, and where its axes end."""

  file: str
  title: str
  most_tokens: int  # Millions.
  most_accuracy: float
  tick: float  # Accuracy between two lines of the grid.


PANELS = (
  Panel("compare_countdown4", "Four numbers", 6, 0.25, 0.05),
  Panel("compare_countdown3", "Three numbers", 4, 0.4, 0.1),
  Panel("compare_maze", "Maze", 5, 1.0, 0.2),
)


# Pixels: the page, then a panel's plot and the room around it.
WIDTH, HEIGHT = 860, 330
PLOT_WIDTH, PLOT_HEIGHT, TOP, LEFT, GAP = 232, 196, 86, 60, 48


class Curve(NamedTuple):
  """A method's seeds against ledger tokens."""

  tokens: list[float]  # Millions.
  mean: list[float]
  low: list[float]
  high: list[float]


def curve(row: Mapping[str, Any]) -> Curve:
  """Reads a method of a compare.json."""
  columns = list(zip(*row[MODE], strict=True))
  return Curve(
    [t / 1e6 for t in row["tokens"]],
    [sum(c) / len(c) for c in columns],
    [min(c) for c in columns],
    [max(c) for c in columns],
  )


def draw(contents: Sequence[Mapping[str, Any]], theme: str) -> str:
  """Draws the comparisons of `PANELS`.

  Args:
    contents: what their files hold.
    theme: light or dark.
  """
  parts = _legend(theme)
  for i, (panel, content) in enumerate(zip(PANELS, contents, strict=True)):
    left = LEFT + i * (PLOT_WIDTH + GAP)
    parts.append(f'<g transform="translate({left} {TOP})">')
    parts += _axes(panel, content, theme)
    parts += _curves(panel, content["methods"], theme)
    parts.append("</g>")
  title = "Held-out accuracy against ledger tokens"
  return page(WIDTH, HEIGHT, title, theme, parts)


def _legend(theme: str) -> list[str]:
  """Names of the lines, in two rows."""
  starts = ((LEFT, 160, 310, 460), (LEFT, 160))
  names = (
    ("tsd", "expert_iteration", "filtered_best_of_n", "stopped_best_of_n"),
    ("grpo", "ppo"),
  )
  parts = []
  for row, (row_starts, row_names) in enumerate(
    zip(starts, names, strict=True)
  ):
    y = 16 + 20 * row
    for x, name in zip(row_starts, row_names, strict=True):
      line = LINES[name]
      parts.append(
        f'<path d="M{x} {y - 4}h24" {stroke(line, theme)} fill="none"/>'
      )
      parts.append(text(x + 30, y, line.name))
  return parts


def _place(panel: Panel, tokens: float, accuracy: float) -> str:
  x = PLOT_WIDTH * tokens / panel.most_tokens
  y = PLOT_HEIGHT * (1 - accuracy / panel.most_accuracy)
  return f"{x:.1f} {y:.1f}"


def _axes(panel: Panel, content: Mapping[str, Any], theme: str) -> list[str]:
  """Title, grid, ticks and names of the axes."""
  seeds = len(content["methods"]["tsd"]["seeds"])
  parts = [
    text(0, -14, panel.title, ' font-weight="600" font-size="13"'),
    text(
      PLOT_WIDTH,
      -14,
      f"{seeds} seeds",
      ' text-anchor="end" opacity=".75"',
    ),
  ]
  for i in range(round(panel.most_accuracy / panel.tick) + 1):
    accuracy = i * panel.tick
    y = PLOT_HEIGHT * (1 - accuracy / panel.most_accuracy)
    label = f"{accuracy:.2f}" if panel.tick < 0.1 else f"{accuracy:.1f}"
    parts.append(
      f'<path d="M0 {y:.1f}h{PLOT_WIDTH}" stroke="{THEMES[theme].grid}"/>'
    )
    parts.append(text(-8, round(y + 4, 1), label, ' text-anchor="end"'))
  for millions in range(0, panel.most_tokens + 1, 1 + panel.most_tokens // 6):
    x = PLOT_WIDTH * millions / panel.most_tokens
    parts.append(text(round(x, 1), PLOT_HEIGHT + 17, f"{millions}", MIDDLE))
  parts.append(
    text(PLOT_WIDTH / 2, PLOT_HEIGHT + 38, "ledger tokens (millions)", MIDDLE)
  )
  if panel is PANELS[0]:
    parts.append(
      f'<text transform="translate(-46 {PLOT_HEIGHT / 2:g}) rotate(-90)"'
      f"{MIDDLE}>held-out accuracy</text>"
    )
  return parts


def _curves(panel: Panel, methods: Mapping[str, Any], theme: str) -> list[str]:
  """Bands below, then lines."""
  bands, lines = [], []
  for name in reversed([name for name in LINES if name in methods]):
    c, line = curve(methods[name]), LINES[name]

    def path(x, y):
      points = zip(x, y, strict=True)
      return "L".join(_place(panel, *point) for point in points)

    there = path(c.tokens, c.high)
    back = path(c.tokens[::-1], c.low[::-1])
    bands.append(
      f'<path d="M{there}L{back}z" fill="{getattr(line, theme)}" '
      f'fill-opacity="{THEMES[theme].band}"/>'
    )
    lines.append(
      f'<path d="M{path(c.tokens, c.mean)}" {stroke(line, theme)} '
      'fill="none" stroke-linejoin="round"/>'
    )
  return bands + lines


def read() -> list[dict[str, Any]]:
  """Reads the files of the panels."""
  return [
    json.loads((FOLDER / f"{panel.file}.json").read_text()) for panel in PANELS
  ]


def main(overrides):
  """Writes both drawings."""
  del overrides
  contents = read()
  write("curves", lambda theme: draw(contents, theme))


if __name__ == "__main__":
  config_lib.run(main)
