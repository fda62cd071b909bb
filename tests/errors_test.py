"""Values that an error proposes."""

import time

import pytest

from tsd_jax.base.errors import divisors, multiples


@pytest.mark.parametrize("value", [1, 2, 36, 97, 360])
def test_divisors_are_all_that_there_are(value):
  for most in (0, 1, 5, value // 2, value, 2 * value):
    every = [d for d in range(1, most + 1) if value % d == 0]
    assert divisors(value, most) == every


def test_huge_numbers_are_answered_at_once():
  start = time.monotonic()
  found = divisors(2**62, 2**62)
  assert found[0] == 1 and found[-1] == 2**62
  assert 2**20 not in found and all(2**62 % d == 0 for d in found)
  assert divisors(96, 2**62)[-1] == 96
  assert time.monotonic() - start < 5


def test_multiples_on_either_side_are_above_zero():
  assert multiples(7, 3) == "6 or 9"
  assert multiples(2, 3) == "3"
