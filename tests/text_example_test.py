"""The problems and the reward that a user is told to copy."""

import json

from experiments.recipes.text_example_reward import reward
from tsd_jax.base.paths import ROOT

FILE = ROOT / "experiments" / "recipes" / "text_example.jsonl"
LINES = [json.loads(line) for line in FILE.read_text().splitlines()]


def asked(line):
  return int(line["messages"][-1]["content"])


def test_every_answer_is_the_next_number():
  assert len(LINES) == 320
  assert all(line["answer"] == asked(line) + 1 for line in LINES)


def test_no_problem_stands_twice_or_among_the_worked_examples():
  numbers = [asked(line) for line in LINES]
  shown = {
    message["content"]
    for line in LINES
    for message in line["messages"][:-1]
    if message["role"] == "user"
  }
  assert len(set(numbers)) == len(numbers)
  assert not {str(number) for number in numbers} & shown


def test_the_answer_alone_earns_the_reward():
  line = LINES[0]
  answer = str(line["answer"])
  assert reward("", f" {answer}\n", line) == 1.0
  for wrong in ("", str(asked(line)), f"{answer}.", f"It is {answer}"):
    assert reward("", wrong, line) == 0.0
