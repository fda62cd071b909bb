"""Countdown with a calculator: a task of several turns.

Prompt as in Countdown: `n1 n2 n3 = target`. Response: `a op b = r` for each
operation, then the end token. Wherever the model has written `a op b =`, the
calculator writes r: no arithmetic is to be learned, only which numbers to take.
It says nothing of an operation whose result is no integer in 1..max_value; the
model may then write what it likes, for no such operation is legal.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from tsd_jax.base.types import Array, Prompts
from tsd_jax.models import symbols
from tsd_jax.rewards.reward import Score
from tsd_jax.tasks.countdown import (
  Countdown,
  CountdownConfig,
  exact_result,
  own_state_key,
)
from tsd_jax.tasks.countdown_problems import STEP_LENGTH

_CALL = STEP_LENGTH  # Tokens of `a op b =`.


@dataclasses.dataclass(frozen=True)
class CalculatorConfig(CountdownConfig):
  """Countdown's sizes, problems and splits."""

  def make(self) -> "Calculator":
    """The task."""
    return Calculator(self)

  def pose(self, problem, rng):
    """Gives the numbers in random order, and a solution."""
    posed = super().pose(problem, rng)
    return posed._replace(response_T=_with_calls(posed.response_T))

  def warm_start(self, rng, count, relabel_fraction, excluded=()):
    """Draws random legal expressions; see `task.TaskConfig.warm_start`."""
    prompt_QP, response_QT = super().warm_start(
      rng, count, relabel_fraction, excluded
    )
    return prompt_QP, _with_calls(response_QT)


@dataclasses.dataclass(frozen=True)
class Calculator(Countdown):
  """The task of `task.Task`; hashable, so it may be a static argument."""

  config: CalculatorConfig = CalculatorConfig()

  name = "calculator"
  step_length = _CALL + 1
  observation_length = 1

  def observe(
    self, prompts: Prompts, response_XT: Array, length_X: Array
  ) -> tuple[Array, Array]:
    """Answers `a op b =` at the end of a response; see `task.Task.observe`."""
    del prompts
    at_XU = length_X[..., None] - _CALL + jnp.arange(_CALL)
    call_XU = jnp.take_along_axis(response_XT, jnp.maximum(at_XU, 0), axis=-1)
    a_X, op_X, b_X, equals_X = jnp.moveaxis(call_XU, -1, 0)
    result_X = exact_result(a_X, op_X, b_X)
    answers_X = (length_X >= _CALL) & (equals_X == symbols.SEPARATOR)
    for number_X in (a_X, b_X):
      answers_X &= (number_X >= 0) & (number_X <= symbols.MAX_INTEGER)
    answers_X &= (result_X >= 1) & (result_X <= self.config.max_value)
    return result_X[..., None], answers_X.astype(jnp.int32)

  def state_key(
    self, prompt_XP: Array, response_XT: Array, length_X: Array
  ) -> Array:
    """Countdown's; a response without `=` is a state_key of its own."""
    state_key_XZ = super().state_key(prompt_XP, response_XT, length_X)
    at_T = jnp.arange(self.response_length)
    calls_XT = (at_T % self.step_length == self.step_length - 2) & (
      at_T < length_X[..., None]
    )
    called_X = jnp.all(~calls_XT | (response_XT == symbols.SEPARATOR), axis=-1)
    own_XZ = own_state_key(response_XT)
    return jnp.where(called_X[..., None], state_key_XZ, own_XZ)

  def score(self, prompt_XP: Array, response_XT: Array) -> Score:
    """Grades as Countdown does; a response without `=` does not parse."""
    score = super().score(prompt_XP, response_XT)
    assert score.correct_X is not None  # Countdown knows it.
    equals_XJ = jnp.asarray(response_XT)[..., _CALL - 1 : -1 : self.step_length]
    called_X = jnp.all(equals_XJ == symbols.SEPARATOR, axis=-1)
    return Score(
      jnp.where(called_X, score.reward_X, 0.0), score.correct_X & called_X
    )


def _with_calls(response_XT: np.ndarray) -> np.ndarray:
  """Countdown's responses with `=` before every result."""
  results = np.arange(STEP_LENGTH - 1, response_XT.shape[-1], STEP_LENGTH)
  return np.insert(response_XT, results, symbols.SEPARATOR, axis=-1)
