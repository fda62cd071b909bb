"""Tasks in text: prompts from a file, answers graded by any Python function.

`text_lines.py` says what the file holds.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Collection
from typing import Any

import jax.numpy as jnp
import numpy as np

from tsd_jax.base.errors import UserError
from tsd_jax.models.text_tokenizer import TextTokenizer
from tsd_jax.rewards import callback, pool
from tsd_jax.rewards.pool import PoolConfig
from tsd_jax.rewards.reward import Reward, Score
from tsd_jax.tasks import text_lines
from tsd_jax.tasks.task import (
  Posed,
  TaskConfig,
  check_tokens,
  check_warm_start,
  repeat_prompts,
)

# (prompt, response, example) -> reward in [0, 1]. The prompt is the text that
# the model saw, the response what it wrote after it.
GradeFn = Callable[[str, str, Any], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(TaskConfig):
  """Where the prompts are, who reads them, and who grades the answers.

  Raises:
    ValueError: a field has an impossible value.
  """

  file: str  # Of JSON lines.
  tokenizer: str  # Hugging Face folder or GGUF file: the model's own.
  reward: GradeFn  # A function of a module that can be imported.
  prompt_length: int = 256  # P; shorter prompts are padded.
  response_length: int = 128  # T, the end token included.
  reply: str = ""  # How every reply begins; part of the prompt.
  # Characters: a search by steps ends one after a token that ends with one.
  step_ends: str = "\n"
  correct_at: float = 1.0  # The reward from which on an answer is right.
  grading: PoolConfig = PoolConfig()  # The workers that call it.

  def __post_init__(self):
    """Refuses impossible values."""
    super().__post_init__()
    for field in ("prompt_length", "response_length"):
      self.need(int, field, lambda x: x >= 1, "use an integer from 1 on")
    remedy = "use a number above 0 and up to 1"
    self.need(float, "correct_at", lambda x: 0 < x <= 1, remedy)
    if not callable(self.reward) or not hasattr(self.reward, "__qualname__"):
      raise ValueError(
        f"TextConfig.reward={self.reward!r}: use a function of a module"
      )

  @property
  def reward_name(self) -> str:
    """Full name of the reward function, by which workers import it."""
    return f"{self.reward.__module__}.{self.reward.__qualname__}"

  @property
  def lines(self) -> tuple[text_lines.Line, ...]:
    """The file, read once.

    Raises:
      UserError: naming the file and the line that does not fit.
    """
    return text_lines.read(*self.file_key)

  @property
  def file_key(self):
    """What `text_lines` keeps the file by."""
    return (
      self.file, self.tokenizer, self.reply, self.prompt_length,
      self.response_length,
    )  # fmt: skip

  @property
  def dataset(self) -> str:
    """Names every setting that the records depend on, the file's content too.

    Raises:
      UserError: the file does not fit.
    """
    digest = hashlib.sha256()
    for line in self.lines:
      digest.update(line.prompt_P.tobytes() + line.problem.encode())
      if line.response_T is not None:
        digest.update(line.response_T.tobytes())
    return (
      f"{digest.hexdigest()[:16]}"
      f"_prompt{self.prompt_length}_response{self.response_length}"
      f"_{self.split}"
    )

  def make(self) -> "Text":
    """The task."""
    return Text(self)

  def problems(self) -> list[str]:
    """What the lines ask, in the file's order."""
    return list(dict.fromkeys(line.problem for line in self.lines))

  def pose(self, problem, rng):
    """One of the lines that ask it; an unfinished response if none is given."""
    places = text_lines.by_problem(*self.file_key)[problem]
    example = places[rng.integers(len(places))]
    line = self.lines[example]
    response_T = line.response_T
    if response_T is None:
      response_T = np.full(self.response_length, self.make().pad_id, np.int32)
    return Posed(line.prompt_P, response_T, example)

  def canonical(self, prompt_P) -> str:
    """What a prompt of the file asks.

    Raises:
      UserError: it is not in the file.
    """
    return self.lines[self.place_of(prompt_P)].problem

  def place_of(self, prompt_P: np.ndarray) -> int:
    """The first line with this prompt.

    Raises:
      UserError: there is none.
    """
    key = np.asarray(prompt_P, np.int32).tobytes()
    try:
      return text_lines.by_prompt(*self.file_key)[key]
    except KeyError:
      text = text_lines.load_tokenizer(self.tokenizer).decode(prompt_P)
      raise UserError(f"prompt {text[:60]!r} is not in {self.file}") from None

  def warm_start(
    self,
    rng: np.random.Generator,
    count: int,
    relabel_fraction: float,
    excluded: Collection[str] = (),
  ) -> tuple[np.ndarray, np.ndarray]:
    """Draws lines with their solutions; nothing is relabelled."""
    check_warm_start(count, relabel_fraction)
    solved = [
      line
      for line in self.lines
      if line.response_T is not None and line.problem not in excluded
    ]
    if not solved:
      raise ValueError(
        f"no line of {self.file} that may be shown has a solution: add the "
        "field, or start from a published model"
      )
    chosen = [solved[i] for i in rng.integers(len(solved), size=count)]
    return (
      np.array([line.prompt_P for line in chosen]).reshape(count, -1),
      np.array([line.response_T for line in chosen]).reshape(count, -1),
    )


