"""The law of when a tree pays: points of comparisons, and the line through."""

import math

import pytest

from experiments.benchmarks import law


def make_point(success, ratio, spread=1.1, task="maze"):
  of = {"value": ratio, "ci95": [ratio / spread, ratio * spread]}
  return {
    "task": task,
    "success": {"mean": success},
    "ratios": {"mean": {"grpo": of}},
  }


def test_the_line_is_found_again_and_says_where_neither_is_ahead():
  made = law.Law(slope=-0.3, at_even=-0.2)
  points = [make_point(p, made.ratio(p)) for p in (0.003, 0.01, 0.1, 0.3)]
  found = law.fit(points, "mean", "grpo")
  assert found is not None and found == pytest.approx(made)
  assert law.fit(points[:1], "mean", "grpo") is None
  crossover = made.crossover
  assert crossover is not None and made.ratio(crossover) == pytest.approx(1.0)
  assert made.ratio(0.01) > 1 > made.ratio(0.6)
  assert law.Law(0.0, 0.1).crossover is None


def test_sure_points_count_for_more_and_lost_ones_for_nothing():
  points = [make_point(p, 2.0, spread=1.01) for p in (0.01, 0.1)]
  points += [make_point(0.3, 9.0, spread=100.0)]
  lost = make_point(0.2, 5.0)
  lost["ratios"]["mean"]["grpo"] = {"value": None, "ci95": [0.0, None]}
  unseen = make_point(0.2, 7.0, spread=1.01, task=law.UNSEEN[0])
  found = law.fit([*points, lost, unseen], "mean", "grpo")
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
  def interval(value):
    return {"value": value, "ci95": [value / 2, value * 2]}

  columns = {name: interval(0.2) for name in law.COLUMNS}
  content = {
    "tokens": 1e6,
    "start": {name: interval(0.1) for name in law.COLUMNS},
    "methods": {
      name: {"settings": {"rate": "1"}, "columns": columns}
      for name in ("tsd", "grpo")
    },
    "columns": {
      name: {"tsd/grpo": {"ratio": interval(1.5), "difference": interval(0.1)}}
      for name in law.COLUMNS
    },
    "ratios": {"accuracy_at_equal_seconds": {"tsd/grpo": interval(1.2)}},
  }
  found = law.point("maze", "a", content)
  assert found["success"]["mean"] == 0.1
  assert found["ratios"]["greedy"]["grpo"] == interval(1.5)
  assert found["at_equal_seconds"]["grpo"] == interval(1.2)
  logs = law.fit([found, found | {"success": {"mean": 0.3}}], "mean", "grpo")
  assert math.isclose(logs.ratio(0.2), 1.5)
  del content["ratios"]["accuracy_at_equal_seconds"]
  assert law.point("maze", "a", content)["at_equal_seconds"] == {}
