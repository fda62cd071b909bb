"""The symbol tokenizer: one token per integer, so rewards stay in the graph.

A task that spells its text with these symbols can be parsed by comparing
token ids, without strings and without leaving the compiled program.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

NUM_INTEGERS = 200  # Token ids 0..199 are the integers themselves.
MAX_INTEGER = NUM_INTEGERS - 1
PLUS, MINUS, TIMES, DIVIDE = range(NUM_INTEGERS, NUM_INTEGERS + 4)
SEPARATOR = 204  # `=`: between the givens and the question of a prompt.
PAD = 205
UNSURE = 206  # `?`: an answer that is not known; see rewards/abstention.py.
EOS = 207
VOCAB_SIZE = 208

_SPECIAL = {"<pad>": PAD, "<eos>": EOS}
_SYMBOLS = (
  *(str(integer) for integer in range(NUM_INTEGERS)),
  *"+-*/=",
  "<pad>",
  "?",
  "<eos>",
)
_IDS = {symbol: token for token, symbol in enumerate(_SYMBOLS)}
assert len(_IDS) == VOCAB_SIZE and _IDS["?"] == UNSURE


@dataclasses.dataclass(frozen=True)
class SymbolTokenizer:
  """Integers 0..199, `+ - * / = ?` and the two special symbols."""

  vocab_size = VOCAB_SIZE
  separator_id = SEPARATOR
  pad_id = PAD
  bos_id = None  # Prompts of fixed length need no start marker.
  eos_id, end_ids = EOS, (EOS,)
  special_ids = PAD, EOS
  joiner = " "  # What `decode` puts between two tokens.

  def encode(self, text: str) -> list[int]:
    """Returns the token ids of symbols separated by white space.

    Args:
      text: such as "3 * 4 12 <eos>"; nothing is added to it.

    Raises:
      ValueError: a symbol is not in the vocabulary.
    """
    ids = []
    for position, symbol in enumerate(text.split()):
      if symbol not in _IDS:
        raise ValueError(
          f"unknown symbol {symbol!r} at position {position}: expected an "
          f"integer 0..{MAX_INTEGER}, one of + - * / = ? or one of "
          f"{' '.join(_SPECIAL)}, separated by white space"
        )
      ids.append(_IDS[symbol])
    return ids

  def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
    """Returns the symbols of `ids` joined by spaces.

    Args:
      ids: token ids, a list or an array of one axis.
      skip_special: leave out the padding; the other special symbols are shown.

    Raises:
      ValueError: an id is outside the vocabulary.
    """
    symbols = []
    for position, token in enumerate(map(int, ids)):
      if not 0 <= token < VOCAB_SIZE:
        raise ValueError(
          f"token id {token} at position {position} is outside 0.."
          f"{VOCAB_SIZE - 1}"
        )
      if token != PAD or not skip_special:
        symbols.append(_SYMBOLS[token])
    return " ".join(symbols)

  def to_huggingface_json(self) -> dict[str, Any]:
    """Returns the content of a Hugging Face `tokenizer.json`, to be dumped."""
    return word_level(_IDS, _SPECIAL)

  def to_huggingface_config(self) -> dict[str, Any]:
    """Returns the content of the `tokenizer_config.json` that goes with it."""
    return {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "eos_token": "<eos>",
      "pad_token": "<pad>",
      "clean_up_tokenization_spaces": False,
    }

  def huggingface_files(self) -> dict[str, str]:
    """Returns the text of every tokenizer file of an exported folder."""
    contents = {
      "tokenizer.json": self.to_huggingface_json(),
      "tokenizer_config.json": self.to_huggingface_config(),
    }
    return {
      name: json.dumps(content, indent=2, ensure_ascii=False) + "\n"
      for name, content in contents.items()
    }


def word_level(
  ids: Mapping[str, int], special: Mapping[str, int]
) -> dict[str, Any]:
  """Returns the content of a `tokenizer.json` of words between white space.

  Args:
    ids: of all words.
    special: of those that are no text.
  """
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
      {
        "id": token,
        "content": symbol,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
      }
      for symbol, token in special.items()
    ],
    "normalizer": None,
    "pre_tokenizer": {"type": "WhitespaceSplit"},
    "post_processor": None,
    "decoder": None,
    # The unknown symbol is left out of the vocabulary on purpose: unknown
    # text is then refused, as `encode` does, instead of being replaced.
    "model": {
      "type": "WordLevel",
      "vocab": dict(ids),
      "unk_token": "<unk>",
    },
  }
