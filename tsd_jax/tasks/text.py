"""Tasks in text: prompts from a file, answers graded by any Python function.

Another function, a tool, may write into the answers. `text_lines.py` says what
the file holds.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Collection
from typing import Any

import jax.numpy as jnp
import numpy as np

from tsd_jax.base import names
from tsd_jax.base.errors import UserError
from tsd_jax.base.types import Array, Prompts
from tsd_jax.models.text_tokenizer import TextTokenizer
from tsd_jax.models.tokenizer import before_end, is_end, tokens_ending
from tsd_jax.rewards import callback, pool, worker
from tsd_jax.rewards.pool import PoolConfig
from tsd_jax.rewards.reward import Reward, Score
from tsd_jax.tasks import text_lines
from tsd_jax.tasks.task import (
  ObserveFn,
  Posed,
  TaskConfig,
  TokenizerIds,
  check_tokens,
  check_warm_start,
  repeat_prompts,
)
from tsd_jax.tasks.text_tool import Tool

# (prompt, response, example) -> reward. The prompt is the text that the model
# saw, the response what it wrote after it, special tokens spelled out, up to
# the end token.
GradeFn = Callable[[str, str, Any], float]

# (prompt, response so far, example) -> what the tool writes next, None for
# nothing. The same texts must always get the same answer: it is asked again.
ToolFn = Callable[[str, str, Any], str | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(TaskConfig):
  """Where the prompts are, who reads them, and who grades the answers.

  A tool's answer of more than `tool_tokens` tokens is not written, for half an
  answer says something else. Neither is one that holds a special token. Both
  are counted, and leave the next token to the model.

  Raises:
    ValueError: a field has an impossible value.
  """

  file: str  # Of JSON lines (.jsonl, .jsonl.gz), or a table (.parquet, folder).
  tokenizer: str  # Hugging Face folder or GGUF file: the model's own.
  reward: GradeFn  # A function of a module that can be imported.
  prompt_length: int = 256  # P; shorter prompts are padded.
  response_length: int = 128  # T, the end token included.
  reply: str = ""  # How every reply begins; part of the prompt.
  # Characters: a search by steps ends one after a token that ends with one.
  step_ends: str = "\n"
  low: float = 0.0  # The least reward, also of what is not finished.
  high: float = 1.0  # The greatest reward.
  correct_at: float = 1.0  # The reward from which on an answer is right.
  grading: PoolConfig = PoolConfig()  # Workers of the reward, and of the tool.
  # Writes into responses; a function of a module that can be imported.
  tool: ToolFn | None = None
  # Characters: the tool is asked after a token that ends with one of them.
  tool_ends: str = ""
  tool_tokens: int = 16  # O, the most tokens of its answer.
  # FIELD=COLUMN, with commas: what the file calls prompt, messages, ...
  columns: str = ""
  rows: int = 0  # The first so many lines are read; 0: all.
  # Leave out prompts and solutions that are too long, instead of refusing them.
  skip_long: bool = False
  split_by: str = "family"  # As lines name it; by problems where none does.

  SPLITS_BY = ("family", "problem")

  def __post_init__(self):
    """Refuses impossible values."""
    super().__post_init__()
    self.need(
      int, "prompt_length", lambda x: x >= 1, "use an integer from 1 on"
    )
    self.need(
      int,
      "response_length",
      lambda x: x >= 2,
      "use an integer from 2 on, for a token and the end",
    )
    self.need(int, "rows", lambda x: x >= 0, "use an integer from 0 on")
    self._check_range()
    try:
      text_lines.parse_columns(self.columns)
    except ValueError as error:
      raise ValueError(f"TextConfig.{error}") from None
    for field in ("reward", "tool"):
      value = getattr(self, field)
      given = callable(value) and hasattr(value, "__qualname__")
      if not given and not (field == "tool" and value is None):
        raise ValueError(
          f"TextConfig.{field}={value!r}: use a function of a module"
        )
    if (self.tool is None) != (self.tool_ends == ""):
      raise ValueError(
        f"TextConfig.tool_ends={self.tool_ends!r}: name the characters after "
        "which the tool is asked, and none without a tool"
      )
    self.need(
      int,
      "tool_tokens",
      lambda x: 1 <= x < self.response_length or self.tool is None,
      f"use an integer in 1..{self.response_length - 1}",
    )

  def _check_range(self) -> None:
    """Refuses rewards that are no range; compared as float32, as they are."""
    f32, largest = np.float32, float(np.finfo(np.float32).max)
    for field in ("low", "high"):
      self.need(float, field, lambda x: abs(x) <= largest, "use a float32")
    if not f32(self.low) < f32(self.high):
      raise ValueError(
        f"TextConfig.low={self.low} must be less than high={self.high}"
      )
    self.need(
      float,
      "correct_at",
      lambda x: f32(self.low) < f32(x) <= f32(self.high),
      f"use a number above low={self.low} and up to high={self.high}",
    )

  @property
  def reward_name(self) -> str:
    """Full name of the reward function, by which workers import it."""
    return names.full_name(self.reward)

  @property
  def lines(self) -> tuple[text_lines.Line, ...]:
    """The file, read once.

    Raises:
      UserError: naming the file and the line that does not fit.
    """
    return text_lines.read(self.source)

  @property
  def source(self) -> text_lines.Source:
    """What `text_lines` reads."""
    return text_lines.Source(
      self.file, self.tokenizer, self.reply, self.prompt_length,
      self.response_length, text_lines.parse_columns(self.columns), self.rows,
      self.skip_long,
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
      if line.family != line.problem:
        digest.update(b"\0" + line.family.encode())
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
    places = text_lines.by_problem(self.source)[str(problem)]
    example = places[rng.integers(len(places))]
    line = self.lines[example]
    response_T = line.response_T
    if response_T is None:
      response_T = np.full(self.response_length, self.make().pad_id, np.int32)
    return Posed(line.prompt_P, response_T, example)

  def group(self, problem):
    """The family that its lines name, or itself."""
    if self.split_by == "problem":
      return problem
    return text_lines.families(self.source)[str(problem)]

  def example(self, index: int) -> Any:
    """A line's object: answers and all else that the reward function gets."""
    return self.lines[index].example

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
      return text_lines.by_prompt(self.source)[key]
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
      if line.response_T is not None
      and self.group(line.problem) not in excluded
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
class Text(TokenizerIds):
  """The task of `task.Task`; hashable, so it may be a static argument."""

  config: TextConfig

  name = "text"
  state_key = None

  @property
  def tokenizer(self) -> TextTokenizer:
    """The model's own."""
    return text_lines.load_tokenizer(self.config.tokenizer)

  @property
  def prompt_length(self) -> int:
    """P."""
    return self.config.prompt_length

  @property
  def response_length(self) -> int:
    """T."""
    return self.config.response_length

  @property
  def shared_prefix_length(self) -> int:
    """The beginning that all lines of the file share."""
    return text_lines.common_head(self.config.source)

  @property
  def step_end_ids(self) -> tuple[int, ...]:
    """Tokens whose text ends with one of the config's characters."""
    return tokens_ending(self.tokenizer, self.config.step_ends)

  @property
  def observation_length(self) -> int:
    """O."""
    return 0 if self.config.tool is None else self.config.tool_tokens

  @property
  def observe(self) -> ObserveFn | None:
    """Asks the tool, on the host."""
    return None if self.config.tool is None else self._observe

  def _observe(
    self, prompts: Prompts, response_BT: Array, length_B: Array
  ) -> tuple[Array, Array]:
    """What the tool writes next; see `task.Task.observe`.

    Raises:
      UserError: no token ends as the config says, or the tool cannot be
        imported by its workers.
    """
    shared_tool(self.config)  # What is wrong with it shows before compiling.
    asks_V = np.zeros(self.vocab_size, bool)
    asks_V[list(self._tool_ends)] = True
    last_B1 = jnp.maximum(length_B - 1, 0)[:, None]
    last_B = jnp.take_along_axis(response_BT, last_B1, axis=1)[:, 0]
    # A model may have more tokens than the tokenizer; no text ends with them.
    asks_B = jnp.asarray(asks_V).at[last_B].get(mode="fill", fill_value=False)
    return callback.observed(
      self.answer,
      prompts.example_B,
      response_BT,
      jnp.where(asks_B, length_B, 0),
      self.observation_length,
    )

  @property
  def _tool_ends(self) -> tuple[int, ...]:
    """Tokens after which the tool is asked."""
    config = self.config
    ids = tokens_ending(self.tokenizer, config.tool_ends)
    if not ids:
      raise UserError(
        f"no token of {config.tokenizer} ends with any of "
        f"tool_ends={config.tool_ends!r}: the tool would never be asked"
      )
    return ids

  def answer(
    self, example_Q: np.ndarray, response_QT: np.ndarray, length_Q: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """What the tool writes after some responses so far, on the host.

    Args:
      example_Q: the problems' places.
      response_QT: tokens.
      length_Q: how many of them there are.

    Returns:
      Tokens QO, and how many of them are written, Q.
    """
    decode = functools.partial(self.tokenizer.decode, skip_special=False)
    said = shared_tool(self.config).answers(
      [
        (example, decode(response_T[:length]))
        for example, response_T, length in zip(
          example_Q.tolist(), response_QT, length_Q.tolist(), strict=True
        )
      ]
    )
    token_QO = np.zeros((len(said), self.observation_length), np.int32)
    for row, ids in enumerate(said):
      token_QO[row, : len(ids)] = ids
    return token_QO, np.array([len(ids) for ids in said], np.int32)

  @property
  def reward(self) -> "TextReward":
    """The reward function, called on the host."""
    return TextReward(self)

  def grade(self, example_Q: np.ndarray, response_QT: np.ndarray) -> np.ndarray:
    """Rewards of responses; those that say the same are graded once."""
    lines, texts = self.config.lines, map(self._text, response_QT)

    def request(key: tuple[int, str]) -> pool.Request:
      line, text = lines[key[0]], key[1]
      return line.prompt, text, line.example

    return pool.grade_distinct(
      self.workers(),
      [
        None if text is None else (example, text)
        for example, text in zip(example_Q.tolist(), texts, strict=True)
      ],
      request,
      otherwise=self.config.low,
    )

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
    """What a response says, special tokens too; None if it is unfinished."""
    ids, finished = before_end(response_T, self.end_ids)
    return self.tokenizer.decode(ids, skip_special=False) if finished else None

  def workers(self) -> pool.Pool:
    """The processes that grade, started at their first use."""
    config = self.config
    returns = worker.Number(config.low, config.high)
    return pool.shared(config.reward_name, config.grading, returns)


@functools.lru_cache(maxsize=4)
def shared_tool(config: TextConfig) -> Tool:
  """The process-wide tool of a task, started at its first use."""
  assert config.tool is not None
  workers = pool.shared(
    names.full_name(config.tool), config.grading, worker.Text()
  )
  tokenizer = text_lines.load_tokenizer(config.tokenizer)
  return Tool(workers, tokenizer, config.lines, config.tool_tokens)


@dataclasses.dataclass(frozen=True)
class TextReward(Reward):
  """What a text task's reward function says of finished responses."""

  task: Text

  @property
  def low(self) -> float:
    """The config's."""
    return self.task.config.low

  @property
  def high(self) -> float:
    """The config's."""
    return self.task.config.high

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
    reward_BG = callback.graded(
      task.grade, example_BG, tokens_BGT, self.low, self.high
    )
    finished_BG = jnp.any(is_end(tokens_BGT, task.end_ids), axis=-1)
    right_BG = finished_BG & (reward_BG >= task.config.correct_at)
    return Score(reward_BG, right_BG)
