"""The small shape and the task that several benchmarks run."""

import dataclasses

import jax.numpy as jnp

from tsd_jax.base.types import Array
from tsd_jax.models.transformer import ModelConfig
from tsd_jax.rewards.reward import Score
from tsd_jax.tasks.task import OwnReward

TINY = ModelConfig(
  vocab_size=64,
  d_model=128,
  num_layers=4,
  num_heads=4,
  num_kv_heads=4,
  head_dim=32,
  d_mlp=512,
  unroll_layers=4,
)


@dataclasses.dataclass(frozen=True)
class Unsolved:
  """A task whose answers are all wrong, so that a search uses its budget."""

  vocab_size: int
  prompt_length: int
  response_length: int
  prompt_pad_id: None = None
  shared_prefix_length: int = 0
  pad_id: int = 0
  step_end_ids: tuple[int, ...] = ()
  observe: None = None
  observation_length: int = 0
  state_key: None = None

  reward = property(OwnReward)

  @property
  def eos_id(self) -> int:
    """The last token."""
    return self.vocab_size - 1

  @property
  def end_ids(self) -> tuple[int, ...]:
    """The last token."""
    return (self.eos_id,)

  def score(self, prompt_XP: Array, response_XT: Array) -> Score:
    """Nothing for anything."""
    del prompt_XP
    zero_X = jnp.zeros(response_XT.shape[:-1])
    return Score(zero_X, zero_X > 0)
