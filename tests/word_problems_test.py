"""Word problems: what is kept of a file of them, and the grader."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.recipes import word_problems as words
from tsd_jax.base.errors import UserError
from tsd_jax.tasks import data

RIGHT = {"answer": 1200}


@pytest.mark.parametrize(
  ("response", "reward"),
  [
    ("12 * 100 = 1200. Answer: 1200", 1.0),
    ("12 * 100 = 1200. Answer: 1,200 dollars.", 1.0),
    ("Answer: $1200.00", 1.0),
    ("Answer: 12\nNo, 12 * 100. Answer: 1200\n", 1.0),
    ("Answer: 120", words.ANSWERED),
    ("Answer: 1200.5", 0.0),
    ("Answer: 1200/2", 0.0),
    ("Answer: 12:30", 0.0),
    ("Answer: -1200", words.ANSWERED),
    ("Answer: twelve hundred", 0.0),
    ("12 * 100 = 1200", 0.0),
    ("1200", 0.0),
    ("", 0.0),
  ],
)
def test_answers_are_graded(response, reward):
  assert words.reward("", response, RIGHT) == reward


@given(st.text(st.sampled_from("Answer: 0123456789,.:/-$\n") | st.characters()))
def test_the_grader_survives_any_text(response):
  for text in (response, f"Answer: {response}"):
    assert words.reward("", text, RIGHT) in (0.0, words.ANSWERED, 1.0)


def test_worked_examples_are_right_and_earn_the_reward():
  for _, reply in words.EXAMPLES:
    worked, _, answer = reply.removesuffix(".").partition(". Answer: ")
    left, _, value = worked.partition(" = ")
    a, operator, b = left.split()
    exact = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b),
             "/": int(a) / int(b)}[operator]  # fmt: skip
    assert exact == int(value) == int(answer)
    assert words.reward("", reply, {"answer": int(value)}) == 1.0


ASKED = [
  ("Tom has 3 apples.", "How many?", "3 apples"),
  ("Tom has  41 apples.", "How many\nare left?", "1,041"),
  ("Share it.", "What is the ratio?", "3:4"),
  ("Share it.", "How much?", "0.5 miles"),
  ("Share it.", "Who?", "Tom"),
  ("It starts early.", "When?", "9:30 am"),
  ("Ana is older.", "How old are they?", "17 years; 12 years"),
  ("Tom has 3 apples.", "How many?", "3 apples"),  # As before.
]


def test_problems_with_whole_answers_are_kept():
  fields = ("passage", "question", "answer")
  found = list(
    words.lines(dict(zip(fields, asked, strict=True)) for asked in ASKED)
  )
  assert [line["answer"] for line in found] == [3, 1041]
  # The same things with other numbers are one family.
  assert len({line["family"] for line in found}) == 1
  *shown, last = found[1]["messages"]
  assert last["content"] == "Tom has 41 apples. How many are left?"
  assert [m["role"] for m in shown[:3]] == ["system", "user", "assistant"]


def test_the_file_is_that_of_its_content(tmp_path, monkeypatch):
  monkeypatch.setattr(words, "PATH", tmp_path / "asdiv.jsonl")
  monkeypatch.setattr(data, "default_data_dir", lambda: tmp_path / "data")
  with pytest.raises(UserError, match="run python -m experiments.recipes.word"):
    words.problems_file()
  line = dict(passage="Tom has 3.", question="How many?", answer="3 apples")
  words.PATH.write_text(json.dumps(line) + "\n")
  file = words.problems_file()
  (read,) = map(json.loads, file.read_text().splitlines())
  assert read["answer"] == 3 and file == words.problems_file()
