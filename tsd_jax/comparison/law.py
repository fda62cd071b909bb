"""What a tree is worth to a start, by how often its samples are right.

`experiments.benchmarks.law` compares methods from starts of graded strength,
each method at the best of its own settings. `LAWS` are the lines through what
it found (`python -m experiments.results.law` prints them): of the mean of
greedy accuracy, mean accuracy and pass@16 at equal ledger tokens, of the mean
accuracy alone at equal seconds of a core. docs/when.md draws them. They are of
small models and of games: a forecast, and a comparison on one's own task is the
test.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from tsd_jax.comparison.entrants import Method


class Law(NamedTuple):
  """How TSD's accuracy over another method's goes with a start's success p.

  log ratio = at_even + slope * log(p / (1 - p))
  """

  slope: float
  at_even: float  # Where half of the samples are right.
  spread: float  # Two of three new starts lie within so much of that.

  def ratio(self, success: float) -> float:
    """What is to be expected.

    Args:
      success: share of the start's samples that are right, above 0, below 1.
    """
    return math.exp(self.at_even + self.slope * logit(success))

  def range(self, success: float) -> tuple[float, float]:
    """Where two of three ratios lie.

    Args:
      success: as for `ratio`.
    """
    middle, factor = self.ratio(success), math.exp(self.spread)
    return middle / factor, middle * factor

  @property
  def crossover(self) -> float | None:
    """The success at which neither is ahead; None if there is none."""
    if not self.slope:
      return None
    return 1 / (1 + math.exp(self.at_even / self.slope))


def logit(p: float) -> float:
  """Log odds."""
  return math.log(p / (1 - p))


Axis = Literal["tokens", "seconds"]
_OF: Mapping[Axis, str] = {
  "tokens": " (greedy, mean and pass@16 in the mean)",
  "seconds": " (mean accuracy)",
}
OPPONENTS: tuple[Method, ...] = ("filtered_best_of_n", "grpo")
LAWS: Mapping[Axis, Mapping[Method, Law]] = {
  "tokens": {
    "filtered_best_of_n": Law(slope=-0.094, at_even=-0.038, spread=0.254),
    "grpo": Law(slope=-0.167, at_even=0.014, spread=0.296),
  },
  "seconds": {
    "filtered_best_of_n": Law(slope=-0.053, at_even=-0.056, spread=0.341),
    "grpo": Law(slope=-0.009, at_even=0.155, spread=0.448),
  },
}
# Of the starts that the lines were drawn through.
WEAKEST, STRONGEST = 0.005, 0.39
# Below it the two starts that were measured are worlds apart.
RARE = 0.012


def expectation(success: float) -> str:
  """What a comparison from such a start is expected to find, in lines.

  Args:
    success: share of its samples at temperature 1 that are right.
  """
  said = f"{success:.3f} of the start's samples are right"
  if success in (0, 1):
    return said + ": no line says what to expect (docs/when.md)"
  lines = [
    f"{said}; from such starts of games TSD had, two of three within the "
    "brackets (docs/when.md):"
  ]
  for axis, laws in LAWS.items():
    for method, law in laws.items():
      low, high = law.range(success)
      lines.append(
        f"  {law.ratio(success):.2f}x [{low:.2f}, {high:.2f}] of {method} at "
        f"equal {axis}{_OF[axis]}: {_verdict(low, high, method)}"
      )
  if success < RARE:
    lines.append(
      "  or far more, by what trees find (--mode=search@64): some that solved "
      "0.63 of their prompts took a start of 0.006 to 0.39, some that solved "
      "0.13 a start of 0.005 to 0.01; samplers had 0.02 at most"
    )
  if success > STRONGEST:
    lines.append(f"  beyond what was measured: starts up to {STRONGEST:g}")
  lines.append(
    "  at equal verifier calls samplers are ahead: where a verdict is what "
    "costs, do not search"
  )
  return "\n".join(lines)


def _verdict(low: float, high: float, method: Method) -> str:
  if low > 1:
    return "expect tsd"
  return f"expect {method}" if high < 1 else "too close to tell"
