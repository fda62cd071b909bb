"""Plots as SVG: ticks and numbers."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from tsd_jax.run import drawing

VALUES = st.floats(-1e12, 1e12, allow_nan=False)


@hypothesis.given(VALUES, VALUES, st.integers(2, 9))
@hypothesis.example(0.0, 3.8e-14, 4)
def test_ticks_are_few_round_and_within_their_bounds(a, b, most):
  low, high = sorted((a, b))
  hypothesis.assume(high - low > 1e-9 * max(abs(low), abs(high), 1e-6))
  found = drawing.ticks(low, high, most)
  assert 1 <= len(found) <= most
  slack = 1e-6 * (high - low)
  assert low - slack <= found[0] and found[-1] <= high + slack
  if found[2:]:
    steps = np.diff(found)
    assert np.allclose(steps, steps[0], rtol=1e-6)
    mantissa = steps[0] / 10.0 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 2.5, 5, 10)) < 1e-3


@pytest.mark.parametrize(
  ("x", "said"),
  [(0.0, "0"), (0.25, "0.25"), (15.0, "15"), (123456.0, "123,456")]
  + [(2.5e6, "2.5e6"), (0.0003, "0.0003"), (-3e-5, "-3e-5"), (1e-12, "1e-12")],
)
def test_numbers_are_short(x, said):
  assert drawing.number(x) == said


def test_what_is_not_finite_or_not_there_is_left_out():
  line = drawing.Line("a", np.arange(3.0), np.array([1.0, np.nan, 2.0]))
  empty = drawing.Line("b", np.array([]), np.array([]))
  drawn = drawing.element(
    drawing.Plot("k", "t", "x", "y", [line, empty], from_zero=True)
  )
  assert "nan" not in drawn and drawn.count("<circle") == 2
  nothing = drawing.Plot("k", "t", "x", "y", [empty])
  assert "<svg" in drawing.element(nothing)


def test_bars_are_as_long_as_their_parts():
  bars = drawing.Bars(
    "k", "t", "tokens", ["a", "b"], {"one": [1.0, 2.0], "two": [3.0, 0.0]}
  )
  drawn = drawing.element(bars)
  widths = [
    float(part.split('width="')[1].split('"')[0])
    for part in drawn.split('<rect class="bar"')[1:]
  ]
  assert widths == pytest.approx(
    [widths[0], 3 * widths[0], 2 * widths[0]], rel=0.01
  )
  assert "a, two: 3 (75 %)" in drawn
  assert "<svg" in drawing.element(bars._replace(parts={}))
