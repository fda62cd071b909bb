"""Problems in text: JSON lines, or the rows of a table.

  {"prompt": "2 + 3 =", "answer": 5}                      continued as it is
  {"messages": [{"role": "user", "content": "2 + 3?"}]}   a chat

A file may be .jsonl, .jsonl.gz, or a table (`base/tabular.py`), whose columns
are the fields; an empty cell is a field that is not there. All of a line is the
example that the reward function gets; fields that the task reads are all
optional but for one of these two:

  reply     how the reply begins, instead of the config's
  problem   names what is asked; lines that share it are one problem in several
            forms, and land in one split. By default the prompt's text, upper
            and lower case and white space aside
  family    names problems of which one helps with another, such as sums of the
            same numbers; they land in one split as well, and so do families
            that have a problem in common
  solution  a right response, for warm starts. By default the last message of a
            chat, where that is the assistant's
"""

import functools
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from tsd_jax.base import outside_files, tabular
from tsd_jax.base.errors import UserError
from tsd_jax.models import text_tokenizer
from tsd_jax.models.text_tokenizer import TextTokenizer
from tsd_jax.models.tokenizer import before_end, response_pad

# Names of a message's parts, and of who speaks, in older sets of chats.
_PARTS = {"from": "role", "value": "content"}
_ROLES = {"human": "user", "gpt": "assistant"}


class Source(NamedTuple):
  """What is read, and how; what has been read is kept by it."""

  file: str
  tokenizer: str  # Path of the model's own.
  reply: str  # How replies begin where a line says nothing else.
  prompt_length: int  # P.
  response_length: int  # T, of solutions.
  columns: tuple[tuple[str, str], ...] = ()  # Our field, the file's.
  rows: int = 0  # The first so many lines are read; 0: all.
  skip_long: bool = False  # Leave out what does not fit instead of refusing it.


class Line(NamedTuple):
  """A line of the file."""

  prompt: str
  prompt_P: np.ndarray
  response_T: np.ndarray | None  # The solution, if there is one.
  problem: str
  family: str  # The problem where none is named.
  example: Mapping[str, Any]


load_tokenizer = functools.lru_cache(maxsize=4)(text_tokenizer.load)


def parse_columns(text: str) -> tuple[tuple[str, str], ...]:
  """Reads `prompt=question,solution=response`: our field, the file's.

  Raises:
    ValueError: it is not of this form.
  """
  pairs = [pair.partition("=") for pair in text.split(",") if text]
  names = [ours for ours, _, _ in pairs]
  if not all(ours and theirs for ours, _, theirs in pairs) or (
    len({*names}) < len(names) or {"prompt", "messages"} <= {*names}
  ):
    raise ValueError(
      f"columns={text!r}: use FIELD=COLUMN, several with commas, each field "
      "once, and one of prompt and messages"
    )
  return tuple((ours, theirs) for ours, _, theirs in pairs)


@functools.lru_cache(maxsize=4)
def read(source: Source) -> tuple[Line, ...]:
  """Reads a file once; lines that repeat another one count once.

  Raises:
    UserError: naming the file and the line that does not fit.
  """
  tokenizer = load_tokenizer(source.tokenizer)
  lines, seen, size, left_out = [], set(), 0, 0
  found = _examples(source)
  for where, example in itertools.islice(found, source.rows or None):
    try:
      line = _line(example, tokenizer, source)
    except UserError as error:
      raise UserError(f"{where}: {error}") from error
    if line is None:
      left_out += 1
      continue
    # Two problems may share their text: graders find them by their place.
    written = json.dumps(line.example, sort_keys=True)
    size += len(written)
    if size > outside_files.LINES_BYTES:
      raise UserError(
        f"{source.file} holds more than {outside_files.LINES_BYTES:,} bytes of "
        f"text: task.rows={max(1, len(lines))} reads its first rows alone"
      )
    key = line.prompt_P.tobytes(), written
    if key not in seen:
      seen.add(key)
      lines.append(line)
  if left_out:
    logging.info(
      "%s: %d of %d prompts have more than %d tokens and are left out",
      source.file, left_out, left_out + len(lines), source.prompt_length,
    )  # fmt: skip
  if not lines:
    raise UserError(f"{source.file} holds no problems")
  return tuple(lines)


def _examples(source: Source) -> Iterator[tuple[str, Any]]:
  """Objects of a file, and what an error calls their places."""
  if tabular.is_table(source.file):
    for where, values in tabular.rows(source.file):
      try:
        yield where, tabular.present(_renamed(values, source.columns))
      except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return
  file = pathlib.Path(source.file).expanduser()
  try:
    written_lines = outside_files.read_lines(file)
  except outside_files.MissingFile as error:
    raise UserError(f"no problems in {source.file}: {error}") from None
  for number, written in enumerate(written_lines, 1):
    if written.strip():
      where = f"{source.file}, line {number}"
      try:
        example = outside_files.parse_json(written, "its JSON")
        yield where, _renamed(example, source.columns)
      except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _renamed(example: Any, columns: tuple[tuple[str, str], ...]) -> Any:
  """An example with the fields that `columns` adds under our names.

  Raises:
    UserError: it lacks one.
  """
  if not columns or not isinstance(example, dict):
    return example
  for _, theirs in columns:
    if theirs not in example:
      raise UserError(
        f"there is no {theirs!r} (task.columns), only "
        f"{', '.join(map(repr, [*example][:12]))}"
      )
  said = dict(example)
  # A named form of the prompt takes the place of the other one.
  ours = {field for field, _ in columns}
  for one, other in (("prompt", "messages"), ("messages", "prompt")):
    if one in ours:
      said.pop(other, None)
  return said | {field: example[theirs] for field, theirs in columns}


