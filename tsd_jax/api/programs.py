"""What the public functions ask of search and sampling, all in one place.

Compiled programs depend on shapes and settings alone: the next prompt, reward
or seed runs the program that is there.
"""
# pyright: basic
# What JAX says of its own types is not enough for the strict mode.

import dataclasses
import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tsd_jax.base.errors import UserError
from tsd_jax.base.types import Array, PromptForm, Prompts
from tsd_jax.inference import prefill, sampling
from tsd_jax.learning import memory
from tsd_jax.models.tokenizer import (
  Tokenizer,
  before_end,
  is_end,
  response_pad,
  tokens_ending,
)
from tsd_jax.rewards import callback
from tsd_jax.rewards.reward import Reward as RewardBase
from tsd_jax.rewards.reward import Score
from tsd_jax.search import search as search_lib
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.task import Task, TokenizerIds

# (prompt, response) -> a number in [0, 1]; called in this process. The prompt
# is the text that the model read, the response what it wrote after it.
Reward = Callable[[str, str], float]

_STEP = 32  # Prompts are padded to multiples of it: fewer compilations.
_SHOWN, _SHOWN_ERROR = 60, 200  # Characters of a text in an error.

_here = threading.local()  # `reward`: whether this thread is within one.


def _check_outside() -> None:
  """Refuses to run a model within a reward.

  The search that called the reward holds the device until it returns.

  Raises:
    UserError: this is called by a reward.
  """
  if getattr(_here, "reward", False):
    raise UserError("a reward cannot sample or search itself")


class Grader:
  """Calls the reward of one search, once for each text.

  Nothing is raised within a compiled program: the first error is kept for
  `check`, and nothing more is graded.
  """

  def __init__(self, prompt: str, reward: Reward):
    """Refuses what cannot be called with a prompt and a response.

    Raises:
      UserError: it is no function of two texts.
    """
    self._prompt, self._reward = prompt, reward
    self._rewards: dict[str, float] = {}
    self._error: BaseException | None = None
    try:
      inspect.signature(reward).bind(prompt, "")
    except TypeError as error:
      raise UserError(
        f"the reward must take (prompt, response): {error}"
      ) from None
    except ValueError:  # Of a function in C nothing is known.
      pass

  def grade(self, response: str) -> float:
    """The reward of a finished response; 0 after an error."""
    if response not in self._rewards and self._error is None:
      _here.reward = True
      try:
        self._rewards[response] = _number(self._reward(self._prompt, response))
      except Exception as error:
        said = str(error)
        if not isinstance(error, _WrongValue):
          said = f"raised {type(error).__name__}: {said}"
        said = " ".join(said.split())[:_SHOWN_ERROR]
        self._error = UserError(
          f"the reward {said}, for the response {response[:_SHOWN]!r}"
        )
        self._error.__cause__ = error
      except BaseException as error:  # An interrupt must not end a callback.
        self._error = error
      finally:
        _here.reward = False
    return self._rewards.get(response, 0.0)

  def check(self) -> None:
    """Raises what went wrong.

    Raises:
      UserError: the reward raised something, or returned no number in [0, 1].
      BaseException: what interrupted it.
    """
    if self._error is not None:
      raise self._error


class _WrongValue(ValueError):
  """What a reward returned is no reward."""


def _number(value: Any) -> float:
  """A reward as a float.

  Raises:
    _WrongValue: it is no number, or lies outside of [0, 1].
  """
  if np.ndim(value) or not isinstance(
    value, bool | int | float | np.generic | np.ndarray | jax.Array
  ):
    kind = type(value).__name__
    raise _WrongValue(f"returned {value!r:.80} ({kind}): no number in [0, 1]")
  x = float(value)
  if not 0.0 <= x <= 1.0:
    raise _WrongValue(f"returned {x}: outside of [0, 1]")
  return x


class Slot:
  """Holds the grader of the search that runs; one at a time."""

  def __init__(self):
    """Nothing is graded yet."""
    self.lock = threading.Lock()
    self.grader: Grader | None = None


@dataclasses.dataclass(frozen=True)
class PromptTask(TokenizerIds):
  """The task of searching one prompt with a reward in this process.

  A `tasks.task.Task`; a static argument, equal for all prompts and rewards.
  """

  tokenizer: Tokenizer
  prompt_length: int
  response_length: int
  step_end_ids: tuple[int, ...]
  slot: Slot = dataclasses.field(default_factory=Slot)

  name = "prompt"
  shared_prefix_length = 0
  observe, observation_length = None, 0
  state_key = None

  @property
  def reward(self) -> "PromptReward":
    """The reward of the search that runs."""
    return PromptReward(self)

  def grade(self, example_Q: np.ndarray, response_QT: np.ndarray) -> np.ndarray:
    """Rewards of responses, 0 for those that are unfinished."""
    del example_Q  # All rows are of the one prompt.
    texts = (self.read(response_T) for response_T in response_QT)
    grader = self.slot.grader
    rewards = [
      0.0 if text is None or grader is None else grader.grade(text)
      for text in texts
    ]
    return np.array(rewards, np.float32)

  def read(self, response_T: np.ndarray) -> str | None:
    """What a response says, special tokens too; None if it is unfinished."""
    ids, finished = before_end(response_T, self.end_ids)
    return self.tokenizer.decode(ids, skip_special=False) if finished else None

  def describe(
    self,
    prompt_P: np.ndarray,
    response_T: np.ndarray,
    example: int | None = None,
  ) -> str:
    """Returns a response's text."""
    del prompt_P, example
    return self.read(response_T) or "unfinished"


