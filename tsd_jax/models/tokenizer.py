"""What everything that reads text needs of a tokenizer."""

import functools
from collections.abc import Iterable, Sequence
from typing import Protocol


class Tokenizer(Protocol):
  """Token ids <-> text: of symbols (`symbols.py`), or a published model's."""

  @property
  def vocab_size(self) -> int:
    """Largest token id plus one; a model may have more rows."""
    ...

  @property
  def bos_id(self) -> int | None:
    """The token that starts a text, where there is one."""
    ...

  @property
  def eos_id(self) -> int:
    """The token that ends a response."""
    ...

  @property
  def pad_id(self) -> int:
    """The token that fills a row; may be the end token again."""
    ...

  @property
  def special_ids(self) -> Sequence[int]:
    """Tokens that are no text."""
    ...

  @property
  def joiner(self) -> str:
    """What `decode` puts between two tokens: nothing, or a space."""
    ...

  def encode(self, text: str) -> list[int]:
    """Returns token ids; nothing is added to the text."""
    ...

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of token ids, an array of one axis or a list."""
    ...

  def huggingface_files(self) -> dict[str, str]:
    """Returns the text of every tokenizer file of an exported folder."""
    ...


def response_pad(tokenizer: Tokenizer) -> int:
  """The padding token, or another one where that ends responses too."""
  choices = (tokenizer.pad_id, *tokenizer.special_ids, 0, 1)
  return next(i for i in choices if i != tokenizer.eos_id)


@functools.lru_cache(maxsize=4)
def tokens_ending(tokenizer: Tokenizer, characters: str) -> tuple[int, ...]:
  """Ids of tokens whose text ends with one of some characters."""
  ends = tuple(characters)
  ids = range(tokenizer.vocab_size)
  return tuple(i for i in ids if tokenizer.decode([i]).endswith(ends))
