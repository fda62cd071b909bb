"""The interface between a task and everything that samples or learns.

Axes beyond the legend of `types.py`: X stands for any leading axes, none
included.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from tsd_jax.types import Array


class Score(NamedTuple):
  """What responses are worth; a pytree."""

  reward_X: Array  # float32 in [0, 1]: shaped, for learning.
  correct_X: Array  # bool: solved exactly, for evaluation and champions.


@runtime_checkable
class Task(Protocol):
  """Prompts of P tokens, answered by at most T tokens.

  A response is finished if and only if it contains `eos_id`; everything after
  that is `pad_id`. An unfinished response has reward 0 and is never correct.
  """

  @property
  def name(self) -> str:
    """A short name for logs and file names."""

  @property
  def vocab_size(self) -> int:
    """V: token ids are 0..V-1."""

  @property
  def prompt_length(self) -> int:
    """P, the same for every prompt."""

  @property
  def response_length(self) -> int:
    """T, the end token included."""

  @property
  def eos_id(self) -> int:
    """The token that ends a response."""

  @property
  def pad_id(self) -> int:
    """The token that follows the end of a response."""

  def score(self, prompt_XP: Array, response_XT: Array) -> Score:
    """Grades responses in pure JAX; may be called under jit and vmap.

    Args:
      prompt_XP: integer tokens.
      response_XT: integer tokens, with the same leading axes.

    Raises:
      ValueError: a shape or dtype does not fit the task.
    """

  def describe(self, prompt_P: np.ndarray, response_T: np.ndarray) -> str:
    """Returns one readable line about one response; runs on the host."""
