"""Countdown in words: its problems and its grader, against Python's own sums.

Hypothesis feeds the grader anything a language model might write.
"""

import fractions
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.recipes import countdown_words as words

RIGHT = {"numbers": [2, 3, 4], "target": 14}


@pytest.mark.parametrize(
  ("response", "reward"),
  [
    ("2 + 3 * 4", 1.0),
    (" (4*3)+2\n", 1.0),
    ("2 + 3 + 4", words.LEGAL),
    ("2 * 3 / 4", words.LEGAL),
    ("14", words.ILLEGAL),
    ("2 + 3 * 4 + 0", words.ILLEGAL),
    ("2 + 3 * 4 = 14", 0.0),
    ("2 ** 3 ** 4", 0.0),
    ("3 / (2 - 2)", 0.0),
    ("2 + 3 * 4.0", 0.0),
    ("2 + 3 * True", 0.0),
    ("print(2 + 3 * 4)", 0.0),
    ("[2 + 3 * 4 for _ in range(9)]", 0.0),
    ("(" * 99 + "2 + 3 * 4" + ")" * 99, 0.0),
    ("2 + 3 * 4 # = 14", 0.0),
    ("2 + 3 * 4\n# = 14", 0.0),
    ("2 + 3 *\\\n4", 0.0),
    ("0b10 + 3 * 4", 0.0),
    ("2 + 3 *\f4", 0.0),
    ("2_0", 0.0),
    ("", 0.0),
  ],
)
def test_answers_are_graded(response, reward):
  assert words.reward("", response, RIGHT) == reward


@given(
  st.text(st.sampled_from("0123456789+-*/() =.ex_\n\x00") | st.characters())
)
def test_the_grader_survives_any_text(response):
  assert words.reward("", response, RIGHT) in (0, words.ILLEGAL, words.LEGAL, 1)


@pytest.mark.parametrize(
  ("response", "reward"),
  [
    ("2 + 3 + 4 = 9, no\n3 * 4 = 12\nAnswer: 2 + 3 * 4", 1.0),
    ("Answer: 2 + 3 + 4\nNo.\nAnswer: 3 * 4 + 2\n", 1.0),
    ("Answer: 2 + 3 * 4\nSo it is.", 0.0),
    ("Answer: 2 + 3 + 4", words.LEGAL),
    ("2 + 3 * 4", 0.0),
    ("Answer:", 0.0),
  ],
)
def test_the_last_answer_after_thought_counts(response, reward):
  assert words.reasoned("", response, RIGHT) == reward


def test_thought_is_asked_for_without_examples(tmp_path, monkeypatch):
  monkeypatch.setenv("TSD_JAX_DATA_DIR", str(tmp_path / "data"))
  file = words.problems_file(3, 6, think=True, most=50)
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  assert len({line["problem"] for line in lines}) == 50
  for line in lines:
    system, question = line["messages"]
    assert system["content"] == words.THINK
    target, *given_numbers = asked(question)
    assert target == line["target"]
    assert sorted(given_numbers) == sorted(line["numbers"])


@given(
  st.permutations([2, 3, 4]), st.tuples(*[st.sampled_from("+-*/")] * 2),
  st.booleans(),
)  # fmt: skip
def test_values_are_python_s(numbers, signs, left):
  a, b, c = (f"F({n})" for n in numbers)
  exact = f"({a}{signs[0]}{b}){signs[1]}{c}"
  if not left:
    exact = f"{a}{signs[0]}({b}{signs[1]}{c})"
  value = eval(exact, {"F": fractions.Fraction})
  response = (
    exact.replace("F(2)", "2").replace("F(3)", "3").replace("F(4)", "4")
  )
  right = words.reward("", response, RIGHT | {"target": value})
  wrong = words.reward("", response, RIGHT | {"target": value + 1})
  assert (right, wrong) == (1.0, words.LEGAL)


def asked(message):
  """Numbers of a user's words, the target first."""
  return [int(n) for n in re.findall(r"\d+", message["content"])]


@pytest.mark.parametrize("numbers", [2, 3])
def test_the_file_asks_each_solvable_problem_once(
  numbers, tmp_path, monkeypatch
):
  monkeypatch.setenv("TSD_JAX_DATA_DIR", str(tmp_path / "data"))
  file = words.problems_file(numbers, 13)
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  examples = lines[0]["messages"][:-1]
  problems = set()
  for line in lines:
    *shown, question = line["messages"]
    target, *given_numbers = asked(question)
    assert shown == examples and target == line["target"]
    assert sorted(given_numbers) == sorted(line["numbers"])
    problems.add((*sorted(given_numbers), target))
  assert len(problems) == len(lines)
  for user, assistant in zip(examples[1::2], examples[2::2], strict=True):
    target, *given_numbers = asked(user)
    example = {"target": target, "numbers": given_numbers}
    assert words.reward("", assistant["content"], example) == 1.0
    assert (*sorted(given_numbers), target) not in problems
    problems.add((*sorted(given_numbers), target))
  if numbers == 2:
    brute = {
      (a, b, int(value))
      for a in range(1, 14)
      for b in range(a, 14)
      for value in (a + b, b - a, a * b, b / a)
      if 0 < value < 100 and value == int(value)
    }
    assert problems == brute
  assert words.problems_file(numbers, 13).read_text() == file.read_text()
