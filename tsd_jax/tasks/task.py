"""What a task is, for everything that samples or learns, and where it starts.

A `TaskConfig` holds the settings of a game and lives on the host: it lists the
problems, poses them and writes examples for a warm start. It makes the `Task`,
the part that the compiled loop sees. `countdown.py` and `maze.py` are examples.

Axes beyond the legend of `types.py`: X stands for any leading axes, none
included; N counts problems or examples.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from tsd_jax.base.types import NO_OBSERVATION, Array
from tsd_jax.models.symbols import SymbolTokenizer

# The canonical form of a problem: equal for problems that differ only in what
# does not matter, so that none is trained on in another guise.
Problem = Hashable


class Score(NamedTuple):
  """What responses are worth; a pytree."""

  reward_X: Array  # float32 in [0, 1]: shaped, for learning.
  correct_X: Array  # bool: solved exactly, for evaluation and champions.


# (prompt_XP, response_XT, the task's own score) -> another score; pure JAX.
RewardFn = Callable[[Array, Array, Score], Score]

# (prompt_XP, response_XT, length_X) -> token_X; see `Task.observe`.
ObserveFn = Callable[[Array, Array, Array], Array]

# (prompt_XP, response_XT, length_X) -> state_key_XZ; see `Task.state_key`.
StateKeyFn = Callable[[Array, Array, Array], Array]


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
  def tokenizer(self) -> SymbolTokenizer:
    """Token ids <-> text, for logs and exported models."""

  @property
  def prompt_pad_id(self) -> int | None:
    """The token that fills short prompts on the right; None: all are full."""

  @property
  def shared_prefix_length(self) -> int:
    """How many leading tokens all prompts share, which are then run once."""

  @property
  def eos_id(self) -> int:
    """The token that ends a response."""

  @property
  def pad_id(self) -> int:
    """The token that follows the end of a response."""

  @property
  def step_end_ids(self) -> tuple[int, ...]:
    """Tokens that end a step of a search (`SearchConfig.step_tokens`)."""

  @property
  def observe(self) -> ObserveFn | None:
    """What the environment writes into responses; None: nothing, ever.

    A method in pure JAX, of prompts, responses of which the first `length_X`
    tokens are there (PAD after them), and that length. It returns the next
    token where the environment writes it, such as a tool's answer, and
    `NO_OBSERVATION` where the model chooses it. A longer observation is asked
    for token by token; an end token ends the response. It is not asked for a
    first token, which would belong to the prompt.
    """

  @property
  def state_key(self) -> StateKeyFn | None:
    """What a response so far has come to; None: a search merges nothing.

    A method in pure JAX, of prompts, responses of which the first `length_X`
    tokens are there (PAD after them), and that length. It returns K integers,
    equal for two responses to a prompt only if whatever follows either is
    judged alike after both. A search then follows one of them, unless the other
    is shorter: its length, and so the room it has left, is no part of this.
    """

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
class TaskConfig(abc.ABC):
  """A game's settings; a subclass is a frozen dataclass that adds its own.

  Raises:
    ValueError: a field has an impossible value.
  """

  validation_size: int = 512
  test_size: int = 512
  seed: int = 0  # Of the split, and of all that is drawn to pose problems.

  def __post_init__(self):
    """Refuses impossible values; a subclass calls it and adds its own."""
    for field in ("validation_size", "test_size"):
      self.need(
        int, field, lambda x: x >= 0, "use an integer that is 0 or more"
      )
    remedy = "use an integer in 0..2**32-1"
    self.need(int, "seed", lambda x: 0 <= x < 2**32, remedy)

  def need(
    self,
    kind: type,
    field: str,
    ok: Callable[[Any], bool],
    remedy: str,
  ) -> None:
    """Raises ValueError with the remedy if a field is no such number."""
    value = getattr(self, field)
    kinds = (int,) if kind is int else (int, float)
    right_type = isinstance(value, kinds) and not isinstance(value, bool)
    if not (right_type and math.isfinite(value) and ok(value)):
      raise ValueError(f"{type(self).__name__}.{field}={value!r}: {remedy}")

  @property
  def split(self) -> str:
    """Names the settings above, for `dataset`."""
    return (
      f"validation{self.validation_size}_test{self.test_size}_seed{self.seed}"
    )

  @property
  @abc.abstractmethod
  def dataset(self) -> str:
    """Names every setting that `problems` and `pose` depend on."""

  @abc.abstractmethod
  def make(self) -> Task:
    """The task; its `name` is the same for all settings."""

  @abc.abstractmethod
  def problems(self) -> Sequence[Problem]:
    """Distinct canonical problems that can be solved, always the same."""

  @abc.abstractmethod
  def pose(
    self, problem: Problem, rng: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns prompt_P in a random guise, and a correct response_T."""

  @abc.abstractmethod
  def canonical(self, prompt_P: np.ndarray) -> Problem:
    """Returns the canonical form of what a prompt asks."""

  @abc.abstractmethod
  def warm_start(
    self,
    rng: np.random.Generator,
    count: int,
    relabel_fraction: float,
    excluded: Collection[Problem] = (),
  ) -> tuple[np.ndarray, np.ndarray]:
    """Draws random legal responses, for supervised warm starts.

    Args:
      rng: advanced by the call.
      count: N, the number of examples.
      relabel_fraction: probability that the prompt asks for what the response
        does; otherwise it asks for anything, and is mostly missed.
      excluded: canonical problems that are never asked.

    Returns:
      prompt_QP and response_QT, int32.

    Raises:
      ValueError: an argument is out of range, or `excluded` leaves nothing.
    """


