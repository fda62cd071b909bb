"""The drawings: what committed files and the default say, and no more."""

import copy
import dataclasses
import re

import pytest

from experiments import countdown
from experiments.results import figure, picture, svg
from experiments.results import law as law_drawing


@pytest.mark.parametrize("theme", figure.THEMES)
def test_the_committed_drawing_is_what_the_files_say(theme):
  """If this fails: python -m experiments.results.figure."""
  committed = (svg.IMAGES / f"curves-{theme}.svg").read_text()
  assert committed == figure.draw(figure.read(), theme)
  assert len(committed) < 60_000


def test_a_line_ends_where_the_last_mean_of_the_seeds_lies():
  contents = figure.read()
  panel = figure.PANELS[0]
  row = contents[0]["methods"]["tsd"]
  mean = sum(seed[-1] for seed in row[figure.MODE]) / len(row["seeds"])
  x = figure.PLOT_WIDTH * row["tokens"][-1] / 1e6 / panel.most_tokens
  y = figure.PLOT_HEIGHT * (1 - mean / panel.most_accuracy)
  drawn = figure.draw(contents, "light")
  thick = figure.LINES["tsd"].width
  ends = re.findall(rf'L([\d. ]+)" stroke="#\w+" stroke-width="{thick}"', drawn)
  assert ends[0] == f"{x:.1f} {y:.1f}" and len(ends) == len(figure.PANELS)


def test_a_seed_moves_the_band_and_not_only_the_line():
  contents = figure.read()
  before = figure.curve(contents[0]["methods"]["ppo"])
  changed = copy.deepcopy(contents[0]["methods"]["ppo"])
  changed[figure.MODE][0][-1] = 0.19
  after = figure.curve(changed)
  assert after.high[-1] == 0.19 > before.high[-1]
  assert after.low == before.low and after.mean[-1] > before.mean[-1]


def test_all_that_is_drawn_lies_inside_of_its_axes():
  for panel, content in zip(figure.PANELS, figure.read(), strict=True):
    # No comparison has every method, and each has these.
    assert {"tsd", "ppo", "grpo", "expert_iteration"} <= content[
      "methods"
    ].keys()
    for name in figure.LINES.keys() & content["methods"].keys():
      curve = figure.curve(content["methods"][name])
      assert max(curve.high) <= panel.most_accuracy
      assert max(curve.tokens) <= panel.most_tokens


@pytest.mark.parametrize("theme", picture.THEMES)
def test_the_picture_of_an_iteration_has_the_defaults_counts(theme):
  """If this fails: python -m experiments.results.picture."""
  committed = (svg.IMAGES / f"iteration-{theme}.svg").read_text()
  assert committed == picture.draw(countdown.get_config(), theme)


def test_another_experiment_draws_another_picture():
  config = countdown.get_config()
  other = dataclasses.replace(
    config, rollout=dataclasses.replace(config.rollout, samples=6, forks=1)
  )
  drawn = picture.draw(other, "light")
  assert "policy π: 6 samples of each," in drawn
  assert drawn.count("H470") == 6 + other.rollout.fork_width


def law_point(success, ratio, task="maze"):
  found = {"value": ratio, "ci95": [ratio / 1.2, ratio * 1.2]}
  lost = {"value": None, "ci95": [0.0, None]}
  ratios = {
    "filtered_best_of_n": found,
    "grpo": found,
    "expert_iteration": lost,
  }
  return {
    "task": task,
    "start": "a",
    "success": {"mean": success},
    "methods": {name: {"mean": {"value": 2 * success}} for name in ratios},
    "ratios": dict.fromkeys(law_drawing.TITLES, ratios),
  }


@pytest.mark.parametrize("theme", figure.THEMES)
def test_points_of_the_law_lie_where_they_were_measured(theme):
  """On logarithmic axes; who never solved a problem has no mark, no line."""
  points = [law_point(0.01, 2.0), law_point(0.1, 2.0, "countdown3")]
  drawn = law_drawing.draw(points, theme)
  colour = getattr(law_drawing.LINES["grpo"], theme)
  height = law_drawing.PLOT_HEIGHT
  # 2 of .5 to 8 is half of the way, in octaves.
  level = f"{height / 2:.1f}"
  marks = re.findall(rf'<path d="M[\d.]+ {level}[^"]*" fill="{colour}"', drawn)
  assert len(marks) == 2 * len(law_drawing.TITLES)
  lost = getattr(law_drawing.LINES["expert_iteration"], theme)
  assert f'fill="{lost}"' not in drawn
  flat = re.findall(rf'd="M([^"]*)" stroke="{colour}" [^>]*fill="none"', drawn)
  ends = [path for path in flat if "L" in path]
  assert len(ends) == len(law_drawing.TITLES)
  assert all(f" {level}" in at for path in ends for at in path.split("L"))
  assert "maze" in drawn and "three numbers" in drawn and "five" not in drawn
