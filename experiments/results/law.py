"""Draws the law of when a tree pays, and writes its rule of thumb.

A panel for greedy and mean accuracy, pass@16, and the mean of the three, by
which settings were chosen: what TSD has over another method at equal tokens,
against how often the start's samples are right, each axis on a logarithmic
scale. A point is a start of a task, with the 95 % interval of its comparison; a
line is `benchmarks.law.fit` of all of a method's points. Points are read from
the committed law_*.json, and from the main tables, whose starts are the
recipes' own and whose runs are twice as long. The command prints the table of
docs/when.md, what the lines say, and what `tsd_jax.comparison.law` keeps.

Command (a second): python -m experiments.results.law
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.benchmarks import law
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
from tsd_jax.comparison import law as expected

AGAINST = ("filtered_best_of_n", "grpo", "expert_iteration")
TASKS = {
  "countdown3": "three numbers",
  "countdown4": "four numbers",
  "countdown5": "five numbers",
  "maze": "maze",
  "calculator": "calculator, which no line has seen",
}
TITLES = {
  law.SCORE: "Score: mean of the three",
  "greedy": "Greedy",
  "mean": "Mean of samples",
  "pass@16": "pass@16",
}
# Pixels, as in `figure`.
WIDTH, HEIGHT = 860, 340
PLOT_WIDTH, PLOT_HEIGHT, TOP, LEFT, GAP = 164, 206, 86, 50, 44
X_RANGE, X_TICKS = (0.004, 0.6), (0.006, 0.02, 0.06, 0.2)
Y_RANGE, Y_TICKS = (0.5, 8.0), (0.5, 1, 2, 4, 8)
SHOWN = (0.01, 0.03, 0.1, 0.3)  # Starts of which the lines' ratios are said.


def read() -> list[dict[str, Any]]:
  """The points of all tasks that were measured."""
  points = []
  for file in sorted(FOLDER.glob("law_*.json")):
    points += json.loads(file.read_text())["points"]
  for task in TASKS:
    table = FOLDER / f"compare_{task}.json"
    if table.is_file():
      points.append(law.point(task, "recipe", json.loads(table.read_text())))
  return points


def table(points: Sequence[Mapping[str, Any]]) -> list[str]:
  """The rows of docs/when.md, from the weakest start on.

  Args:
    points: of `read`.
  """

  def row(point: Mapping[str, Any]) -> str:
    score, seconds = point["ratios"][law.SCORE], point["at_equal_seconds"]
    own = ", recipe" if point["start"] == "recipe" else ""
    cells = [
      _short(point["success"]["mean"], ".3f"),
      TASKS[point["task"]].split(",")[0] + own,
      *(_ratio(score[method]) for method in AGAINST),
      *(_ratio(seconds[method]) for method in expected.OPPONENTS),
    ]
    return f"| {' | '.join(cells)} |"

  return [row(p) for p in sorted(points, key=lambda p: p["success"]["mean"])]


def _short(x: float, form: str) -> str:
  return format(x, form).removeprefix("0") if x < 1 else format(x, form)


def _ratio(found: Mapping[str, Any]) -> str:
  value, low, high = (
    _short(x, ".2f" if x < 10 else ".0f")
    for x in (found["value"], *found["ci95"])
  )
  return f"{value}× [{low}, {high}]"


def laws(
  points: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, expected.Law]]:
  """The lines that `tsd_jax.comparison.law` keeps."""
  found = {}
  for axis, column in (("tokens", law.SCORE), ("seconds", law.SECONDS)):
    made = {m: law.fit(points, column, m) for m in expected.OPPONENTS}
    found[axis] = {
      method: expected.Law(*(round(x, 3) for x in line))
      for method, line in made.items()
      if line is not None
    }
  return found


def draw(points: Sequence[Mapping[str, Any]], theme: str) -> str:
  """Draws points and lines.

  Args:
    points: of `read`.
    theme: light or dark.
  """
  parts = _legend(points, theme)
  for i, column in enumerate(TITLES):
    left = LEFT + i * (PLOT_WIDTH + GAP)
    parts.append(f'<g transform="translate({left} {TOP})">')
    parts += _axes(column, theme)
    for against in AGAINST[::-1]:
      parts += _line(points, column, against, theme)
      parts += _points(points, column, against, theme)
    parts.append("</g>")
  return page(WIDTH, HEIGHT, "When a tree pays", theme, parts)


def _x(success: float) -> float:
  low, high = map(math.log, X_RANGE)
  return PLOT_WIDTH * (math.log(success) - low) / (high - low)


def _y(ratio: float) -> float:
  low, high = map(math.log, Y_RANGE)
  inside = min(max(math.log(ratio), low), high)
  return PLOT_HEIGHT * (1 - (inside - low) / (high - low))


def _legend(points: Sequence[Mapping[str, Any]], theme: str) -> list[str]:
  """Colours of the methods, and shapes of the tasks."""
  parts, x = [text(LEFT, 16, "TSD over")], LEFT + 66
  for against in AGAINST:
    name = LINES[against].name
    parts.append(
      f'<path d="M{x} 12h24" {stroke(LINES[against], theme)} fill="none"/>'
    )
    parts.append(text(x + 30, 16, name))
    x += 60 + 7 * len(name)
  x, colour = LEFT, THEMES[theme].text
  for task in _tasks(points):
    parts.append(_mark(task, x + 6, 36, colour))
    parts.append(text(x + 18, 40, TASKS[task]))
    x += 46 + 7 * len(TASKS[task])
  return parts


def _tasks(points: Sequence[Mapping[str, Any]]) -> list[str]:
  return [name for name in TASKS if name in {p["task"] for p in points}]


def _mark(task: str, x: float, y: float, colour: str) -> str:
  shapes = {
    "countdown3": "a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "countdown4": "l4 -5l4 5l-4 5z",
    "countdown5": "l4 -7l4 7z",
    "maze": "v-4h8v8h-8z",
    "calculator": "m4 -6l2 4h4l-3 3l1 5l-4 -3l-4 3l1 -5l-3 -3h4z",
  }
  return f'<path d="M{x - 4:.1f} {y:.1f}{shapes[task]}" fill="{colour}"/>'


def _axes(column: str, theme: str) -> list[str]:
  """Title, grid, ticks and names; a stronger line where neither is ahead."""
  parts = [text(0, -14, TITLES[column], ' font-weight="600" font-size="13"')]
  for ratio in Y_TICKS:
    y = f"{_y(ratio):.1f}"
    width = 2 if ratio == 1 else 1
    parts.append(
      f'<path d="M0 {y}h{PLOT_WIDTH}" stroke="{THEMES[theme].grid}" '
      f'stroke-width="{width}"/>'
    )
    label = f"{ratio:g}×"
    parts.append(text(-8, round(_y(ratio) + 4, 1), label, _END))
  for success in X_TICKS:
    words = f"{success:g}".lstrip("0")
    parts.append(text(round(_x(success), 1), PLOT_HEIGHT + 17, words, MIDDLE))
  words = "start's samples that are right"
  parts.append(text(PLOT_WIDTH / 2, PLOT_HEIGHT + 38, words, MIDDLE))
  return parts


_END = ' text-anchor="end"'


def _points(
  points: Sequence[Mapping[str, Any]], column: str, against: str, theme: str
) -> list[str]:
  """Marks with their intervals; those that never solved anything are left."""
  colour, parts = getattr(LINES[against], theme), []
  for point in points:
    found = point["ratios"][column].get(against)
    if found is None or not found["value"]:
      continue
    x = _x(point["success"]["mean"])
    low, high = found["ci95"]
    if low and high is not None:
      parts.append(
        f'<path d="M{x:.1f} {_y(low):.1f}V{_y(high):.1f}" stroke="{colour}" '
        'stroke-opacity=".5"/>'
      )
    y = _y(found["value"])
    parts.append(_mark(point["task"], x, y, colour))
    if found["value"] > Y_RANGE[1]:  # It stands at the edge, with its number.
      below = 16 + 13 * AGAINST.index(against)
      words = f"{found['value']:.0f}×"
      parts.append(
        text(round(x + 8, 1), round(y + below, 1), words, f' fill="{colour}"')
      )
  return parts


def _line(
  points: Sequence[Mapping[str, Any]], column: str, against: str, theme: str
) -> list[str]:
  """The fit, from the weakest start to the strongest, where there is one."""
  made = law.fit(points, column, against)
  if made is None:
    return []
  ends = [p["success"]["mean"] for p in points]
  steps = [min(ends) * (max(ends) / min(ends)) ** (i / 16) for i in range(17)]
  path = "L".join(f"{_x(p):.1f} {_y(made.ratio(p)):.1f}" for p in steps)
  return [f'<path d="M{path}" {stroke(LINES[against], theme)} fill="none"/>']


def main(overrides):
  """Writes both drawings, prints the lines."""
  del overrides
  points = read()
  write("law", lambda theme: draw(points, theme))
  print("\n".join(table(points)))
  for column in (*TITLES, law.SECONDS):
    for against in AGAINST:
      made = law.fit(points, column, against)
      if made is None:
        continue
      ratios = ", ".join(f"{p:g}: {made.ratio(p):.2f}" for p in SHOWN)
      even = made.crossover or 0
      print(
        f"{column} over {against}: {ratios}; even at {even:.3f}, "
        f"spread {made.spread:.3f}"
      )
  for point in points:
    if point["task"] in law.UNSEEN:
      print(f"unseen: {point['task']}")
      print(expected.expectation(point["success"]["mean"]))
  print("tsd_jax/comparison/law.py should have:")
  for axis, lines in laws(points).items():
    for method, line in lines.items():
      print(f"  {axis}, {method}: {line}")


if __name__ == "__main__":
  config_lib.run(main)
