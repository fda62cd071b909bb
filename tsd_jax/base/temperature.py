"""Temperatures of sampling: which logits can be divided by."""

import math

_LEAST = 1e-6  # Far below it logits overflow.
ALLOWED = f"{_LEAST:g} or more, and finite"  # For the errors.


def is_allowed(temperature: float) -> bool:
  """Whether it is `ALLOWED`.

  Args:
    temperature: of sampling; NaN is none.
  """
  return _LEAST <= temperature < math.inf
