"""Figures as files for a paper: SVG and PNG by matplotlib, and their CSV."""

import csv
import io
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib import figure as mpl_figure
from matplotlib import ticker

from tsd_jax.base.output_files import whole, write_whole, writing
from tsd_jax.run.drawing import LIGHT, Bars, Figure, Plot

# What names a run is no mathematics, whatever signs are in it.
_STYLE: Any = {
  "text.parse_math": False,
  "svg.fonttype": "none",
  "svg.hashsalt": "tsd_jax",
  "font.size": 8,
}

_COLUMN = 32  # Letters of an axis' name on a line.


def write(folder: str | pathlib.Path, figures: Sequence[Figure]) -> None:
  """Writes KEY.svg, KEY.png and KEY.csv of each figure.

  Args:
    folder: where they go; made where there is none.
    figures: what is drawn.

  Raises:
    UserError: they cannot be written.
  """
  folder = pathlib.Path(folder)
  with writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  for figure in figures:
    with mpl.rc_context(_STYLE):
      drawn = _drawn(figure)
      write_whole(folder / f"{figure.key}.svg", to_svg(drawn))
      with whole(folder / f"{figure.key}.png") as partial:
        drawn.savefig(
          partial, format="png", dpi=300, metadata={"Software": None}
        )
    write_whole(folder / f"{figure.key}.csv", to_csv(figure))


def to_svg(figure: mpl_figure.Figure) -> str:
  """A figure of matplotlib as an element, the same bytes every time."""
  buffer = io.StringIO()
  with mpl.rc_context({k: _STYLE[k] for k in ("svg.fonttype", "svg.hashsalt")}):
    figure.savefig(buffer, format="svg", metadata={"Date": None})
  text = buffer.getvalue()
  return text[text.index("<svg") :]


def to_csv(figure: Figure) -> str:
  """The numbers of a figure: a row for each point, or for each bar."""
  buffer = io.StringIO()
  out = csv.writer(buffer, lineterminator="\n")
  if isinstance(figure, Bars):
    out.writerow(["run", *figure.parts])
    for i, row in enumerate(figure.rows):
      out.writerow([row, *(float(part[i]) for part in figure.parts.values())])
    return buffer.getvalue()
  out.writerow(["curve", figure.x_label, figure.y_label, "low", "high"])
  for line in figure.lines:
    for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
      bounds = ["" if b is None else float(b[i]) for b in (line.low, line.high)]
      out.writerow([line.name, float(x), float(y), *bounds])
  for level in figure.levels:
    out.writerow([level.name, "", float(level.y), "", ""])
  for mark in figure.marks:
    out.writerow([mark.name, float(mark.x), "", "", ""])
  return buffer.getvalue()


def _drawn(figure: Figure) -> mpl_figure.Figure:
  """A figure in a paper's column."""
  drawn = mpl_figure.Figure(figsize=(3.4, 2.6), layout="constrained")
  axes = drawn.subplots()
  axes.spines[["top", "right"]].set_visible(False)
  if isinstance(figure, Bars):
    _draw_bars(axes, figure)
  else:
    _draw_lines(axes, figure)
  axes.set_xlabel(figure.x_label)
  # matplotlib's own choice leaves out names that begin with "_".
  bars = isinstance(figure, Bars)
  handles: Any = axes.containers if bars else axes.lines[: len(figure.lines)]
  named = list(figure.parts) if bars else [line.name for line in figure.lines]
  drawn.legend(
    handles, named, loc="outside lower center", frameon=False, fontsize=7,
    ncols=max(1, min(3, 58 // (max(map(len, named), default=0) + 6))),
  )  # fmt: skip
  return drawn


def _draw_lines(axes, plot: Plot) -> None:
  for line in plot.lines:
    colour = LIGHT[line.colour % len(LIGHT)]
    axes.plot(
      line.x, line.y, line.stroke, color=colour, lw=1.4,
      marker="o" if len(line.x) == 1 else None,
    )  # fmt: skip
    if line.low is not None and line.high is not None:
      axes.fill_between(
        line.x, line.low, line.high, color=colour, alpha=0.16, lw=0
      )
  for level in plot.levels:
    axes.axhline(level.y, color="#667", ls=":", lw=1)
    axes.annotate(
      level.name, (1, level.y), xycoords=("axes fraction", "data"),
      xytext=(-2, 2), textcoords="offset points", ha="right", fontsize=7,
      color="#667",
    )  # fmt: skip
  for mark in plot.marks:
    axes.axvline(mark.x, color="#222", ls="--", lw=1)
    axes.annotate(
      mark.name, (mark.x, 1), xycoords=("data", "axes fraction"),
      xytext=(2, -8), textcoords="offset points", fontsize=7, color="#222",
    )  # fmt: skip
  axes.set_ylabel(textwrap.fill(plot.y_label, _COLUMN))
  if all(float(x).is_integer() for line in plot.lines for x in line.x):
    axes.xaxis.set_major_locator(
      ticker.MaxNLocator("auto", integer=True, min_n_ticks=1)
    )
  axes.grid(alpha=0.25)
  if plot.from_zero:
    axes.set_ylim(bottom=0)


def _draw_bars(axes, bars: Bars) -> None:
  left = [0.0] * len(bars.rows)
  for i, widths in enumerate(bars.parts.values()):
    axes.barh(
      range(len(bars.rows)), widths, left=left, height=0.6,
      color=LIGHT[i % len(LIGHT)],
    )  # fmt: skip
    left = [a + b for a, b in zip(left, widths, strict=True)]
  axes.set_yticks(range(len(bars.rows)), bars.rows)
  axes.invert_yaxis()
