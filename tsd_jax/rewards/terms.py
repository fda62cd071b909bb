"""Rewards that say something of any response, for use beside a task's own."""

import dataclasses

import jax.numpy as jnp

from tsd_jax.rewards.reward import Reward, Score


@dataclasses.dataclass(frozen=True)
class Length(Reward):
  """0 for a short response, down to -1 for one that takes all its room.

    -clip((n - free) / (T - free), 0, 1)

  n counts the tokens up to the end token, that included, and those that an
  environment wrote. `Sum((TaskReward(), Length()), (1.0, 0.1))` takes up to a
  tenth off.

  Attributes:
    free: tokens that cost nothing.

  Raises:
    ValueError: there are less than none.
  """

  low, high = -1.0, 0.0
  knows_correct, bounded = False, True

  free: int = 0

  def __post_init__(self):
    """Refuses a negative number of tokens."""
    if self.free < 0:
      raise ValueError(f"Length.free={self.free} must not be negative")

  def __call__(self, params, prompts, tokens_BGT, mask_BGT) -> Score:
    """Counts tokens."""
    del params, prompts
    room = max(tokens_BGT.shape[-1] - self.free, 1)
    length_BG = jnp.sum(mask_BGT, axis=-1, dtype=jnp.float32)
    return Score(-jnp.clip((length_BG - self.free) / room, 0.0, 1.0))
