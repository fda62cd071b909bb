"""Token accounting: every model forward counts, wherever it happens.

A token costs one where the model runs forward over it and three where it is
also trained on (forward and backward). Rows that are computed and thrown away
(masked, finished, revisited) count like all others: the machine paid for them.
"""

import dataclasses
from typing import NamedTuple

from tsd_jax.base.types import Array

BACKWARD_COST = 3


class Tokens(NamedTuple):
  """What one iteration has taken by purpose, int32 scalars.

  Token forwards, but for the responses that the reward has scored: a large
  reward model makes more of them than an int32 holds.
  """

  prefill: Array  # Prompts run forward before search and rollouts.
  search: Array  # Node expansions and rollouts inside the search.
  rollout: Array  # On-policy samples.
  rescore: Array  # Forwards of the reference or of old policies.
  update: Array  # Tokens run forward in the loss; each costs three.
  scored: Array  # Responses that the reward has scored.


@dataclasses.dataclass
class Ledger:
  """Running totals on the host, in Python integers that cannot overflow."""

  prefill: int = 0
  search: int = 0
  rollout: int = 0
  rescore: int = 0
  update: int = 0
  reward: int = 0  # Reward models' operations, as forwards of the policy.
  scored: int = 0  # Responses that the reward has scored; no tokens.

  def add(self, tokens: Tokens, reward_tokens: int = 0) -> None:
    """Adds one iteration.

    Args:
      tokens: its counts, on the host.
      reward_tokens: what scoring one response takes, as tokens of the policy.
    """
    counts = {name: int(count) for name, count in tokens._asdict().items()}
    self.reward += counts["scored"] * reward_tokens
    for name, count in counts.items():
      setattr(self, name, getattr(self, name) + count)

  @property
  def total(self) -> int:
    """Forward-equivalent tokens: update tokens three times."""
    forward = self.prefill + self.search + self.rollout + self.rescore
    forward += self.reward
    return forward + BACKWARD_COST * self.update

  def to_dict(self) -> dict[str, int]:
    """Fields and total, for a metrics row."""
    return {**dataclasses.asdict(self), "total": self.total}
