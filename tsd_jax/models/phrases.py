"""Phrases that no response may hold, found exactly as it is written.

A phrase is looked for in the text, however that is cut into tokens: a finite
automaton reads bytes, that of Aho and Corasick
(https://doi.org/10.1145/360825.360855), here by the subset construction, so
that letters of either case and the edges of words are a matter of its edges.
What it does with a whole token is tabulated once, and a compiled program takes
one step a token. Most tokens do the same as some other in every state: the
table has a column for each of the few that differ.

The text is the response alone, up to its end token, without tokens that are no
text. So a phrase that begins in the prompt and ends in the response is none;
at the edge between them a word begins. What a tool writes into a response is
part of its text. Tokens that a space joins (`Tokenizer.joiner`) have it before
them, the first one too.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tsd_jax.base.errors import UserError
from tsd_jax.base.types import Array
from tsd_jax.models.text_tokenizer import TextTokenizer
from tsd_jax.models.tokenizer import Tokenizer

VIOLATED, OVER, START = range(3)  # The first two are never left.
ENTRIES = 2**28  # Of a table, at most.

_END = 256  # In place of a byte.
_WORD = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_WORD |= frozenset(b"0123456789_")
_SURROGATES = frozenset(map(chr, range(0xD800, 0xE000)))
_NO_TEXT = _SURROGATES | {"\ufffd"}  # Nor what decoding puts for broken bytes.
_ROOT, _DUE = 0, -1  # Of the trie; a phrase that the end of a word completes.

# Decoders that change a token by itself, or a text at its edges.
_PLAIN = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}

_State = tuple[frozenset[int], bool]  # Nodes of the trie; whether in a word.


@dataclasses.dataclass(frozen=True)
class Phrases:
  """What no response may say.

  Attributes:
    phrases: texts.
    ignore_case: characters are equal if their case-folded forms are
      (`str.casefold`), one by one.
    whole_words: no phrase begins or ends within a word; words are letters,
      digits and `_` of ASCII, as in `re.ASCII`: other letters end a word, so
      that nothing hides behind them.

  Raises:
    ValueError: there is none, or one is empty or no text.
  """

  phrases: tuple[str, ...]
  ignore_case: bool = False
  whole_words: bool = False

  def __post_init__(self):
    """Refuses what is in every text, or in none."""
    if not self.phrases:
      raise ValueError("Phrases.phrases=() forbids nothing: name a phrase")
    for phrase in self.phrases:
      if not phrase or not _NO_TEXT.isdisjoint(phrase):
        raise ValueError(
          f"Phrases.phrases has {phrase!r}: use texts of at least one "
          "character, none of them U+FFFD or a lone surrogate"
        )


class Automaton(NamedTuple):
  """The tables: a pytree of arrays, so that a program need not hold them."""

  next_XJ: Array  # The state after a token of each class, from every state.
  class_V: Array  # int32, the tokens' classes.
  # bool, whether a text that stops in a state says a phrase.
  says_X: Array

  def start(self, *shape: int) -> Array:
    """The states of texts before their first token."""
    return jnp.full(shape, START, jnp.int32)

  def after(self, state_X: Array, token_X: Array) -> Array:
    """The states after one more token.

    Args:
      state_X: before it.
      token_X: int32; a token that the tokenizer does not know is no text.
    """
    class_X = self.class_V.at[token_X].get(mode="fill", fill_value=0)
    return self.next_XJ[state_X, class_X].astype(jnp.int32)

  def after_all(
    self, state_X: Array, token_XU: Array, length_X: Array
  ) -> Array:
    """The states after the first `length_X` of some tokens."""

    def step(state_X, at):
      token_X, u = at
      return jnp.where(u < length_X, self.after(state_X, token_X), state_X), ()

    U = token_XU.shape[-1]
    tokens_UX = jnp.moveaxis(token_XU, -1, 0)
    return jax.lax.scan(step, state_X, (tokens_UX, jnp.arange(U)))[0]

  def said(self, token_XT: Array) -> Array:
    """Whether texts say a phrase, X; what stands behind an end is not read."""
    shape, T = token_XT.shape[:-1], token_XT.shape[-1]
    state_X = self.after_all(self.start(*shape), token_XT, jnp.int32(T))
    return self.says_X[state_X]


@functools.lru_cache(maxsize=8)
def compiled(phrases: Phrases, tokenizer: Tokenizer) -> Automaton:
  """The automaton over a tokenizer's tokens.

  Raises:
    UserError: the tokens' text is not known, or the table would be too large.
  """
  next_XB = _over_bytes(phrases)
  next_XJ, class_V = _over_tokens(next_XB, tokenizer)
  says_X = next_XB[:, _END] == VIOLATED
  # A phrase that waits for the end of its word has been said already where
  # every token ends it, as symbols do.
  lost_X, before = says_X, -1
  while before != lost_X.sum():
    before, lost_X = lost_X.sum(), lost_X & lost_X[next_XJ].all(axis=1)
  next_XJ[lost_X[next_XJ]] = VIOLATED
  with jax.ensure_compile_time_eval():  # Arrays, whoever is being traced.
    return Automaton(*map(jnp.asarray, (next_XJ, class_V, says_X)))


@functools.cache
def _alike() -> Mapping[str, tuple[str, ...]]:
  """Characters by their case-folded form, where there are several."""
  found: dict[str, list[str]] = {}
  for c in map(chr, range(sys.maxunicode + 1)):
    if c not in _SURROGATES:
      found.setdefault(c.casefold(), []).append(c)
  return {form: tuple(cs) for form, cs in found.items() if len(cs) > 1}


class _Trie:
  """The phrases, byte by byte; a node is what has been read of some."""

  def __init__(self, phrases: Phrases):
    """Enters them."""
    self.edges: list[dict[int, int]] = [{}]
    self.ends: set[int] = set()
    self._ignore_case = phrases.ignore_case
    self._places: dict[tuple[int, str], int] = {}
    for phrase in phrases.phrases:
      node = _ROOT
      for character in phrase:
        node = self._below(node, character)
      self.ends.add(node)

  def _below(self, node: int, character: str) -> int:
    """The node after a character, in whichever case it is written."""
    form = character.casefold() if self._ignore_case else character
    if (node, form) not in self._places:
      self._places[node, form] = self._add()
      alike = (character,)
      if self._ignore_case:
        alike = _alike().get(form, alike)
      for *first, last in map(str.encode, alike):
        at = node
        for byte in first:
          if byte not in self.edges[at]:
            self.edges[at][byte] = self._add()
          at = self.edges[at][byte]
        self.edges[at][last] = self._places[node, form]
    return self._places[node, form]

  def _add(self) -> int:
    self.edges.append({})
    return len(self.edges) - 1


def _over_bytes(phrases: Phrases) -> np.ndarray:
  """The state after each byte, and after the end, from every state."""
  trie, words = _Trie(phrases), phrases.whole_words
  state_of: dict[_State, int] = {}

  def number(state: _State) -> int:
    return state_of.setdefault(state, START + len(state_of))

  def step(state: _State, byte: int) -> int:
    nodes, in_word = state
    word = words and byte in _WORD
    if _DUE in nodes and not word:
      return VIOLATED
    if byte == _END:
      return OVER
    begins = () if in_word and word else (_ROOT,)
    found = {
      trie.edges[node][byte]
      for node in (*nodes, *begins)
      if node != _DUE and byte in trie.edges[node]
    }
    if found & trie.ends:
      if not word:
        return VIOLATED
      found.add(_DUE)
    return number((frozenset(found), word))

  # Bytes of no phrase are alike: one of a word and one of none stand for all.
  read = {byte for edges in trie.edges for byte in edges}
  other = [
    [b for b in range(256) if b not in read and (b in _WORD) == word]
    for word in (False, True)
  ]
  rows: list[np.ndarray] = [
    np.full(257, state, np.int32) for state in (VIOLATED, OVER)
  ]
  states = [(frozenset[int](), False)]
  number(states[0])
  for state in states:  # It grows.
    row = np.zeros(257, np.int32)
    for byte in (*read, _END):
      row[byte] = step(state, byte)
    for alike in filter(None, other):
      row[alike] = step(state, alike[0])
    rows.append(row)
    states.extend(list(state_of)[len(states) :])
  return np.stack(rows)


def _over_tokens(
  next_XB: np.ndarray, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
  """The state after a token of each class, XJ, and the tokens' classes.

  A text is a function from states to states. Those of all beginnings of tokens
  are made once, by what they are and not by what they say.
  """
  states = len(next_XB)
  dtype = np.int16 if states < 2**15 else np.int32
  next_BX = np.ascontiguousarray(next_XB.T.astype(dtype))
  same_X = np.arange(states, dtype=dtype)
  columns, place_of = [same_X], {same_X.tobytes(): 0}
  step_of: dict[tuple[int, int], int] = {}

  def then(column: int, byte: int) -> int:
    if (column, byte) not in step_of:
      new_X = next_BX[byte][columns[column]]
      place = place_of.setdefault(new_X.tobytes(), len(columns))
      if place == len(columns):
        _check_size(states, place)
        columns.append(new_X)
      step_of[column, byte] = place
    return step_of[column, byte]

  class_V = np.zeros(tokenizer.vocab_size, np.int32)
  for token, text in enumerate(token_bytes(tokenizer)):
    class_V[token] = functools.reduce(then, text, 0)
  class_V[list(tokenizer.end_ids)] = then(0, _END)
  # Class 0 changes nothing, whether a token has it or not.
  kept, class_V = np.unique(np.append(0, class_V), return_inverse=True)
  next_JX = np.stack([columns[i] for i in kept])
  return np.ascontiguousarray(next_JX.T), class_V[1:].astype(np.int32)


def _check_size(states: int, columns: int) -> None:
  """Refuses a table that nobody wants to hold.

  Raises:
    UserError: naming its size.
  """
  if states * columns > ENTRIES:
    raise UserError(
      f"Phrases: a table of {states:,} states and more than {columns:,} kinds "
      f"of tokens has more than {ENTRIES:,} entries: forbid fewer phrases"
    )


def token_bytes(tokenizer: Tokenizer) -> Iterable[bytes]:
  """What every token adds to a text, in the order of their ids.

  A token of a text tokenizer may be part of a character. Tokens that are no
  text add nothing.

  Raises:
    UserError: the tokenizer joins tokens in a way that is not known.
  """
  if isinstance(tokenizer, TextTokenizer) and not tokenizer.joiner:
    return _published_bytes(tokenizer)
  special = frozenset(tokenizer.special_ids)
  return (
    b"" if i in special else (tokenizer.joiner + tokenizer.decode([i])).encode()
    for i in range(tokenizer.vocab_size)
  )


def _published_bytes(tokenizer: TextTokenizer) -> list[bytes]:
  """Tokens of a published model, by what its file says of decoding."""
  saved = json.loads(tokenizer.huggingface_files()["tokenizer.json"])
  decoder = saved["decoder"]
  parts = decoder.get("decoders", [decoder])
  kinds = [part["type"] for part in parts]
  if kinds == ["ByteLevel"]:
    read = _byte_level
  elif set(kinds) <= _PLAIN and all(
    "String" in part["pattern"] for part in parts if part["type"] == "Replace"
  ):
    read = functools.partial(_replaced, parts)
  else:
    raise UserError(
      f"Phrases: tokens that are decoded by {', '.join(kinds)} have no bytes "
      "of their own: use a tokenizer of bytes (ByteLevel, ByteFallback)"
    )
  texts = [b""] * tokenizer.vocab_size
  for token, i in tokenizer.backend.get_vocab().items():
    texts[i] = read(token)
  for i in tokenizer.special_ids:
    texts[i] = b""
  return texts


@functools.cache
def _byte_of() -> Mapping[str, int]:
  """The characters by which GPT-2's vocabulary writes bytes."""
  shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
  hidden = [byte for byte in range(256) if byte not in shown]
  return {chr(byte): byte for byte in shown} | {
    chr(256 + i): byte for i, byte in enumerate(hidden)
  }


def _byte_level(token: str) -> bytes:
  """A token that spells bytes; one that was added may be plain text."""
  byte_of = _byte_of()
  if all(c in byte_of for c in token):
    return bytes(byte_of[c] for c in token)
  return token.encode()


def _replaced(parts: list[Mapping], token: str) -> bytes:
  """A token in which a sign stands for a space, or `<0x0A>` for a byte."""
  for part in parts:
    match part["type"]:
      case "Replace":
        token = token.replace(part["pattern"]["String"], part["content"])
      case "Metaspace":
        token = token.replace(part["replacement"], " ")
      case "ByteFallback" if len(token) == 6 and token.startswith("<0x"):
        return bytes([int(token[3:5], 16)])
  return token.encode()
