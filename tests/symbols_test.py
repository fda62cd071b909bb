"""Tests of the symbol tokenizer."""

import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from tsd_jax.models import symbols

TOKENIZER = symbols.SymbolTokenizer()


def test_ids_are_a_contract():
  """Checkpoints hold embeddings in this order: never change it."""
  assert TOKENIZER.encode("0 13 199") == [0, 13, 199]
  assert TOKENIZER.encode("+ - * / =") == [200, 201, 202, 203, 204]
  assert TOKENIZER.encode("<pad> ? <eos>") == [205, 206, 207]
  assert TOKENIZER.vocab_size == 208
  assert (symbols.PLUS, symbols.MINUS) == (200, 201)
  assert (symbols.TIMES, symbols.DIVIDE) == (202, 203)
  ids = TOKENIZER.separator_id, TOKENIZER.pad_id
  assert ids == (204, 205)
  assert (TOKENIZER.bos_id, TOKENIZER.eos_id) == (None, 207)


def test_decode_shows_the_end_and_drops_padding():
  """A reader sees where a response ended, not how long the array is."""
  tokens = np.array([3, 202, 4, 12, 207, 205, 205], np.int32)
  assert TOKENIZER.decode(tokens) == "3 * 4 12 <eos>"
  assert TOKENIZER.decode([]) == ""


@hypothesis.given(st.lists(st.integers(0, 207).filter(lambda x: x != 205)))
def test_round_trip(ids):
  """What is not padding survives decode and encode."""
  assert TOKENIZER.encode(TOKENIZER.decode(ids)) == ids


@pytest.mark.parametrize("symbol", ["200", "007", "-1", "x", "**", "3+4"])
def test_unknown_symbols_are_named(symbol):
  """An error says which symbol, and where."""
  with pytest.raises(ValueError) as error:
    TOKENIZER.encode(f"1 + {symbol}")
  assert repr(symbol) in str(error.value)
  assert "position 2" in str(error.value)


@pytest.mark.parametrize("token", [-1, 208])
def test_unknown_ids_are_named(token):
  """An id outside the vocabulary is not decoded to something else."""
  with pytest.raises(ValueError, match=f"token id {token} at position 1"):
    TOKENIZER.decode([0, token])


def test_hugging_face_agrees():
  """The exported file reads every symbol as this tokenizer does."""
  hf = pytest.importorskip("tokenizers", reason="needs the `interop` extra")
  exported = hf.Tokenizer.from_str(json.dumps(TOKENIZER.to_huggingface_json()))
  assert exported.get_vocab_size() == 208
  everything = " ".join(exported.id_to_token(i) for i in range(208))
  assert exported.encode(everything).ids == list(range(208))
  assert TOKENIZER.encode(everything) == list(range(208))
  text = "12 11 1 = 100 12 - 11 1 1 * 1 1 <eos>"
  ids = TOKENIZER.encode(text)
  assert exported.encode(text).ids == ids
  assert exported.decode(ids, skip_special_tokens=False) == text
  with pytest.raises(Exception, match="(?i)unk"):
    exported.encode("1 + x")
  special = exported.get_added_tokens_decoder()
  assert sorted(special) == [205, 207]
  config = TOKENIZER.to_huggingface_config()
  for role, token in (("pad", 205), ("eos", 207)):
    assert special[token].content == config[f"{role}_token"]
