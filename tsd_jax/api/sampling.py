"""Responses that a model samples."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast

from tsd_jax.api import programs
from tsd_jax.api.model import Model, Prompt, is_chat
from tsd_jax.base.errors import UserError
from tsd_jax.base.temperature import ALLOWED, is_allowed
from tsd_jax.models.tokenizer import before_end
from tsd_jax.search.view import visible


@dataclasses.dataclass(frozen=True)
class Sample:
  """A sampled response; prints as one line.

  Attributes:
    text: without the end token.
    log_prob: of the response under the distribution sampled from, nats.
    finished: whether it reached its end token.
    prompt: the text that the model read.
  """

  text: str
  log_prob: float
  finished: bool
  prompt: str

  def __str__(self) -> str:
    return visible(self.text) + ("" if self.finished else "…")


def sample(
  model: Model,
  prompts: Prompt | Sequence[Prompt],
  *,
  num_samples: int = 1,
  max_tokens: int | None = None,
  temperature: float = 1.0,
  reply: str = "",
  raw: bool = False,
  seed: int = 0,
) -> list[Sample]:
  """Samples responses, all in one batch.

  Args:
    model: which answers.
    prompts: one, or several: texts, or the messages of a chat each. A text is
      what a user says where the model has a chat template, and else what it
      continues.
    num_samples: responses of each prompt.
    max_tokens: most tokens of a response, the end token included; 32 by
      default, or what the model's positions leave.
    temperature: divides the logits; 0 takes the likeliest token each time.
    reply: how responses begin; part of the prompt.
    raw: continue texts even if the model has a chat template.
    seed: of sampling.

  Returns:
    The responses, those of a prompt in a row.

  Raises:
    UserError: an argument does not fit.
  """
  if isinstance(prompts, Mapping):
    raise UserError(
      "one message is no chat: give [{'role': ..., 'content': ...}]"
    )
  one = isinstance(prompts, str) or is_chat(prompts)
  each = cast(Sequence[Prompt], [prompts] if one else prompts)
  asked = [model.read(prompt, reply=reply, raw=raw) for prompt in each]
  if not asked:
    raise UserError("there are no prompts")
  if num_samples < 1:
    raise UserError(f"{num_samples=} must be at least 1")
  if temperature and not is_allowed(temperature):
    raise UserError(f"{temperature=} must be 0 (greedy), or {ALLOWED}")
  tokens_RT, mask_RT, log_prob_RT = programs.draw(
    model.graphdef,
    model.params,
    model.tokenizer,
    [question.ids for question in asked],
    samples=num_samples,
    max_tokens=min(model.room(question, max_tokens) for question in asked),
    temperature=temperature,
    seed=seed,
  )
  samples: list[Sample] = []
  for row, (tokens, mask) in enumerate(zip(tokens_RT, mask_RT, strict=True)):
    ids, finished = before_end(tokens[mask], model.tokenizer.end_ids)
    text = model.tokenizer.decode(ids)
    prompt = asked[row // num_samples].text
    log_prob = float(log_prob_RT[row].sum())
    samples.append(Sample(text, log_prob, finished, prompt))
  return samples
