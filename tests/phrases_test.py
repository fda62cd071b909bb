"""Automata against a plain search for phrases in decoded text."""

import dataclasses
import functools
import json

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import text_tokenizer_test
from tests.fake_task import Numbers
from tsd_jax.base.errors import UserError
from tsd_jax.models import phrases as phrases_lib
from tsd_jax.models import text_tokenizer
from tsd_jax.models.phrases import Phrases, compiled
from tsd_jax.models.symbols import SymbolTokenizer

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra: text")
T = 48
# Cases of one and of several bytes, such as k, the Kelvin sign and the long s.
CHARACTERS = "aAbBsSkK\u212a\u017f\xe9\xc9\xdf_1 -\u2019\u4f60\n"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  """A tokenizer of bytes with merges, as published models have it."""
  folder = tmp_path_factory.mktemp("tokenizer")
  return text_tokenizer.load(text_tokenizer_test.write_folder(folder))


def is_word(character):
  return character.isascii() and (character.isalnum() or character == "_")


def says(rule: Phrases, text: str) -> bool:
  """Character by character."""
  form = str.casefold if rule.ignore_case else str
  read = [form(c) for c in text]

  def stands_at(i, phrase):
    wanted = [form(c) for c in phrase]
    if read[i : i + len(wanted)] != wanted:
      return False
    if not rule.whole_words:
      return True
    # An edge lies within a word where both sides of it are of one.
    edges = (i, i + len(wanted))
    return not any(
      0 < e < len(text) and is_word(text[e - 1]) and is_word(text[e])
      for e in edges
    )

  return any(
    stands_at(i, phrase) for phrase in rule.phrases for i in range(len(text))
  )


@jax.jit
def said(automaton, tokens_XT):
  return automaton.said(tokens_XT)


def padded(automaton):
  """The tables in arrays of one size, so that one program reads them all."""
  states, classes = automaton.next_XJ.shape
  next_XJ = np.zeros((256, 256), np.int32)
  next_XJ[:states, :classes] = automaton.next_XJ
  return automaton._replace(
    next_XJ=next_XJ, says_X=np.resize(np.asarray(automaton.says_X), 256)
  )


def stepped(automaton, tokens) -> bool:
  """The tables, read one after the other."""
  next_XJ, class_V, says_X = map(np.asarray, automaton)
  state = phrases_lib.START
  for token in tokens:
    state = next_XJ[state, class_V[token] if token < len(class_V) else 0]
  return bool(says_X[state])


rules = st.builds(
  Phrases,
  st.lists(st.text(CHARACTERS, min_size=1, max_size=4), min_size=1, max_size=3)
  .map(tuple),
  ignore_case=st.booleans(),
  whole_words=st.booleans(),
)  # fmt: skip


@hypothesis.given(rule=rules, data=st.data())
@hypothesis.settings(deadline=None, max_examples=150)
def test_a_phrase_is_found_however_it_is_cut_into_tokens(published, rule, data):
  """Random texts that nearly say it, cut at random, within characters too."""
  parts = st.one_of(
    st.sampled_from(rule.phrases),
    st.sampled_from(rule.phrases).map(str.swapcase),
    st.text(CHARACTERS, max_size=2),
  )
  text = "".join(data.draw(st.lists(parts, max_size=4)))
  texts = list(phrases_lib.token_bytes(published))
  left, tokens = text.encode()[: T - 1], []
  while left:
    fits = [i for i, b in enumerate(texts) if b and left.startswith(b)]
    tokens.append(data.draw(st.sampled_from(fits)))
    left = left[len(texts[tokens[-1]]) :]
  spoken = published.decode(tokens)
  automaton = compiled(rule, published)
  row = np.full((1, T), published.eos_id, np.int32)
  row[0, : len(tokens)] = tokens
  expected = says(rule, spoken)
  assert bool(said(padded(automaton), row)[0]) == expected
  assert stepped(automaton, tokens) == expected  # Cut off, without an end.
  hypothesis.event(f"says it: {expected}")


@hypothesis.given(
  rule=rules,
  tokens=st.lists(st.integers(0, 330), max_size=T - 1),
)
@hypothesis.settings(deadline=None, max_examples=50)
def test_any_tokens_are_read_as_their_text(published, rule, tokens):
  """Broken characters, special tokens, the end, and unknown tokens."""
  automaton = compiled(rule, published)
  row = np.full((1, T), published.pad_id, np.int32)
  row[0, : len(tokens)] = tokens
  before = [i for i in tokens if i < published.vocab_size]
  if published.eos_id in before:
    before = before[: before.index(published.eos_id)]
  expected = says(rule, published.decode(before))
  assert bool(said(padded(automaton), row)[0]) == expected
  assert stepped(automaton, row[0]) == expected


