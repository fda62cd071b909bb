"""What a task is, for everything that samples or learns, and where it starts.

A `TaskConfig` holds the settings of a game and lives on the host: it lists the
problems, poses them and writes examples for a warm start. It makes the `Task`,
the part that the compiled loop sees. `countdown.py` and `maze.py` are examples.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import (
  Any,
  ClassVar,
  NamedTuple,
  Protocol,
  cast,
  runtime_checkable,
)

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from tsd_jax.base.types import (
  Array,
  Media,
  PromptForm,
  Prompts,
  chosen_tokens,
)
from tsd_jax.models.tokenizer import Tokenizer, response_pad
from tsd_jax.rewards.around import Around
from tsd_jax.rewards.reward import Reward, Score, response_mask

# The canonical form of a problem: equal for problems that differ only in what
# does not matter, so that none is trained on in another form.
Problem = Hashable


class Posed(NamedTuple):
  """A problem as it is asked."""

  prompt_P: np.ndarray
  response_T: np.ndarray  # A correct response.
  # The example that graders find it by; None: its place among the problems.
  example: int | None = None


# (prompts, response_BGT, the task's own score) -> another score; pure JAX.
RewardFn = Callable[[Prompts, Array, Score], Score]

# (prompts, response_BT, length_B) -> (token_BO, count_B); see `Task.observe`.
ObserveFn = Callable[[Prompts, Array, Array], tuple[Array, Array]]

# (prompt_XP, response_XT, length_X) -> state_key_XZ; see `Task.state_key`.
StateKeyFn = Callable[[Array, Array, Array], Array]


@runtime_checkable
class Task(Protocol):
  """Prompts of P tokens, answered by at most T tokens.

  A response is finished if and only if it contains one of `end_ids`;
  everything after that is `pad_id`. An unfinished response has the least reward
  and is never correct.
  """

  @property
  def name(self) -> str:
    """A short name for logs and file names."""
    ...

  @property
  def vocab_size(self) -> int:
    """V: token ids are 0..V-1."""
    ...

  @property
  def prompt_length(self) -> int:
    """P, the same for every prompt."""
    ...

  @property
  def response_length(self) -> int:
    """T, the end token included."""
    ...

  @property
  def tokenizer(self) -> Tokenizer:
    """Token ids <-> text, for logs and exported models."""
    ...

  @property
  def prompt_pad_id(self) -> int | None:
    """The token that fills short prompts on the right; None: all are full."""
    ...

  @property
  def shared_prefix_length(self) -> int:
    """How many leading tokens all prompts share, which are then run once."""
    ...

  @property
  def eos_id(self) -> int:
    """The token that is written where a response is to end."""
    ...

  @property
  def end_ids(self) -> tuple[int, ...]:
    """All tokens that end a response, `eos_id` among them."""
    ...

  @property
  def pad_id(self) -> int:
    """The token that follows the end of a response."""
    ...

  @property
  def step_end_ids(self) -> tuple[int, ...]:
    """Tokens that end a step of a search (`SearchConfig.step_tokens`)."""
    ...

  @property
  def observe(self) -> ObserveFn | None:
    """What the environment writes into responses; None: nothing, ever.

    A method in JAX, of prompts, responses of which the first `length_B`
    tokens are there (PAD after them), and that length. It returns the tokens
    that the environment writes next, such as a tool's answer, at most
    `observation_length` of them, and how many there are: 0 where the model
    chooses the next token. An end token ends the response. It is not asked for
    a first token, which would belong to the prompt, nor within an observation:
    `length_B` is 0 there, and what it returns is not read.

    It may call the host, but only where it must (`callback.observed`): it is
    called for every token that is sampled, and for every token of responses
    that are given (`environment_tokens`).
    """
    ...

  @property
  def observation_length(self) -> int:
    """O, the most tokens that the environment writes at a time."""
    ...

  @property
  def state_key(self) -> StateKeyFn | None:
    """What a response so far has come to; None: a search merges nothing.

    A method in pure JAX, of prompts, responses of which the first `length_X`
    tokens are there (PAD after them), and that length. It returns K integers,
    equal for two responses to a prompt only if whatever follows either is
    judged alike after both. A search then follows one of them, unless the other
    is shorter: its length, and so the room it has left, is no part of this.
    """
    ...

  @property
  def reward(self) -> Reward:
    """What responses are worth."""
    ...

  def describe(
    self,
    prompt_P: np.ndarray,
    response_T: np.ndarray,
    example: int | None = None,
  ) -> str:
    """Returns one readable line about one response; runs on the host."""
    ...


@dataclasses.dataclass(frozen=True)
class TaskConfig(abc.ABC):
  """A game's settings; a subclass is a frozen dataclass that adds its own.

  Raises:
    ValueError: a field has an impossible value.
  """

  validation_size: int = 512
  test_size: int = 512
  seed: int = 0  # Of the split, and of all that is drawn to pose problems.
  tuning_size: int = 0  # Problems that choose a comparison's settings.
  split_by: str = "problem"  # What no two splits have in common; see `group`.

  SPLITS_BY: ClassVar[tuple[str, ...]] = ("problem",)

  def __post_init__(self):
    """Refuses impossible values; a subclass calls it and adds its own."""
    if self.split_by not in self.SPLITS_BY:
      raise ValueError(
        f"{type(self).__name__}.split_by={self.split_by!r}: use one of "
        f"{', '.join(self.SPLITS_BY)}"
      )
    for field in ("validation_size", "test_size", "tuning_size"):
      self.need(
        int, field, lambda x: x >= 0, "use an integer that is 0 or more"
      )
    remedy = "use an integer in 0..2**32-1"
    self.need(int, "seed", lambda x: 0 <= x < 2**32, remedy)

  def need(
    self,
    kind: type,
    field: str,
    ok: Callable[[Any], bool | np.bool_],
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
    tuning = f"_tuning{self.tuning_size}" if self.tuning_size else ""
    by = f"_by_{self.split_by}" if self.split_by != "problem" else ""
    return (
      f"validation{self.validation_size}_test{self.test_size}_seed{self.seed}"
      f"{tuning}{by}"
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
  def pose(self, problem: Problem, rng: np.random.Generator) -> Posed:
    """Returns a problem in a random form, with a correct response."""

  @abc.abstractmethod
  def canonical(self, prompt_P: np.ndarray) -> Problem:
    """Returns the canonical form of what a prompt asks."""

  def group(self, problem: Problem) -> Problem:
    """What a problem has in common with others that are in no other split.

    By default nothing but itself. A game whose problems come in families, of
    which a model could remember one, names the family.
    """
    return problem

  def example(self, index: int) -> Any:
    """What a grader reads of a problem beside its prompt, as JSON's own types.

    A run refuses to go on where it has changed.
    """
    del index
    return None

  def media(self, prompts: Prompts) -> Media | None:
    """Pictures or sound that stand in prompts; None where there are none.

    Called once for all prompts of a split, on the host: `prompts.example_B`
    says which problem each asks. Embeddings have the model's width.
    """
    del prompts
    return None

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
      count: Q, the number of examples.
      relabel_fraction: probability that the prompt asks for what the response
        does; otherwise it asks for anything, and is mostly missed.
      excluded: groups of problems that are never asked; see `group`.

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


def prompt_form(task: Task) -> PromptForm:
  """How a model is to read a task's prompts."""
  return PromptForm(task.prompt_pad_id is not None, task.shared_prefix_length)


