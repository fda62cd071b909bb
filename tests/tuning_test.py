"""The climb over settings, against all that there are."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsd_jax.comparison import tuning


def climb(score, trials, knobs, exists=lambda point: True):
  scores = {}
  for _ in range(trials):
    point = tuning.next_point(knobs, scores, exists)
    if point is None:
      break
    assert point not in scores and exists(point)
    scores[point] = score(point)
  return scores


@pytest.mark.parametrize(
  ("start", "values"),
  [
    (3e-4, {-2: 1.3e-4, -1: 2e-4, 0: 3e-4, 1: 4.5e-4, 2: 6.7e-4}),
    (16, {-4: 1, -1: 8, 0: 16, 1: 32, 3: 128, -5: None}),
    (6, {-1: 3, -2: None, 1: 12}),
    (0, {0: 0, 1: None, -1: None}),
    (0.0, {0: 0.0, 1: None}),
    (False, {0: False, 1: True, -1: None, 2: None}),
    (True, {0: True, 1: False, -1: None}),
  ],
)
def test_what_a_knob_says(start, values):
  found = {steps: tuning.value(start, steps) for steps in values}
  assert found == values
  assert all(type(v) is type(start) for v in found.values() if v is not None)


def test_the_recipe_comes_first_and_the_first_knob_then():
  tried = list(climb(lambda point: -abs(point[0]), 5, 2))
  assert tried == [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]


def test_a_best_value_at_the_edge_is_gone_beyond():
  scores = climb(lambda point: -abs(point[0] - 4), 7, 1)
  assert tuning.best(scores) == (4,) and (5,) in scores
  assert not tuning.edges(scores, lambda point: True)
  short = climb(lambda point: -abs(point[0] - 4), 5, 1)
  assert tuning.best(short) == (4,)
  assert tuning.edges(short, lambda point: True) == [0]
  # Beyond which nothing runs, there is no edge.
  assert not tuning.edges(short, lambda point: point[0] <= 4)


@settings(max_examples=100, deadline=None)
@given(
  peak=st.tuples(*[st.integers(-3, 3)] * 3),
  weight=st.tuples(*[st.floats(0.1, 10)] * 3),
)
def test_it_finds_the_top_of_a_hill(peak, weight):
  """As trying everything would; a hill falls along every knob."""

  def score(point):
    gone = zip(weight, point, peak, strict=True)
    return -sum(w * abs(a - b) for w, a, b in gone)

  scores = climb(score, 3 * 9 * 7, 3)
  assert tuning.best(scores) == peak
  first = list(scores).index(peak)
  # A walk of 9 steps at most, with at most 5 points tried beside each.
  assert first <= 6 * sum(map(abs, peak))


def test_it_stops_where_nothing_is_left():
  box = set(itertools.product(range(-1, 2), repeat=2))
  scores = climb(lambda point: point[0] * 0.1, 100, 2, box.__contains__)
  assert set(scores) == box
  assert tuning.next_point(2, scores, box.__contains__) is None