def test_symbols_are_words_with_spaces_between():
  """Of all pairs of symbols, and phrases of one or two."""
  tokenizer = SymbolTokenizer()
  rng = np.random.default_rng(0)
  row_XT = rng.integers(0, 208, (2000, 6)).astype(np.int32)
  row_XT[:, ::2] %= 20
  for words in (False, True):
    rule = Phrases(("1 20", "- 7", "?", "13"), whole_words=words)
    found_X = np.asarray(said(padded(compiled(rule, tokenizer)), row_XT))
    expected_X = []
    for row_T in row_XT.tolist():
      end = row_T.index(207) if 207 in row_T else 6
      expected_X.append(says(rule, " " + tokenizer.decode(row_T[:end])))
    np.testing.assert_array_equal(found_X, expected_X)
    assert 0.05 < np.mean(found_X) < 0.95


def test_a_text_may_be_read_in_pieces():
  """The state carries over, of rows that stop at different places."""
  tokenizer = Numbers(12, 11, 10)
  automaton = compiled(Phrases(("1 2 1", "3")), tokenizer)
  row_XT = np.random.default_rng(1).integers(0, 4, (64, 6)).astype(np.int32)
  cut_X = np.random.default_rng(2).integers(0, 7, 64)

  @jax.jit
  def in_two(row_XT, cut_X):
    state_X = automaton.after_all(automaton.start(64), row_XT, cut_X)
    rest_XT = jnp.take_along_axis(
      jnp.pad(row_XT, ((0, 0), (0, 6)), constant_values=10),
      cut_X[:, None] + jnp.arange(6),
      axis=1,
    )
    state_X = automaton.after_all(state_X, rest_XT, jnp.int32(6))
    return automaton.says_X[state_X]

  expected_X = [stepped(automaton, row_T) for row_T in row_XT]
  np.testing.assert_array_equal(in_two(row_XT, cut_X), expected_X)
  assert len(set(expected_X)) == 2


def test_tokens_with_a_sign_for_a_space_or_a_byte_have_their_text(published):
  """As Llama 2's are, and those of bytes, against what they decode to."""
  vocab = ["<unk>", "<s>", "</s>", "<0x0A>", "<0xC3>", "<0xA9>", "\u2581",
           "k", "\u2581k", "i", "l", "il"]  # fmt: skip
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE({t: i for i, t in enumerate(vocab)}, [],
                          byte_fallback=True)
  )  # fmt: skip
  decoders = tokenizers.decoders
  backend.decoder = decoders.Sequence([
    decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
    decoders.Strip(" ", 1, 0),
  ])  # fmt: skip
  backend.add_special_tokens(vocab[:3])
  tokenizer = text_tokenizer.TextTokenizer(
    backend, {"eos": "</s>"}, (2,), None, {"tokenizer.json": backend.to_str()}
  )
  for each in (tokenizer, published):
    texts = list(phrases_lib.token_bytes(each))
    rng = np.random.default_rng(0)
    for _ in range(50):
      ids = rng.integers(0, each.vocab_size, 6).tolist()
      text = b"".join(texts[i] for i in ids).decode(errors="replace")
      # Llama 2 drops the first space of a text, and every broken byte.
      if "\ufffd" not in text + each.decode(ids):
        assert text.removeprefix(" ") == each.decode(ids).removeprefix(" ")
  automaton = compiled(Phrases((" kil\xe9",)), tokenizer)
  assert stepped(automaton, [7, 8, 11, 4, 1, 5])  # k, ki, l, half an e, ...
  assert not stepped(automaton, [7, 8, 11, 4, 7, 5])


@pytest.mark.parametrize(
  "phrases, words",
  [((), "name a phrase"), (("a", ""), "at least one"), (("\ufffd",), "FFFD")],
)
def test_what_is_in_every_text_or_in_none_is_refused(phrases, words):
  with pytest.raises(ValueError, match=words):
    Phrases(phrases)


def test_what_cannot_be_read_or_held_is_refused(published, monkeypatch):
  """Tokens without bytes, and tables of many phrases."""
  rule = Phrases(("abcdefgh", "hgfedcba"))
  saved = json.loads(published.files["tokenizer.json"])
  odd = json.dumps(saved | {"decoder": {"type": "WordPiece"}})
  other = dataclasses.replace(published, files={"tokenizer.json": odd})
  with pytest.raises(UserError, match="WordPiece have no bytes"):
    compiled(rule, other)
  compiled.cache_clear()
  monkeypatch.setattr(phrases_lib, "ENTRIES", 100)
  with pytest.raises(UserError, match="forbid fewer phrases"):
    compiled(rule, published)


def test_tables_are_small(published):
  """A state is what has been read of a phrase, a kind what it does there."""
  plain = compiled(Phrases(("he", "she", "his", "hers")), published)
  # Aho and Corasick's example: 9 beginnings, less the 4 whole phrases, the
  # start, and the two that are never left.
  beginnings = {p[:i] for p in ("he", "she", "his", "hers")
                for i in range(len(p))}  # fmt: skip
  known = {b for b in beginnings if "he" not in b}
  assert len(plain.next_XJ) == 2 + len(known)
  assert plain.next_XJ.shape[1] < published.vocab_size / 4
  assert plain.next_XJ.dtype == np.int16
  same = functools.partial(np.unique, axis=1)
  assert same(plain.next_XJ).shape == plain.next_XJ.shape