def real_tokens(prompt_XP: Array, pad_id: int) -> Array:
  """True up to the last token that is no padding; pure JAX.

  The padding token may also occur within a prompt: many chat models end every
  turn with it.
  """
  is_real_XP = prompt_XP != pad_id
  return jax.lax.cummax(
    is_real_XP.astype(jnp.int8), axis=is_real_XP.ndim - 1, reverse=True
  ).astype(bool)


def as_prompts(
  task: Task, prompt_BP: ArrayLike, example_B: ArrayLike | None = None
) -> Prompts:
  """Prompts of a task from their tokens.

  Args:
    task: says what fills short prompts.
    prompt_BP: int32 tokens, padded on the right.
    example_B: their problems' indices; 0, 1, ... by default.
  """
  prompt_BP = jnp.asarray(prompt_BP)
  B, P = prompt_BP.shape
  length_B = jnp.full(B, P, jnp.int32)
  if task.prompt_pad_id is not None:
    real_BP = real_tokens(prompt_BP, task.prompt_pad_id)
    length_B = jnp.sum(real_BP, axis=1, dtype=jnp.int32)
  if example_B is None:
    example_B = jnp.arange(B, dtype=jnp.int32)
  return Prompts(prompt_BP, length_B, jnp.asarray(example_B))


def next_observation(
  task: Task, prompts: Prompts, response_BT: Array, length_B: Array
) -> tuple[Array, Array]:
  """The tokens that the environment writes next, BO, and how many, B.

  Args:
    task: one that observes.
    prompts: what was asked.
    response_BT: responses so far, PAD after `length_B` tokens.
    length_B: how many tokens are there.
  """
  assert task.observe is not None
  token_BO, count_B = task.observe(prompts, response_BT, length_B)
  # Nothing stands behind an end token, and nothing needs room there.
  in_time_BO = response_mask(token_BO, task.end_ids)
  count_B = jnp.minimum(count_B, jnp.sum(in_time_BO, axis=1, dtype=jnp.int32))
  return token_BO, jnp.where(length_B > 0, count_B, 0)


