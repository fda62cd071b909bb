"""Preferences: which of two responses to a prompt people like better.

JSON lines, or a table with the same columns (`base/tabular.py`):

  {"prompt": "2 + 3 =", "chosen": " 5", "rejected": " 6"}
  {"prompt": [{"role": "user", "content": "2 + 3?"}],
   "chosen": [{"role": "assistant", "content": "5"}], "rejected": [...]}

A text is continued as it is; a chat is rendered by the model's own template.
Chats may be whole in `chosen` and `rejected`: what they begin with alike is the
prompt then, and the column `prompt` may say it again, or lack. `margin`, a
number, is by how much the chosen one is better, in units of the reward.

A prompt that is too long loses its beginning, for its end is nearest to what is
judged. A pair with a response that is too long is left out: half an answer is
not what was judged.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tsd_jax.base import outside_files, tabular
from tsd_jax.base.errors import UserError
from tsd_jax.models.text_tokenizer import TextTokenizer
from tsd_jax.models.tokenizer import before_end, response_pad

COLUMNS = ("prompt", "chosen", "rejected")


class Limits(NamedTuple):
  """The most tokens that are read."""

  prompt: int  # P.
  response: int  # T, the end token included.


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Pairs as a model reads them; leaves lead with Q, chosen before rejected."""

  prompt_QP: np.ndarray  # int32, padded on the right.
  prompt_length_Q: np.ndarray  # int32, tokens without padding.
  tokens_Q2T: np.ndarray  # int32.
  mask_Q2T: np.ndarray  # bool, true up to the end token, that included.
  margin_Q: np.ndarray  # float32, 0 where nothing is said.
  group_Q: np.ndarray  # int64, alike where the prompt is.

  @property
  def length_Q2(self) -> np.ndarray:
    """Tokens of the responses."""
    return self.mask_Q2T.sum(axis=2)

  def __len__(self) -> int:
    return len(self.margin_Q)

  def __getitem__(self, index: Any) -> "Pairs":
    return Pairs(
      self.prompt_QP[index],
      self.prompt_length_Q[index],
      self.tokens_Q2T[index],
      self.mask_Q2T[index],
      self.margin_Q[index],
      self.group_Q[index],
    )


class Read(NamedTuple):
  """A file's pairs, and what was done to fit them in."""

  pairs: Pairs
  shortened: int  # Prompts that lost their beginning.
  dropped: int  # Pairs with a response that is too long.


def read(
  file: str | pathlib.Path, tokenizer: TextTokenizer, limits: Limits
) -> Read:
  """Reads a file of pairs.

  Args:
    file: JSON lines, or a table (`tabular.is_table`).
    tokenizer: of the model that reads them.
    limits: the most tokens.

  Raises:
    UserError: naming the file and the line or row that does not fit.
  """
  rows, dropped, shortened = [], 0, 0
  for where, columns in _rows(pathlib.Path(file).expanduser()):
    try:
      row = _row(columns, tokenizer)
    except UserError as error:
      raise UserError(f"{where}: {error}") from error
    if max(map(len, row.responses)) > limits.response:
      dropped += 1
      continue
    if len(row.prompt) > limits.prompt:
      shortened += 1
      row = row._replace(prompt=row.prompt[-limits.prompt :])
    rows.append(row)
  if not rows:
    raise UserError(
      f"{file} holds no pairs"
      if not dropped
      else f"all {dropped} pairs of {file} have a response of more than "
      f"{limits.response} tokens: raise --response_length"
    )
  return Read(_arrays(rows, tokenizer), shortened, dropped)


def split(pairs: Pairs, share: float, seed: int) -> tuple[Pairs, Pairs]:
  """Pairs to train on and held-out ones, without a prompt in common.

  Args:
    pairs: all.
    share: of the prompts, those that are held out; one at least.
    seed: of the choice.

  Raises:
    UserError: all pairs have one prompt.
  """
  groups = np.unique(pairs.group_Q)
  if len(groups) < 2:
    raise UserError(
      "all pairs have the same prompt, so none can be held out: name others by "
      "--held_out=FILE"
    )
  count = min(max(1, round(share * len(groups))), len(groups) - 1)
  order = np.random.default_rng(seed).permutation(groups)
  out_Q = np.isin(pairs.group_Q, order[:count])
  return pairs[~out_Q], pairs[out_Q]


def joined(parts: Sequence[Pairs], pad_id: int) -> list[Pairs]:
  """The same pairs with room for the longest of all, so that shapes agree."""
  P = max(p.prompt_QP.shape[1] for p in parts)
  T = max(p.tokens_Q2T.shape[2] for p in parts)

  def widened(a, width, value):
    spare = [(0, 0)] * (a.ndim - 1) + [(0, width - a.shape[-1])]
    return np.pad(a, spare, constant_values=value)

  return [
    dataclasses.replace(
      p,
      prompt_QP=widened(p.prompt_QP, P, pad_id),
      tokens_Q2T=widened(p.tokens_Q2T, T, pad_id),
      mask_Q2T=widened(p.mask_Q2T, T, False),
    )
    for p in parts
  ]


def common_prompts(ours: Pairs, theirs: Pairs) -> int:
  """How many of their pairs have a prompt that ours have as well."""
  return int(np.isin(theirs.group_Q, ours.group_Q).sum())


class _Row(NamedTuple):
  """A pair's tokens."""

  prompt: list[int]
  responses: tuple[list[int], list[int]]
  margin: float
  group: int


