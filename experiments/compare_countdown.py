"""All methods on Countdown with three numbers.

Purpose: one table that says what the search buys, at equal iterations and at
equal tokens. Every method gets the same three learning rates on validation, one
seed; what is reported are five other seeds at its best rate, on test problems
that chose nothing. 65 iterations of tsd cost what 60 did when solved trees
still grew (`search.slot_reuse`).

Command: python -m launch.compare --workdir=DIR
"""

import dataclasses

from experiments import countdown
from tsd_jax.comparison.judge import Comparison


def get_config() -> Comparison:
  """The comparison."""
  return Comparison(
    experiment=dataclasses.replace(countdown.get_config(), iterations=65),
    values=("3e-4", "5e-4", "8e-4"),
  )
