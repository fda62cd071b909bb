"""What everything that reads text needs of a tokenizer."""

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any, Protocol


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
    """The token that is written where a response is to end."""
    ...

  @property
  def end_ids(self) -> tuple[int, ...]:
    """All tokens that end a response, `eos_id` first."""
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

  def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
    """Returns the text of token ids, an array of one axis or a list.

    Args:
      ids: the tokens.
      skip_special: leave out those that are no text. A grader must see them:
        else a response could hide in them what it did not say.
    """
    ...

  def huggingface_files(self) -> dict[str, str]:
    """Returns the text of every tokenizer file of an exported folder."""
    ...


def response_pad(tokenizer: Tokenizer) -> int:
  """The padding token, or another one where that ends responses too."""
  choices = (tokenizer.pad_id, *tokenizer.special_ids)
  choices = (*choices, *range(tokenizer.vocab_size))
  return next(i for i in choices if i not in tokenizer.end_ids)


def is_end(tokens_X: Any, end_ids: Sequence[int]) -> Any:
  """Tells which tokens end a response; an array of numpy or of JAX."""
  return functools.reduce(operator.or_, (tokens_X == i for i in end_ids))


def one_end(tokens_X: Any, end_ids: Sequence[int]) -> Any:
  """The same answers with the first of the end tokens, whichever ended them."""
  is_end_X = is_end(tokens_X, end_ids)
  return tokens_X * ~is_end_X + end_ids[0] * is_end_X


def before_end(
  tokens: Iterable[int], end_ids: Sequence[int]
) -> tuple[list[int], bool]:
  """The tokens before the first end token, and whether there is one."""
  ids = [int(token) for token in tokens]
  end = next((i for i, token in enumerate(ids) if token in end_ids), None)
  return ids[:end], end is not None


@functools.lru_cache(maxsize=4)
def tokens_ending(tokenizer: Tokenizer, characters: str) -> tuple[int, ...]:
  """Ids of tokens whose text ends with one of some characters."""
  ends = tuple(characters)
  ids = range(tokenizer.vocab_size)
  return tuple(i for i in ids if tokenizer.decode([i]).endswith(ends))