def _line(
  example: Any, tokenizer: TextTokenizer, source: Source
) -> Line | None:
  """A line; None where its prompt is too long, and that is no error."""
  if not isinstance(example, dict) or (
    ("prompt" in example) == ("messages" in example)
  ):
    raise UserError(
      'it must be an object with "prompt" or "messages" (task.columns names '
      "the fields that are meant)"
    )
  fields = {"prompt": "", "problem": "", "family": "", "solution": ""}
  fields["reply"] = source.reply
  for name, default in fields.items():
    fields[name] = example.get(name, default)
    if not isinstance(fields[name], str):
      raise UserError(f'"{name}" is {fields[name]!r:.60}, no text')
  solution = fields["solution"] if "solution" in example else None
  if "messages" in example:
    messages, last = _conversation(example["messages"])
    solution = last if solution is None else solution
    prompt = tokenizer.render(messages, reply=fields["reply"])
    ids = tokenizer.encode(prompt)
  else:
    prompt = fields["prompt"] + fields["reply"]
    ids = tokenizer.encode(prompt, add_special=True)
  if source.skip_long and len(ids) > source.prompt_length:
    return None
  (prompt_P,) = tokenizer.pad([ids], source.prompt_length)
  response_T = (
    None if solution is None else _response(solution, tokenizer, source)
  )
  problem = fields["problem"] or " ".join(prompt.casefold().split())
  family = fields["family"] or problem
  return Line(prompt, prompt_P, response_T, problem, family, example)


def _conversation(said: Any) -> tuple[list[dict[str, Any]], str | None]:
  """The messages before the assistant's last, and that one's text.

  Raises:
    UserError: it is no list of messages, or has none before that one.
  """
  if not isinstance(said, list) or not all(isinstance(m, dict) for m in said):
    raise UserError('"messages" is no list of messages')
  messages = []
  for message in said:
    turn = {_PARTS.get(k, k): v for k, v in tabular.present(message).items()}
    if "from" in message:
      turn["role"] = _ROLES.get(str(turn["role"]), turn["role"])
    messages.append(turn)
  last = None
  if messages and messages[-1].get("role") == "assistant":
    last = messages.pop().get("content")
  if not messages:
    raise UserError('"messages" has none that a reply could answer')
  return messages, last if isinstance(last, str) else None


def _response(
  text: str, tokenizer: TextTokenizer, source: Source
) -> np.ndarray | None:
  """A solution's tokens_T; None where it is too long, and that is no error.

  Raises:
    UserError: it holds an end token, or is too long.
  """
  solution = [*tokenizer.encode(text), tokenizer.eos_id]
  before, _ = before_end(solution, tokenizer.end_ids)
  if len(before) < len(solution) - 1:
    end = tokenizer.decode([solution[len(before)]], skip_special=False)
    raise UserError(
      f"the solution holds the end token {end!r}, after which nothing is "
      "read: leave it out, one is added"
    )
  length = source.response_length
  if len(solution) > length:
    if source.skip_long:
      return None
    raise UserError(
      f"the solution has {len(solution)} tokens, its end included, more than "
      f"the response length {length}: raise task.response_length, or leave "
      "such solutions out with task.skip_long=true"
    )
  response_T = np.full(length, response_pad(tokenizer), np.int32)
  response_T[: len(solution)] = solution
  return response_T


@functools.lru_cache(maxsize=4)
def common_head(source: Source) -> int:
  """How many leading tokens all prompts share.

  Every prompt keeps a token of its own, so that none is all head.
  """
  prompt_QP = np.array([line.prompt_P for line in read(source)])
  real_QP = prompt_QP != load_tokenizer(source.tokenizer).pad_id
  shortest = prompt_QP.shape[1] - np.argmax(real_QP[:, ::-1], axis=1).max()
  same_P = np.all(prompt_QP == prompt_QP[:1], axis=0)
  return int(min(np.cumprod(same_P).sum(), shortest - 1))


@functools.lru_cache(maxsize=4)
def by_prompt(source: Source) -> dict[bytes, int]:
  """First lines by the bytes of their prompt_P."""
  lines = enumerate(read(source))
  return {line.prompt_P.tobytes(): i for i, line in reversed([*lines])}


@functools.lru_cache(maxsize=4)
def by_problem(source: Source) -> dict[str, list[int]]:
  """Places of lines by what they ask."""
  places: dict[str, list[int]] = {}
  for i, line in enumerate(read(source)):
    places.setdefault(line.problem, []).append(i)
  return places


@functools.lru_cache(maxsize=4)
def families(source: Source) -> dict[str, str]:
  """The family of each problem; those that a problem joins have one name."""
  lines = read(source)
  parent: dict[str, str] = {}  # Of families; those without are their own.

  def first(family: str) -> str:
    while (above := parent.setdefault(family, family)) != family:
      family = above
    return family

  for place, *others in by_problem(source).values():
    for other in others:
      parent[first(lines[other].family)] = first(lines[place].family)
  return {
    problem: first(lines[places[0]].family)
    for problem, places in by_problem(source).items()
  }