def _rows(file: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Rows of a file with the place where each stands.

  Raises:
    UserError: there is no file, or it is damaged.
  """
  try:
    if tabular.is_table(file):
      for where, values in tabular.rows(file):
        yield where, tabular.present(values)
      return
    lines = outside_files.read_lines(file)
  except outside_files.MissingFile as error:
    raise UserError(f"no pairs in {file}: {error}") from None
  for number, line in enumerate(lines, 1):
    if line.strip():
      where = f"{file}, line {number}"
      row = outside_files.parse_json(line, where)
      if not isinstance(row, dict):
        raise UserError(f"{where} is {outside_files.shown(row)}, no object")
      yield where, row


def _row(columns: Mapping[str, Any], tokenizer: TextTokenizer) -> _Row:
  """Reads one pair.

  Raises:
    UserError: saying what does not fit.
  """
  for name in COLUMNS[1:]:
    if name not in columns:
      raise UserError(f'it has no "{name}", but {", ".join(columns) or "none"}')
  margin = columns.get("margin", 0.0)
  if not outside_files.is_number(margin):
    raise UserError(f'"margin" is {outside_files.shown(margin)}, no number')
  chosen, rejected = columns["chosen"], columns["rejected"]
  if isinstance(chosen, list) or isinstance(rejected, list):
    messages, texts = _chat(columns.get("prompt"), chosen, rejected)
    asked = tokenizer.render(messages)
    prompt = tokenizer.encode(asked)
  else:
    if "prompt" not in columns:
      raise UserError(f'it has no "prompt", but {", ".join(columns)}')
    for name in COLUMNS:
      if not isinstance(columns[name], str):
        shown = outside_files.shown(columns[name])
        raise UserError(f'"{name}" is {shown}: texts and chats do not mix')
    asked, texts = columns["prompt"], (chosen, rejected)
    start = tokenizer.special.get("bos")
    # A chat that was rendered before, such as a tree's prompt, holds it.
    bare = start is None or not asked.startswith(start)
    prompt = tokenizer.encode(asked, add_special=bare)
  if texts[0] == texts[1]:
    raise UserError("chosen and rejected are the same: leave it out")
  if not prompt:
    raise UserError("the prompt has no tokens")
  first, second = (_response(text, tokenizer) for text in texts)
  if first == second:  # As one that says its own end token.
    raise UserError("chosen and rejected are the same tokens: leave it out")
  return _Row(prompt, (first, second), float(margin), _key(asked))


def _chat(
  prompt: Any, chosen: Any, rejected: Any
) -> tuple[list[Mapping[str, str]], tuple[str, str]]:
  """The messages of a prompt, and the two replies.

  Raises:
    UserError: they are no chats, or not of one prompt.
  """
  for name, chat in (("chosen", chosen), ("rejected", rejected)):
    if not isinstance(chat, list) or not chat:
      raise UserError(
        f'"{name}" is {outside_files.shown(chat)}, the other response a chat: '
        "texts and chats do not mix"
      )
    for message in chat:
      if not isinstance(message, Mapping) or not all(
        isinstance(message.get(key), str) for key in ("role", "content")
      ):
        raise UserError(
          f'"{name}" holds {outside_files.shown(message)}; a message is '
          '{"role": TEXT, "content": TEXT}'
        )
  *first, reply = chosen
  *second, other = rejected
  if first != second or not reply["role"] == other["role"] == "assistant":
    raise UserError(
      "chosen and rejected must be alike but for one last message of the "
      "assistant"
    )
  if isinstance(prompt, list):
    if first not in ([], prompt):
      raise UserError("chosen begins with other messages than the prompt")
    first = prompt
  elif prompt is not None:
    asked = [m["content"] for m in first if m["role"] == "user"]
    if not isinstance(prompt, str) or prompt not in asked:
      raise UserError(
        f'"prompt" is {outside_files.shown(prompt)}, chosen a chat that does '
        "not hold it: texts and chats do not mix"
      )
  if not first:
    raise UserError('there is no prompt: neither in "prompt" nor in "chosen"')
  return first, (reply["content"], other["content"])


def _response(text: str, tokenizer: TextTokenizer) -> list[int]:
  """Tokens of a response with its end token.

  Raises:
    UserError: it goes on after an end token.
  """
  ids = tokenizer.encode(text)
  before, ended = before_end(ids, tokenizer.end_ids)
  if not ended:
    return [*ids, tokenizer.eos_id]
  if len(before) < len(ids) - 1:
    end = tokenizer.decode([ids[len(before)]], skip_special=False)
    raise UserError(
      f"a response goes on after the end token {end!r}, where nothing is read: "
      "leave that out"
    )
  return ids


def _key(asked: str) -> int:
  """A number for a prompt's text, its case and white space aside."""
  text = " ".join(asked.casefold().split())
  digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
  return int.from_bytes(digest, "little", signed=True)


def _arrays(rows: Sequence[_Row], tokenizer: TextTokenizer) -> Pairs:
  """Pads to the longest."""
  pad = response_pad(tokenizer)
  P = max(len(row.prompt) for row in rows)
  T = max(len(ids) for row in rows for ids in row.responses)
  prompt_QP = np.full((len(rows), P), pad, np.int32)
  tokens_Q2T = np.full((len(rows), 2, T), pad, np.int32)
  mask_Q2T = np.zeros(tokens_Q2T.shape, bool)
  for i, row in enumerate(rows):
    prompt_QP[i, : len(row.prompt)] = row.prompt
    for j, ids in enumerate(row.responses):
      tokens_Q2T[i, j, : len(ids)] = ids
      mask_Q2T[i, j, : len(ids)] = True
  return Pairs(
    prompt_QP,
    np.array([len(row.prompt) for row in rows], np.int32),
    tokens_Q2T,
    mask_Q2T,
    np.array([row.margin for row in rows], np.float32),
    np.array([row.group for row in rows], np.int64),
  )