@dataclasses.dataclass(frozen=True)
class GradedConfig(TaskConfig):
  """A game whose answers have a distance to being right, and reward levels.

  unparsable 0 < illegal < legal, the farther the less < exact 1
  """

  illegal: float = 0.05  # Reward of a parsed response that breaks a rule.
  legal: float = 0.1  # Reward of a legal response, however far it ends.
  near: float = 0.3  # What a legal response gains as it comes near.
  near_scale: float = 5.0  # Distance over which that gain falls by e.

  def __post_init__(self):
    """Refuses levels that are out of order."""
    super().__post_init__()
    # Levels are compared as float32: 1e-50 would be no level above 0.
    f32, remedy = np.float32, "use a number in (0, 1)"
    self.need(float, "illegal", lambda x: 0 < f32(x) < 1, remedy)
    remedy = f"use a number above illegal={self.illegal} and below 1"
    self.need(float, "legal", lambda x: f32(self.illegal) < f32(x) < 1, remedy)
    self.need(float, "near_scale", lambda x: x > 0, "use a number above 0")
    remedy = "use 0 or more, but so little that a near miss is worth below 1"
    self.need(float, "near", lambda x: x >= 0, remedy)
    self.need(float, "near", lambda x: self._legal(np.ones(1))[0] < 1, remedy)

  @property
  @abc.abstractmethod
  def max_distance(self) -> int:
    """The farthest that a legal response can be."""

  def reward_by_distance(self) -> np.ndarray:
    """Returns the rewards of legal responses, float32 [max_distance + 1].

      reward[0] = 1,  reward[d] = legal + near * exp(-d / near_scale)

    Tabulated on the host, so that the order of the levels does not depend on
    how a compiler rounds `exp`: rounding to float32 keeps it, with ties.
    """
    reward = self._legal(np.arange(self.max_distance + 1, dtype=np.float64))
    reward[0] = 1.0
    return reward

  def _legal(self, distance: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
      closeness = np.exp(-distance / self.near_scale)
    return (self.legal + self.near * closeness).astype(np.float32)


def check_warm_start(count: int, relabel_fraction: float) -> None:
  """Raises ValueError where an argument of `warm_start` is out of range."""
  if count < 0:
    raise ValueError(f"{count=}: use 0 or more")
  if not 0.0 <= relabel_fraction <= 1.0:
    raise ValueError(f"{relabel_fraction=}: use a probability in [0, 1]")


def check_tokens(task: Task, prompt_XP: Array, response_XT: Array) -> None:
  """Raises ValueError where shapes or dtypes do not fit a task."""
  for name, tokens, length in (
    ("prompt_XP", prompt_XP, task.prompt_length),
    ("response_XT", response_XT, task.response_length),
  ):
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
      raise ValueError(f"{name} needs integer tokens, got {tokens.dtype=}")
    if tokens.ndim < 1 or tokens.shape[-1] != length:
      raise ValueError(
        f"{name} needs a last axis of {length}, got {tokens.shape=}"
      )
  if prompt_XP.shape[:-1] != response_XT.shape[:-1]:
    raise ValueError(
      f"leading axes differ: {prompt_XP.shape=}, {response_XT.shape=}"
    )


def next_observation(
  task: Task, prompt_XP: Array, response_XT: Array, length_X: Array
) -> Array:
  """The token that the environment writes next, or `NO_OBSERVATION`.

  Args:
    task: one that observes.
    prompt_XP: prompts.
    response_XT: responses so far, PAD after `length_X` tokens.
    length_X: how many tokens are there.
  """
  token_X = task.observe(prompt_XP, response_XT, length_X)
  return jnp.where(length_X > 0, token_X, NO_OBSERVATION)


def environment_tokens(
  task: Task, prompt_BP: Array, response_BGT: Array
) -> Array | None:
  """Which tokens of given responses the environment wrote, BGT.

  None where it never does. Entries after a response's end mean nothing.
  """
  if task.observe is None:
    return None
  B, G, T = response_BGT.shape
  prompt_BGP = jnp.broadcast_to(prompt_BP[:, None], (B, G, prompt_BP.shape[1]))

  def at(t):
    before_BGT = jnp.where(jnp.arange(T) < t, response_BGT, task.pad_id)
    length_BG = jnp.full((B, G), t)
    token_BG = next_observation(task, prompt_BGP, before_BGT, length_BG)
    return token_BG != NO_OBSERVATION

  return jnp.moveaxis(jax.lax.map(at, jnp.arange(T)), 0, -1)


def chosen(
  task: Task, prompt_BP: Array, response_BGT: Array, mask_BGT: Array
) -> Array:
  """The part of a mask at which the model chose the token."""
  environment_BGT = environment_tokens(task, prompt_BP, response_BGT)
  return mask_BGT if environment_BGT is None else mask_BGT & ~environment_BGT


def readable(task: Task, tokens: np.ndarray) -> list[str]:
  """Returns readable symbols; ids outside the vocabulary do not stop a log."""
  return [
    task.tokenizer.decode([token])
    if 0 <= token < task.vocab_size
    else f"<{token}>"
    for token in map(int, tokens)
    if token != task.pad_id
  ]


@dataclasses.dataclass(frozen=True)
class Rewarded:
  """A task with another reward; everything else is the task's own."""

  task: Task
  reward: RewardFn

  state_key = None  # The reward may tell apart what the task's own does not.

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