@dataclasses.dataclass(frozen=True)
class PromptReward(RewardBase):
  """A Python function in this process; solved is a reward of 1."""

  task: PromptTask

  def __call__(
    self, params: Any, prompts: Prompts, tokens_BGT: Array, mask_BGT: Array
  ) -> Score:
    """Grades finished responses."""
    del params, mask_BGT
    example_BG = jnp.broadcast_to(
      prompts.example_B[:, None], tokens_BGT.shape[:2]
    )
    reward_BG = callback.graded(self.task.grade, example_BG, tokens_BGT)
    finished_BG = jnp.any(is_end(tokens_BGT, self.task.end_ids), axis=-1)
    return Score(reward_BG, finished_BG & (reward_BG >= 1.0))


# The same task again finds the program that was compiled for it.
_prompt_task = functools.lru_cache(maxsize=32)(PromptTask)


_PADDED = PromptForm(padded=True)


def pad(prompts: Sequence[Sequence[int]], pad_id: int) -> Prompts:
  """Prompts padded on the right to one length, a multiple of `_STEP`."""
  longest = max(map(len, prompts))
  rows = np.full((len(prompts), -(-longest // _STEP) * _STEP), pad_id, np.int32)
  for row, ids in zip(rows, prompts, strict=True):
    row[: len(ids)] = ids
  length_B = jnp.array([len(ids) for ids in prompts], jnp.int32)
  return Prompts(jnp.asarray(rows), length_B, jnp.arange(len(prompts)))


def grow(
  graphdef: Any,
  params: Any,
  tokenizer: Tokenizer,
  prompt: Sequence[int],
  grader: Grader,
  config: SearchConfig,
  *,
  max_tokens: int,
  step_ends: str,
  seed: int,
) -> tuple[Any, int]:
  """Searches one prompt.

  Args:
    graphdef: structure of the model.
    params: its parameters.
    tokenizer: the model's.
    prompt: token ids.
    grader: of finished responses.
    config: how to search.
    max_tokens: T, most tokens of a response.
    step_ends: characters that end a step of several tokens.
    seed: of what is drawn.

  Returns:
    The `mctx.Tree` of a batch of one, on the host; token forwards made, the
    prompt's included.

  Raises:
    UserError: the reward failed, or the tree does not fit.
  """
  _check_outside()
  prompts = pad([prompt], tokenizer.pad_id)
  length = prompts.tokens_BP.shape[1]
  ends = tokens_ending(tokenizer, step_ends) if config.step_tokens > 1 else ()
  task = _prompt_task(tokenizer, length, max_tokens, ends)
  shape = nnx.merge(graphdef, params).config
  memory.check_trees(shape, cast(Task, task), config, trees=1)
  with task.slot.lock:
    task.slot.grader = grader
    try:
      result = jax.device_get(
        _grow(
          graphdef,
          params,
          prompts,
          jax.random.key(seed),
          task=task,
          config=config,
        )
      )
    finally:
      task.slot.grader = None
  grader.check()
  tokens = prefill.prefill_tokens(1, length, _PADDED)
  return result.tree, int(result.forwards) + tokens


@functools.partial(jax.jit, static_argnames=("graphdef", "task", "config"))
def _grow(
  graphdef: Any,
  params: Any,
  prompts: Prompts,
  key: Array,
  *,
  task: PromptTask,
  config: SearchConfig,
) -> search_lib.SearchResult:
  model = nnx.merge(graphdef, params)
  return search_lib.search(model, cast(Task, task), prompts, key, config)


def draw(
  graphdef: Any,
  params: Any,
  tokenizer: Tokenizer,
  prompts: Sequence[Sequence[int]],
  *,
  samples: int,
  max_tokens: int,
  temperature: float,
  seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Samples responses.

  Args:
    graphdef: structure of the model.
    params: its parameters.
    tokenizer: the model's.
    prompts: token ids of each.
    samples: responses of each prompt.
    max_tokens: T, most tokens of a response.
    temperature: of sampling; 0 is greedy.
    seed: of sampling.

  Returns:
    tokens_RT, mask_RT up to and including the end token, log_prob_RT under the
    distribution that was sampled from; rows of a prompt in a row.
  """
  _check_outside()
  return jax.device_get(
    _draw(
      graphdef,
      params,
      pad(prompts, tokenizer.pad_id),
      jax.random.key(seed) if temperature else None,
      jnp.float32(temperature or 1.0),
      samples=samples,
      length=max_tokens,
      end_ids=tokenizer.end_ids,
      pad_id=response_pad(tokenizer),
    )
  )


@functools.partial(
  jax.jit,
  static_argnames=(
    "graphdef",
    "samples",
    "length",
    "end_ids",
    "pad_id",
  ),
)
def _draw(
  graphdef: Any,
  params: Any,
  prompts: Prompts,
  key: Array | None,
  temperature: Array,
  *,
  samples: int,
  length: int,
  end_ids: tuple[int, ...],
  pad_id: int,
) -> tuple[Array, Array, Array]:
  model = nnx.merge(graphdef, params)
  prefix = prefill.prefill(model, prompts, _PADDED)
  sampled = sampling.sample(
    model,
    prefill.repeat_rows(prefix, samples),
    None if key is None else sampling.row_keys(key, len(prompts), samples),
    length=length,
    end_ids=end_ids,
    pad_id=pad_id,
    temperature=temperature,
  )
  return sampled.tokens_RT, sampled.mask_RT, sampled.log_prob_RT
