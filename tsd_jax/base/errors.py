"""Errors that are the user's to mend; commands show them on one line."""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping


class UserError(Exception):
  """Bad input: commands show the message on one line, with no traceback."""

  exit_code = 2


class ConfigError(UserError):
  """A config that does not exist, or is set to what it cannot be."""


def one_line(text: str) -> str:
  """A text whose line ends and terminal codes are written out."""
  return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def show(error: Exception) -> None:
  """Writes an error as a line on standard error."""
  # Some of it may come from a file: nothing in it moves a terminal's cursor.
  text = one_line(" ".join(str(error).split()))
  print("error:", text, file=sys.stderr, flush=True)


def refuse(violations: Iterable[str]) -> None:
  """Says all that is wrong at once, if anything is.

  Args:
    violations: what is wrong, each with the field, the value and a remedy.

  Raises:
    ValueError: there are some.
  """
  if found := "; ".join(violations):
    raise ValueError(found)


def not_weights(owner: str, numbers: Mapping[str, float]) -> Iterator[str]:
  """What is wrong with fields that weigh: by NaN nothing is larger.

  Args:
    owner: the config that they are fields of, such as `loss`.
    numbers: by the fields' names.
  """
  for name, number in numbers.items():
    if not 0 <= number < math.inf:
      yield f"{owner}.{name}={number} must not be negative, and be finite"


def multiples(value: int, of: int) -> str:
  """Names the multiples on either side of a number, those above 0."""
  below = value // of * of
  return f"{below} or {below + of}" if below > 0 else str(below + of)


def divisors(value: int, most: int) -> list[int]:
  """Divisors of a number, up to another; of huge ones those in quick reach."""
  tried = range(1, min(most, math.isqrt(value), 100_000) + 1)
  small = [d for d in tried if value % d == 0]
  return sorted(d for d in {*small, *(value // d for d in small)} if d <= most)
