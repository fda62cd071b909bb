"""A language model with its tokenizer, and prompts as it reads them."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeGuard, cast

from tsd_jax.base.errors import UserError
from tsd_jax.models import (
  families,
  hf,
  pretrained,
  text_tokenizer,
  transformer,
)
from tsd_jax.models.text_tokenizer import TextTokenizer
from tsd_jax.models.tokenizer import Tokenizer
from tsd_jax.models.transformer import ModelConfig
from tsd_jax.search.config import SearchConfig

# What a model is asked: a text, or the messages of a chat, each
# `{"role": "user", "content": "..."}`.
Prompt = str | Sequence[Mapping[str, str]]

MAX_TOKENS = 32  # Of a response, by default.


class Question(NamedTuple):
  """A prompt as the model reads it."""

  text: str
  ids: list[int]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model:
  """A language model: parameters, their structure, and the tokenizer.

  Attributes:
    name: where it comes from.
    config: its shape.
    graphdef: the structure, as `flax.nnx.split` gives it.
    params: the parameters; `flax.nnx.merge(graphdef, params)` is the module.
    tokenizer: text to token ids and back.
    max_positions: tokens of a prompt and its response together that it was
      trained on; None where it does not say.
    value_trained: whether its V_search was trained, so that a search may value
      leaves by it.
  """

  name: str
  config: ModelConfig
  graphdef: Any
  params: Any
  tokenizer: Tokenizer
  max_positions: int | None = None
  value_trained: bool = False

  def __repr__(self) -> str:
    c = self.config
    count = transformer.count_parameters(c) / 1e6
    size = f"{count:.3g}" if count < 100 else f"{count:,.0f}"
    positions = self.max_positions
    return (
      f"Model({self.name}: {families.family(c)}, {size} M parameters, "
      f"{c.num_layers} layers of {c.d_model}, {c.vocab_size:,} tokens"
      f"{f', {positions:,} positions' if positions else ''})"
    )

  def check_value(self, search: SearchConfig) -> None:
    """Refuses a search that values leaves by what was never trained.

    Args:
      search: how to search.

    Raises:
      UserError: it reads V_search, which is as it was initialised.
    """
    if search.needs_value and not self.value_trained:
      raise UserError(
        f"leaf={search.leaf} values leaves by V_search, which {self.name} "
        "never trained: use leaf=rollout or none"
      )

  @property
  def chats(self) -> bool:
    """Whether it has a chat template."""
    tokenizer = self.tokenizer
    return (
      isinstance(tokenizer, TextTokenizer)
      and tokenizer.chat_template is not None
    )

  def read(
    self, prompt: Prompt, *, reply: str = "", raw: bool = False
  ) -> Question:
    """A prompt's text and tokens.

    Args:
      prompt: a text, or the messages of a chat. A text is what a user says
        where the model has a chat template, and else what it continues.
      reply: how the response begins; the model continues it.
      raw: continue the text, whether or not there is a chat template.

    Raises:
      UserError: it is empty, or not what this model can read.
    """
    chat = self._messages(prompt, raw)
    tokenizer = self.tokenizer
    if chat is None:
      text = f"{prompt}{tokenizer.joiner if reply else ''}{reply}"
      ids = _encode(tokenizer, text)
    elif isinstance(tokenizer, TextTokenizer):
      text = tokenizer.render(chat, reply=reply)
      ids = tokenizer.encode(text)
    else:
      raise UserError(f"{self.name} has no chat template: use a text")
    shown = repr(text if len(text) <= 60 else f"{text[:40]}…{text[-20:]}")
    if not ids:
      raise UserError(f"the prompt {shown} has no tokens")
    if ids[-1] == tokenizer.pad_id:
      raise UserError(f"the prompt {shown} ends with the padding token")
    return Question(text, ids)

  def _messages(
    self, prompt: Prompt, raw: bool
  ) -> Sequence[Mapping[str, str]] | None:
    """The chat that a prompt is; None where it is a text to continue."""
    if isinstance(prompt, str):
      if not prompt.strip():
        raise UserError("the prompt is empty")
      if raw or not self.chats:
        return None
      return [{"role": "user", "content": prompt}]
    if not is_chat(prompt):  # Types are not checked when this runs.
      raise UserError(
        f"the prompt is {prompt!r:.80}: use a text, or messages such as "
        '[{"role": "user", "content": "..."}]'
      )
    if raw:
      raise UserError("raw=True is for a text: a chat needs its template")
    return prompt

  def room(self, prompt: Question, max_tokens: int | None) -> int:
    """How many tokens a response may have.

    Args:
      prompt: which it answers.
      max_tokens: the most that are asked for; None is `MAX_TOKENS`, or what the
        model's positions leave.

    Raises:
      UserError: they do not fit.
    """
    if max_tokens is not None and max_tokens < 1:
      raise UserError(f"{max_tokens=} must be at least 1")
    wanted, limit = max_tokens or MAX_TOKENS, self.max_positions
    if limit is None:
      return wanted
    length = len(prompt.ids)
    needed = length + (max_tokens or 1)
    if needed > limit:
      most = f" and max_tokens={max_tokens}" if max_tokens else ""
      raise UserError(
        f"a prompt of {length} tokens{most} exceed the {limit} positions of "
        f"{self.name}: shorten the prompt or the response"
      )
    return min(wanted, limit - length)


def is_chat(prompt: Any) -> TypeGuard[Sequence[Mapping[str, str]]]:
  """Whether a prompt is the messages of one chat."""
  if not isinstance(prompt, Sequence):
    return False
  messages = cast(Sequence[Any], prompt)
  return bool(messages) and all(isinstance(m, Mapping) for m in messages)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
  """Token ids of a text that is continued as it is.

  Raises:
    UserError: it holds what this tokenizer does not know.
  """
  if isinstance(tokenizer, TextTokenizer):
    return tokenizer.encode(text, add_special=True)
  try:
    return tokenizer.encode(text)
  except ValueError as error:
    raise UserError(f"the prompt: {error}") from None


def load_model(
  path: str | pathlib.Path,
  *,
  compute_dtype: Literal["float32", "bfloat16"] = "float32",
) -> Model:
  """Reads a published or exported model.

  Args:
    path: a Hugging Face folder, or a GGUF file.
    compute_dtype: of matrix multiplications; parameters are float32.

  Returns:
    The model with its tokenizer.

  Raises:
    UserError: naming what is missing, damaged or not supported.
  """
  path = pathlib.Path(path).expanduser()
  if (path / "metrics.jsonl").exists():
    raise UserError(f"{path} is a run: read it with load_run")
  card = pretrained.read_card(path)
  tokenizer = text_tokenizer.load(path)
  if tokenizer.vocab_size > card.config.vocab_size:
    raise UserError(
      f"the tokenizer of {path} has {tokenizer.vocab_size} tokens, its model "
      f"{card.config.vocab_size}"
    )
  config, graphdef, params = pretrained.load(
    path, config=dataclasses.replace(card.config, compute_dtype=compute_dtype)
  )
  return Model(
    path.name,
    config,
    graphdef,
    params,
    tokenizer,
    card.max_length,
    path.is_dir() and hf.value_trained(path),
  )
