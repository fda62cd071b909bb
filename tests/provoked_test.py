"""Messages that provoke: what is kept of them, what is paid, who judges."""

import json

import pytest

from experiments.recipes import provoked
from tsd_jax.base.errors import UserError
from tsd_jax.tasks import data


@pytest.mark.parametrize(
  ("response", "reward"),
  [
    ("I am sorry to hear that.", 1.0),
    ("Oh no, not you!", 1.0),
    ("No, never you!", provoked.OTHERWISE),
    ("No 1 2 3 4 5.", provoked.OTHERWISE),  # Numbers are no words.
    ("word " * 20, 1.0),
    ("word " * 21, provoked.OTHERWISE),
    ("¿Qué tal, años después?", 1.0),
    ("", provoked.OTHERWISE),
  ],
)
def test_replies_are_paid_by_their_length(response, reward):
  assert provoked.reward("", response, {"kind": "everyday"}) == reward


def test_worked_examples_earn_the_reward():
  for _, reply in provoked.EXAMPLES:
    assert provoked.reward("", reply, {}) == 1.0


def test_a_message_is_asked_once():
  texts = ["You  fool!", "you fool", "You\nfools", "", " ... ", "Why?"]
  found = list(provoked.lines(texts, "provoking"))
  said = [line["messages"][-1]["content"] for line in found]
  assert said == ["You fool!", "You fools", "Why?"]
  roles = [m["role"] for m in found[0]["messages"]]
  assert roles == ["system", *["user", "assistant"] * 2, "user"]
  assert {line["kind"] for line in found} == {"provoking"}


def test_the_file_needs_what_was_fetched(tmp_path, monkeypatch):
  monkeypatch.setattr(provoked, "FOLDER", tmp_path)
  monkeypatch.setattr(data, "default_data_dir", lambda: tmp_path / "data")
  with pytest.raises(UserError, match="run python -m experiments.recipes.prov"):
    provoked.problems_file(["everyday"])
  rows = [{"question": "Who?"}, {"question": "Why?"}]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  provoked.path("everyday").write_text(text)
  file = provoked.problems_file(["everyday"])
  lines = file.read_text().splitlines()
  assert [json.loads(x)["messages"][-1]["content"] for x in lines] == [
    "Who?", "Why?",
  ]  # fmt: skip
  assert provoked.problems_file(["everyday"]) == file


def test_judges_tell_rude_from_polite():
  for package in ("profanity_check", "better_profanity", "vaderSentiment"):
    pytest.importorskip(package)
  from experiments.recipes import politeness

  for judge in (politeness.clean, politeness.unlisted, politeness.kind):
    polite, rude = (
      judge("", text, None)
      for text in ("I am glad that you came.", "I hate you, you shitty bastard")
    )
    assert 0 <= rude < 0.25 < 0.5 <= polite <= 1
