"""Problems in text, a JSON object a line.

  {"prompt": "2 + 3 =", "answer": 5}                      continued as it is
  {"messages": [{"role": "user", "content": "2 + 3?"}]}   a chat

All of it is the example that the reward function gets; fields that the task
reads are all optional but for one of these two:

  reply     how the reply begins, instead of the config's
  problem   names what is asked; lines that share it are one problem in several
            forms, and land in one split. By default the prompt's text, upper
            and lower case and white space aside
  family    names problems of which one helps with another, such as sums of the
            same numbers; they land in one split as well
  solution  a right response, for warm starts
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tsd_jax.base import outside_files
from tsd_jax.base.errors import UserError
from tsd_jax.models import text_tokenizer
from tsd_jax.models.text_tokenizer import TextTokenizer
from tsd_jax.models.tokenizer import before_end, response_pad


class Line(NamedTuple):
  """A line of the file."""

  prompt: str
  prompt_P: np.ndarray
  response_T: np.ndarray | None  # The solution, if there is one.
  problem: str
  family: str  # The problem where none is named.
  example: Mapping[str, Any]


load_tokenizer = functools.lru_cache(maxsize=4)(text_tokenizer.load)


@functools.lru_cache(maxsize=4)
def read(
  file: str, tokenizer: str, reply: str, prompt_length: int, length: int
) -> tuple[Line, ...]:
  """Reads a file once; lines that repeat another one count once.

  Args:
    file: its path.
    tokenizer: path of the model's tokenizer.
    reply: how replies begin where a line says nothing else.
    prompt_length: P.
    length: T, of solutions.

  Raises:
    UserError: naming the file and the line that does not fit.
  """
  try:
    written_lines = outside_files.read_lines(pathlib.Path(file).expanduser())
  except outside_files.MissingFile as error:
    raise UserError(f"no problems in {file}: {error}") from None
  model_tokenizer, lines, seen = load_tokenizer(tokenizer), [], set()
  for number, written in enumerate(written_lines, 1):
    if not written.strip():
      continue
    try:
      line = _line(written, model_tokenizer, reply, prompt_length, length)
    except UserError as error:
      raise UserError(f"{file}, line {number}: {error}") from error
    # Two problems may share their text: graders find them by their place.
    key = line.prompt_P.tobytes(), json.dumps(line.example, sort_keys=True)
    if key not in seen:
      seen.add(key)
      lines.append(line)
  if not lines:
    raise UserError(f"{file} holds no problems")
  return tuple(lines)


def _line(
  written: str,
  tokenizer: TextTokenizer,
  reply: str,
  prompt_length: int,
  length: int,
) -> Line:
  example = outside_files.parse_json(written, "its JSON")
  if not isinstance(example, dict) or (
    ("prompt" in example) == ("messages" in example)
  ):
    raise UserError('it must be an object with "prompt" or "messages"')
  fields = {"prompt": "", "problem": "", "family": "", "solution": ""}
  fields["reply"] = reply
  for name, default in fields.items():
    fields[name] = example.get(name, default)
    if not isinstance(fields[name], str):
      raise UserError(f'"{name}" is {fields[name]!r}, no text')
  if "messages" in example:
    if not isinstance(example["messages"], list):
      raise UserError('"messages" is no list')
    prompt = tokenizer.render(example["messages"], reply=fields["reply"])
    ids = tokenizer.encode(prompt)
  else:
    prompt = fields["prompt"] + fields["reply"]
    ids = tokenizer.encode(prompt, add_special=True)
  (prompt_P,) = tokenizer.pad([ids], prompt_length)
  response_T = None
  if "solution" in example:
    solution = [*tokenizer.encode(fields["solution"]), tokenizer.eos_id]
    before, _ = before_end(solution, tokenizer.end_ids)
    if len(before) < len(solution) - 1:
      end = tokenizer.decode([solution[len(before)]], skip_special=False)
      raise UserError(
        f"the solution holds the end token {end!r}, after which nothing is "
        "read: leave it out, one is added"
      )
    if len(solution) > length:
      raise UserError(
        f"the solution has {len(solution)} tokens, its end included, more than "
        f"the response length {length}"
      )
    response_T = np.full(length, response_pad(tokenizer), np.int32)
    response_T[: len(solution)] = solution
  problem = fields["problem"] or " ".join(prompt.casefold().split())
  family = fields["family"] or problem
  return Line(prompt, prompt_P, response_T, problem, family, example)


@functools.lru_cache(maxsize=4)
def common_head(*key) -> int:
  """How many leading tokens all prompts share; arguments as for `read`.

  Every prompt keeps a token of its own, so that none is all head.
  """
  prompt_QP = np.array([line.prompt_P for line in read(*key)])
  _, tokenizer, *_ = key
  real_QP = prompt_QP != load_tokenizer(tokenizer).pad_id
  shortest = prompt_QP.shape[1] - np.argmax(real_QP[:, ::-1], axis=1).max()
  same_P = np.all(prompt_QP == prompt_QP[:1], axis=0)
  return int(min(np.cumprod(same_P).sum(), shortest - 1))


@functools.lru_cache(maxsize=4)
def by_prompt(*key) -> dict[bytes, int]:
  """First lines by the bytes of their prompt_P; arguments as for `read`."""
  lines = enumerate(read(*key))
  return {line.prompt_P.tobytes(): i for i, line in reversed([*lines])}


@functools.lru_cache(maxsize=4)
def by_problem(*key) -> dict[str, list[int]]:
  """Places of lines by what they ask; arguments as for `read`."""
  places: dict[str, list[int]] = {}
  for i, line in enumerate(read(*key)):
    places.setdefault(line.problem, []).append(i)
  return places