@dataclasses.dataclass(frozen=True)
class Text:
  """The task of `task.Task`; hashable, so it may be a static argument."""

  config: TextConfig

  name = "text"
  observe, observation_length = None, 0
  state_key = None

  @property
  def tokenizer(self) -> TextTokenizer:
    """The model's own."""
    return text_lines.load_tokenizer(self.config.tokenizer)

  @property
  def vocab_size(self) -> int:
    """V; a model may have more rows."""
    return self.tokenizer.vocab_size

  @property
  def prompt_length(self) -> int:
    """P."""
    return self.config.prompt_length

  @property
  def response_length(self) -> int:
    """T."""
    return self.config.response_length

  @property
  def prompt_pad_id(self) -> int:
    """The tokenizer's padding token."""
    return self.tokenizer.pad_id

  @property
  def shared_prefix_length(self) -> int:
    """The beginning that all lines of the file share."""
    return text_lines.common_head(*self.config.file_key)

  @property
  def eos_id(self) -> int:
    """The end token."""
    return self.tokenizer.eos_id

  @property
  def pad_id(self) -> int:
    """Fills responses: never the end token, which the tokenizer's may be."""
    return text_lines.response_pad(self.tokenizer)

  @property
  def step_end_ids(self) -> tuple[int, ...]:
    """Tokens whose text ends with one of the config's characters."""
    return text_lines.tokens_ending(
      self.config.tokenizer, self.config.step_ends
    )

  @property
  def reward(self) -> "TextReward":
    """The reward function, called on the host."""
    return TextReward(self)

  def grade(self, example_Q: np.ndarray, response_QT: np.ndarray) -> np.ndarray:
    """Rewards of responses; those that say the same are graded once."""
    requests: dict[tuple[int, str], int] = {}
    request_of_row = {}
    for row, (example, response_T) in enumerate(
      zip(example_Q.tolist(), response_QT, strict=True)
    ):
      text = self._text(response_T)
      if text is not None:
        request = requests.setdefault((example, text), len(requests))
        request_of_row[row] = request
    lines = self.config.lines
    graded = self.workers().grade(
      [(lines[i].prompt, text, lines[i].example) for i, text in requests]
    )
    reward_Q = np.zeros(len(response_QT), np.float32)
    for row, request in request_of_row.items():
      reward_Q[row] = graded[request]
    return reward_Q

  def describe(
    self,
    prompt_P: np.ndarray,
    response_T: np.ndarray,
    example: int | None = None,
  ) -> str:
    """Returns a line such as `'2 + 3 =' | '5' | reward 1.000`.

    Args:
      prompt_P: a prompt of the file.
      response_T: a response.
      example: the prompt's line; the first with this text by default.

    Raises:
      UserError: no line has this prompt.
    """
    text = self._text(response_T)
    prompt = self.tokenizer.decode(prompt_P)
    if text is None:
      text = self.tokenizer.decode(response_T)
      return f"{prompt!r} | {text!r} | unfinished"
    if example is None:
      example = self.config.place_of(prompt_P)
    (reward,) = self.grade(np.array([example]), np.array([response_T]))
    return f"{prompt!r} | {text!r} | reward {reward:.3f}"

  def _text(self, response_T: np.ndarray) -> str | None:
    """What a response says, None if it is unfinished."""
    end = np.flatnonzero(np.asarray(response_T) == self.eos_id)
    return self.tokenizer.decode(response_T[: end[0]]) if len(end) else None

  def workers(self) -> pool.Pool:
    """The processes that grade, started at their first use."""
    return pool.shared(self.config.reward_name, self.config.grading)


@dataclasses.dataclass(frozen=True)
class TextReward(Reward):
  """What a text task's reward function says of finished responses."""

  task: Text

  def __call__(self, params, prompts, tokens_BGT, mask_BGT) -> Score:
    """Grades on the host, by the prompts' examples.

    Raises:
      ValueError: a shape or dtype does not fit.
      UserError: the reward function cannot be imported by its workers.
    """
    del params, mask_BGT
    task = self.task
    prompt_BGP = repeat_prompts(prompts.tokens_BP, tokens_BGT)
    check_tokens(task, prompt_BGP, tokens_BGT)
    task.workers()  # Whatever is wrong with them shows before compilation.
    example_BG = jnp.broadcast_to(
      prompts.example_B[:, None], tokens_BGT.shape[:2]
    )
    reward_BG = callback.graded(task.grade, example_BG, tokens_BGT)
    finished_BG = jnp.any(tokens_BGT == task.eos_id, axis=-1)
    right_BG = finished_BG & (reward_BG >= task.config.correct_at)
    return Score(reward_BG, right_BG)
