"""The law of when a tree pays: points of comparisons, and the line through."""

import json
import math

import numpy as np
import pytest
import scipy.stats

from experiments.benchmarks import law
from experiments.results import law as drawing
from experiments.results import svg
from tsd_jax.comparison import law as expected


def make_point(success, ratio, spread=1.1, task="maze", learned=2.0):
  of = {"value": ratio, "ci95": [ratio / spread, ratio * spread]}
  return {
    "task": task,
    "success": {"mean": success},
    "methods": {"grpo": {"mean": {"value": learned * success}}},
    "ratios": {"mean": {"grpo": of}},
  }


def test_the_line_is_found_again_and_says_where_neither_is_ahead():
  made = law.Law(slope=-0.3, at_even=-0.2, spread=0.0)
  points = [make_point(p, made.ratio(p)) for p in (0.003, 0.01, 0.1, 0.3)]
  found = law.fit(points, "mean", "grpo")
  assert found is not None and found == pytest.approx(made, abs=1e-9)
  assert law.fit(points[:1], "mean", "grpo") is None
  crossover = made.crossover
  assert crossover is not None and made.ratio(crossover) == pytest.approx(1.0)
  assert made.ratio(0.01) > 1 > made.ratio(0.6)
  assert law.Law(0.0, 0.1, 0.0).crossover is None


def test_its_spread_is_how_far_starts_lie_from_it():
  ratios = (2.0, 3.0, 2.0, 3.0)  # On a flat line, by turns above and below.
  points = [
    make_point(1 / (1 + math.exp(x)), r)
    for x, r in zip((-3.0, -1.0, 1.0, 3.0), ratios, strict=True)
  ]
  found = law.fit(points, "mean", "grpo")
  x_P, y_P = np.array([3.0, 1.0, -1.0, -3.0]), np.log(ratios)
  line = scipy.stats.linregress(x_P, y_P)
  off_P = y_P - line.intercept - line.slope * x_P
  assert found is not None
  assert found.slope == pytest.approx(line.slope)
  # As a new observation's interval of 2/3, where there is as much about it.
  one = np.sqrt(np.sum(off_P**2) / 2)
  factor = scipy.stats.t(2).ppf(5 / 6) * np.sqrt(1 + 1 / 4 + 1 / 4)
  assert found.spread == pytest.approx(one * factor)
  low, high = found.range(0.05)
  assert math.log(high / low) == pytest.approx(2 * found.spread)
  assert found.ratio(0.05) == pytest.approx(math.sqrt(low * high))


def test_two_of_three_new_starts_lie_within_the_brackets():
  rng, inside = np.random.default_rng(0), []
  x_P = np.linspace(-5.0, -0.5, 7)
  for _ in range(400):
    y_P = -0.2 * x_P + rng.normal(0, 0.2, 7)
    points = [
      make_point(1 / (1 + math.exp(-x)), math.exp(y))
      for x, y in zip(x_P, y_P, strict=True)
    ]
    found = law.fit(points, "mean", "grpo")
    assert found is not None
    new = rng.uniform(-5.0, -0.5)
    low, high = found.range(1 / (1 + math.exp(-new)))
    inside.append(low < math.exp(-0.2 * new + rng.normal(0, 0.2)) < high)
  assert 0.6 < np.mean(inside) < 0.74


def test_sure_points_count_for_more_and_lost_ones_for_nothing():
  points = [make_point(p, 2.0, spread=1.01) for p in (0.01, 0.1)]
  points += [make_point(0.3, 9.0, spread=100.0)]
  lost = make_point(0.2, 5.0)
  lost["ratios"]["mean"]["grpo"] = {"value": None, "ci95": [0.0, None]}
  unseen = make_point(0.2, 7.0, spread=1.01, task=law.UNSEEN[0])
  nothing = make_point(0.005, 90.0, spread=1.01, learned=0.5)
  found = law.fit([*points, lost, unseen, nothing], "mean", "grpo")
  assert found is not None
  assert found.ratio(0.03) == pytest.approx(2.0, rel=0.05)


def test_starts_are_graded_and_every_comparison_can_run(tmp_path):
  """What a comparison refuses it refuses before any start is taught."""
  for study in law.STUDIES.values():
    taught = [
      examples.steps[1] * examples.relabel_fraction
      for examples in study.starts.values()
      if examples is not None
    ]
    assert taught == sorted(taught)
    made = law.comparison(study, tmp_path / "start.safetensors")
    assert made.methods == law.METHODS and made.trials > 1
    nodes = made.fields("tsd")
    assert "search.num_simulations" in nodes


def test_a_point_has_what_a_comparison_says_of_its_start():
  file = svg.FOLDER / "compare_maze.json"
  content = json.loads(file.read_text())
  found = law.point("maze", "recipe", content)
  assert found["success"]["mean"] == content["start"]["mean"]["value"]
  ours = content["methods"]["tsd"]["columns"]
  assert found["ratios"].keys() == {law.SCORE, *law.COLUMNS}
  for other in law.METHODS[1:]:
    pair, theirs = f"tsd/{other}", content["methods"][other]["columns"]
    for column in law.COLUMNS:
      ratio = content["columns"][column][pair]["ratio"]
      assert found["ratios"][column][other] == ratio
    means = [sum(m[c]["value"] for c in law.COLUMNS) for m in (ours, theirs)]
    score = found["ratios"][law.SCORE][other]
    assert score["value"] == pytest.approx(means[0] / means[1])
    assert score["ci95"][0] < score["value"] < score["ci95"][1]
    seconds = content["ratios"]["accuracy_at_equal_seconds"][pair]
    assert found["at_equal_seconds"][other] == seconds
  del content["ratios"]["accuracy_at_equal_seconds"]
  assert law.point("maze", "recipe", content)["at_equal_seconds"] == {}


def test_the_page_has_the_table_of_the_committed_points():
  """If this fails: python -m experiments.results.law prints it."""
  text = (svg.FOLDER.parent.parent / "docs" / "when.md").read_text()
  for row in drawing.table(drawing.read()):
    assert row in text


def test_what_is_kept_is_what_the_committed_points_say():
  """If this fails: python -m experiments.results.law prints what to keep."""
  points = drawing.read()
  assert expected.LAWS == drawing.laws(points)
  drawn = [
    p["success"]["mean"]
    for p in points
    if p["task"] not in law.UNSEEN
    and p["methods"]["grpo"]["mean"]["value"] > p["success"]["mean"]
  ]
  assert min(drawn) >= expected.WEAKEST and max(drawn) <= expected.STRONGEST


def test_a_start_is_told_what_to_expect():
  weak, strong = map(expected.expectation, (0.02, 0.35))
  assert weak.startswith("0.020 of the start's samples are right")
  for text in (weak, strong):
    for method in expected.OPPONENTS:
      assert f"of {method} at equal tokens" in text
    assert "beyond" not in text and "far more" not in text
  assert "beyond what was measured" in expected.expectation(0.8)
  assert "or far more" in expected.expectation(0.006)
  assert expected.RARE > expected.WEAKEST
  for nothing in (0.0, 1.0):
    assert "no line says" in expected.expectation(nothing)
  assert "expect tsd" in weak and "too close to tell" in strong
  law_of = expected.LAWS["tokens"]["grpo"]
  assert f"{law_of.ratio(0.02):.2f}x" in weak


@pytest.mark.parametrize("theme", svg.THEMES)
def test_the_committed_drawing_has_the_committed_points(theme):
  """If this fails: python -m experiments.results.law."""
  committed = (svg.IMAGES / f"law-{theme}.svg").read_text()
  assert committed == drawing.draw(drawing.read(), theme)
