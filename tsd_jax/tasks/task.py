"""The interface between a task and everything that samples or learns.

Axes beyond the legend of `types.py`: X stands for any leading axes, none
included.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from tsd_jax.types import Array


class Score(NamedTuple):
  """What responses are worth; a pytree."""

  reward_X: Array  # float32 in [0, 1]: shaped, for learning.
  correct_X: Array  # bool: solved exactly, for evaluation and champions.


# (prompt_XP, response_XT, the task's own score) -> another score; pure JAX.
RewardFn = Callable[[Array, Array, Score], Score]


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


@dataclasses.dataclass(frozen=True)
class Rewarded:
  """A task with another reward; everything else is the task's own."""

  task: Task
  reward: RewardFn

  def __getattr__(self, name: str) -> Any:
    if name.startswith("_"):
      raise AttributeError(name)
    return getattr(self.task, name)

  def score(self, prompt_XP: Array, response_XT: Array) -> Score:
    """Scores as the task does, then calls the reward on that.

    Raises:
      ValueError: the reward returns anything but a score of the same shape, a
        float reward and a bool `correct`.
    """
    own = self.task.score(prompt_XP, response_XT)
    new = self.reward(prompt_XP, response_XT, own)
    name = getattr(self.reward, "__name__", str(self.reward))
    if not isinstance(new, Score):
      raise ValueError(
        f"reward {name} returned {type(new).__name__}; return "
        "score._replace(reward_X=...)"
      )
    reward_X, correct_X = map(jnp.asarray, new)
    for got, shape, kind in (
      (reward_X, own.reward_X.shape, jnp.floating),
      (correct_X, own.correct_X.shape, jnp.bool_),
    ):
      if got.shape != shape or not jnp.issubdtype(got.dtype, kind):
        raise ValueError(
          f"reward {name} returned {got.dtype}{list(got.shape)}; expected "
          f"{kind.__name__}{list(shape)}"
        )
    return Score(reward_X, correct_X)
