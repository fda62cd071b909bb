"""Figures for a paper: SVG, PNG and the numbers behind them."""

import csv
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from tsd_jax.base.errors import UserError
from tsd_jax.run import drawing, figures

X = np.arange(3.0)
PLOT = drawing.Plot(
  "accuracy", r"a $\frac{$ title", "iterations", "accuracy",
  [
    drawing.Line("tsd, one", X, X / 3, X / 4, X / 2),
    drawing.Line("grpo", X, X / 5, colour=9, stroke="--"),
  ],
  [drawing.Level("start", 0.1)],
)  # fmt: skip
BARS = drawing.Bars(
  "ledger", "t", "million tokens", ["tsd", "grpo"],
  {"search": [0.5, 0.0], "updates": [1.0, 1.5]},
)  # fmt: skip


def test_files_are_whole_pictures_and_their_numbers(tmp_path):
  folder = tmp_path / "new" / "figures"
  figures.write(folder, [PLOT, BARS])
  assert sorted(f.name for f in folder.iterdir()) == [
    f"{key}.{kind}" for key in ("accuracy", "ledger")
    for kind in ("csv", "png", "svg")
  ]  # fmt: skip
  for key in ("accuracy", "ledger"):
    text = (folder / f"{key}.svg").read_text()
    ET.fromstring(text)
    assert "million tokens" in text or "iterations" in text  # Text stays text.
    with Image.open(folder / f"{key}.png") as image:
      assert image.size == (1020, 780)
  with open(folder / "accuracy.csv", newline="") as file:
    rows = list(csv.reader(file))
  assert rows[0] == ["curve", "iterations", "accuracy", "low", "high"]
  assert [float(v) for v in rows[3][1:]] == [2.0, 2 / 3, 0.5, 1.0]
  assert rows[3][0] == "tsd, one" and rows[4][3:] == ["", ""]
  assert rows[-1] == ["start", "", "0.1", "", ""]
  with open(folder / "ledger.csv", newline="") as file:
    assert list(csv.DictReader(file))[1] == {
      "run": "grpo", "search": "0.0", "updates": "1.5",
    }  # fmt: skip
  before = (folder / "accuracy.svg").read_bytes()
  figures.write(folder, [PLOT])
  assert (folder / "accuracy.svg").read_bytes() == before


def test_every_run_is_named_and_seen():
  """Whatever its name begins with, and if it has one evaluation."""
  names = ["_tsd", "ppo"]
  plot = drawing.Plot(
    "accuracy", "t", "iterations",
    "reward of a tree's best answer, less the greedy one's",
    [drawing.Line(n, np.array([5.0]), np.array([0.5])) for n in names],
  )  # fmt: skip
  drawn = figures._drawn(plot)
  (axes,) = drawn.axes
  legend = [text.get_text() for text in drawn.legends[0].get_texts()]
  assert legend == names
  assert [line.get_marker() for line in axes.lines] == ["o", "o"]
  assert max(map(len, axes.get_ylabel().split("\n"))) <= figures._COLUMN
  assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="file/figures cannot be written"):
    figures.write(tmp_path / "file" / "figures", [PLOT])