def environment_tokens(
  task: Task, prompts: Prompts, response_BGT: Array
) -> Array | None:
  """Which tokens of given responses the environment wrote, BGT.

  None where it never does. Entries after a response's end mean nothing.
  """
  if task.observe is None:
    return None
  B, G, T = response_BGT.shape
  prompts = prompts.repeat(G)
  response_RT = response_BGT.reshape(B * G, T)

  def at(left_R, t):
    """How much of an observation is left before token t, and after it."""
    before_RT = jnp.where(jnp.arange(T) < t, response_RT, task.pad_id)
    length_R = jnp.where(left_R > 0, 0, t)
    _, count_R = next_observation(task, prompts, before_RT, length_R)
    left_R = jnp.where(left_R > 0, left_R, count_R)
    return jnp.maximum(left_R - 1, 0), left_R > 0

  none_R = jnp.zeros(B * G, jnp.int32)
  _, written_TR = jax.lax.scan(at, none_R, jnp.arange(T))
  return jnp.moveaxis(written_TR, 0, -1).reshape(B, G, T)


def chosen(
  task: Task, prompts: Prompts, response_BGT: Array, mask_BGT: Array
) -> Array:
  """The part of a mask at which the model chose the token."""
  return chosen_tokens(
    mask_BGT, environment_tokens(task, prompts, response_BGT)
  )


def readable(task: Task, tokens: np.ndarray) -> list[str]:
  """Returns readable symbols; ids outside the vocabulary do not stop a log."""
  return [
    task.tokenizer.decode([token])
    if 0 <= token < task.vocab_size
    else f"<{token}>"
    for token in map(int, tokens)
    if token != task.pad_id
  ]


class TokenizerIds:
  """What a task of text says of tokens, by its `tokenizer`."""

  tokenizer: Any

  @property
  def vocab_size(self) -> int:
    """V; a model may have more rows."""
    return self.tokenizer.vocab_size

  @property
  def eos_id(self) -> int:
    """The end token that is written."""
    return self.tokenizer.eos_id

  @property
  def end_ids(self) -> tuple[int, ...]:
    """All end tokens."""
    return self.tokenizer.end_ids

  @property
  def prompt_pad_id(self) -> int:
    """The tokenizer's padding token."""
    return self.tokenizer.pad_id

  @property
  def pad_id(self) -> int:
    """Fills responses: never the end token, which the tokenizer's may be."""
    return response_pad(self.tokenizer)


@dataclasses.dataclass(frozen=True)
class OwnReward(Reward):
  """The reward of a game that scores tokens: `score(prompt_XP, response_XT)`.

  A game's property `reward` returns it.
  """

  bounded = True

  task: Any

  def __call__(self, params, prompts, tokens_BGT, mask_BGT) -> Score:
    """The game's own score."""
    del params, mask_BGT
    return self.task.score(
      repeat_prompts(prompts.tokens_BP, tokens_BGT), tokens_BGT
    )


def repeat_prompts(prompt_BP: Array, tokens_BGT: Array) -> Array:
  """A prompt for each of its responses, BGP."""
  B, P = prompt_BP.shape
  return jnp.broadcast_to(prompt_BP[:, None], (B, tokens_BGT.shape[1], P))


@dataclasses.dataclass(frozen=True)
class Shaped(Around):
  """Another reward made from a task's own, by a function in JAX.

  Its range is the own reward's, and so is what is correct.
  """

  fn: RewardFn

  def __call__(self, params, prompts, tokens_BGT, mask_BGT) -> Score:
    """Scores as the task does, then calls the function on that.

    Raises:
      ValueError: it returns no score.
    """
    own = self.reward(params, prompts, tokens_BGT, mask_BGT)
    new = self.fn(prompts, tokens_BGT, own)
    if not isinstance(new, Score):
      name = getattr(self.fn, "__name__", str(self.fn))
      raise ValueError(
        f"reward {name} returned {type(new).__name__}; return "
        "score._replace(reward_X=...)"
      )
    return new


@dataclasses.dataclass(frozen=True)
class Rewarded:
  """A task with another reward; everything else is the task's own.

  Attributes:
    task: the task.
    reward: the reward.
    alike: whether it tells apart no more than the task's own, so that states
      may be merged as before.
  """

  task: Task
  reward: Reward
  alike: bool = False

  @property
  def state_key(self) -> Any:
    """The task's own, where the rewards are alike."""
    return self.task.state_key if self.alike else None

  def __getattr__(self, name: str) -> Any:
    if name.startswith("_"):
      raise AttributeError(name)
    return getattr(self.task, name)


def rewarded(task: Task, reward: Reward, *, alike: bool = False) -> Task:
  """A task with another reward in place of its own (`Rewarded`)."""
  # The rest is found at run time.
  return cast(Task, Rewarded(task, reward, alike))
