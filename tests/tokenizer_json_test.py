"""Tokenizers that are refused, and those that are known to be harmless."""

import json

import pytest

from tests.text_tokenizer_test import train, write_folder
from tsd_jax.base.errors import UserError
from tsd_jax.models import text_limits, text_tokenizer, tokenizer_json

pytest.importorskip("tokenizers", reason="needs the extra: text")


@pytest.fixture
def saved():
  return json.loads(train().to_str())


def check(saved):
  tokenizer_json.check(saved, "FILE")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda s: s.pop("model"), "FILE is damaged .no vocabulary"),
    (lambda s: s["model"].update(vocab=5), "FILE is damaged .no vocabulary"),
    (lambda s: s["model"]["vocab"].update(x=4294967295), "id of 'x' is 4294"),
    (lambda s: s["model"]["vocab"].update(x=-1), "id of 'x' is -1"),
    (lambda s: s["model"]["vocab"].update(x="3"), "id of 'x' is a text '3'"),
    (lambda s: s["model"]["vocab"].update(x=True), "id of 'x' is True"),
    (lambda s: s.update(added_tokens=5), "added_tokens is no list"),
    (lambda s: s["added_tokens"][0].update(content=7), "the content 7, no"),
    (lambda s: s["added_tokens"][0].update(content=[7]), "content a list"),
    (lambda s: s["added_tokens"][0].update(id=2**40), "the id of .*endof"),
    (lambda s: s["added_tokens"].append("x"), "the content None"),
  ],
)
def test_vocabularies_that_are_none_are_refused_by_name(saved, change, message):
  check(saved)
  change(saved)
  with pytest.raises(UserError, match=message):
    check(saved)


def test_what_is_no_object_is_refused():
  for odd in ([], 5, None, "x"):
    with pytest.raises(UserError, match="no vocabulary"):
      check(odd)


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def split(**pattern):
  return {"type": "Split", "pattern": pattern, "behavior": "Isolated"}


@pytest.mark.parametrize(
  ("part", "value", "plain"),
  [
    ("normalizer", {"type": "NFC"}, True),
    ("normalizer", {"type": "Sequence", "normalizers": [REPLACE] * 3}, True),
    ("normalizer", {"type": "Sequence", "normalizers": [REPLACE] * 99}, False),
    ("normalizer", REPLACE | {"content": "xx"}, False),
    ("normalizer", REPLACE | {"pattern": {"String": ""}}, False),
    ("normalizer", REPLACE | {"pattern": {"Regex": " "}}, False),
    ("normalizer", {"type": "Prepend", "prepend": "▁"}, True),
    ("normalizer", {"type": "Prepend", "prepend": "▁" * 99}, False),
    ("normalizer", {"type": "Precompiled"}, False),
    ("normalizer", 5, False),
    ("pre_tokenizer", split(Regex=tokenizer_json.QWEN2), True),
    ("pre_tokenizer", split(Regex=tokenizer_json.LLAMA3), True),
    ("pre_tokenizer", split(Regex="(a+)+$"), False),
    ("pre_tokenizer", split(String=" "), True),
    ("decoder", {"type": "Metaspace", "replacement": "▁"}, True),
    ("decoder", REPLACE | {"content": "x" * 99}, False),
    ("model", {"type": "Unigram", "vocab": []}, False),
    ("post_processor", {"type": "TemplateProcessing", "single": 5}, False),
    (
      "post_processor",
      {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 9,
      },
      False,
    ),
  ],
)
def test_parts_are_harmless_or_go_to_the_process(saved, part, value, plain):
  assert tokenizer_json.is_plain(saved)
  saved[part] = value
  assert tokenizer_json.is_plain(saved) is plain


def spoilt(folder, **parts):
  """A folder whose tokenizer has other parts."""
  write_folder(folder)
  file = folder / "tokenizer.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | parts))
  return text_tokenizer.load(folder)


@pytest.mark.parametrize(
  "parts",
  [
    {"pre_tokenizer": split(Regex="(a+)+$") | {"invert": False}},
    {
      "normalizer": {
        "type": "Sequence",
        "normalizers": [REPLACE | {"content": " " * 99}] * 9,
      }
    },
  ],
  ids=["a regular expression that goes back", "text that is multiplied"],
)
def test_a_tokenizer_that_does_not_end_is_refused(tmp_path, monkeypatch, parts):
  process = text_limits.TextProcess(seconds=1.0)
  monkeypatch.setattr(text_limits, "shared", lambda: process)
  tokenizer = spoilt(tmp_path / "x", **parts)
  assert isinstance(tokenizer.backend, text_limits.LimitedTokenizer)
  with pytest.raises(UserError, match="^the tokenizer cannot encode 'aaa"):
    tokenizer.encode("a" * 40 + " b")
  process.close()


def test_ordinary_tokenizers_stay_in_this_process(tmp_path):
  """Every text would else go through a pipe."""
  tokenizer = spoilt(tmp_path / "x")
  assert not isinstance(tokenizer.backend, text_limits.LimitedTokenizer)
