"""reasoning_gym's problems and verifiers behind our text tasks."""

import json
import pathlib
import re
import subprocess
import sys
import time

import pytest

from experiments.recipes import reasoning_gym_lines as gym
from tsd_jax.base.errors import UserError

reasoning_gym = pytest.importorskip("reasoning_gym")
ROOT = pathlib.Path(__file__).resolve().parent.parent


def problems(name, count=5, **options):
  return list(gym.lines(name, options, count, 0, "Be brief."))


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("chain_sum", dict(max_terms=2)), ("countdown", dict(max_numbers=4)),
    ("mini_sudoku", {}), ("word_ladder", {}), ("n_queens", {}),
    ("spiral_matrix", {}), ("string_insertion", {}), ("puzzle24", {}),
    ("binary_matrix", {}),
  ],
)  # fmt: skip
def test_right_answers_are_right_and_others_as_their_verifier_says(
  name, options
):
  theirs = reasoning_gym.get_score_answer_fn(name)
  for line in problems(name, **options):
    entry = line["entry"]
    right = entry["answer"]
    assert gym.reward("", right, line) == 1.0
    assert gym.reward("", f"So <answer> {right} </answer>.", line) == 1.0
    for wrong in ("7", "1 + 1", "7, 8"):
      hidden = not re.fullmatch(gym.HARMLESS.get(name, ".*"), wrong)
      expected = 0.0 if hidden else theirs(wrong, entry)
      assert gym.reward("", wrong, line) == expected
    assert line["messages"][1]["content"] == entry["question"]


def test_nothing_that_a_model_writes_is_run(tmp_path):
  names = ("countdown", "n_queens", "puzzle24", "spiral_matrix",
           "binary_matrix", "string_insertion")  # fmt: skip
  examples = [problems(name, 1)[0] for name in names]
  mark = tmp_path / "mark"
  started = time.monotonic()
  write = f"open({str(mark)!r}, 'w')"
  for text in (
    write, f"[{write}]", f"({write}).close()", "9**9**9", "9 ** 9 ** 9",
    "9*\n*9", "99999999999*9", "1" * 5000, "print(1)", "x", "9999999!",
    "[1]*99999999", "[[1]*99999]*9999", "[1]*99999*99", "1e99999999",
    "(1,)*99999999",
  ):  # fmt: skip
    for example in examples:
      assert gym.reward("", text, example) <= 0.01
  assert not mark.exists() and time.monotonic() - started < 5


@pytest.mark.parametrize(
  ("name", "options", "words"),
  [
    ("no_such", {}, "no_such"),
    ("chain_sum", {"nonsense": 1}, "nonsense"),
    ("chain_sum", {"min_terms": 9, "max_terms": 2}, "max_terms"),
    ("simple_integration", {}, "runs the answer as code"),
    ("graph_color", {}, "gives its own answer 0"),
    ("composite", {}, "composite"),
    (
      "complex_arithmetic",
      {},
      "complex_arithmetic: its verifier gives 'NaN' 1",
    ),
    ("coin_flip", {}, "gives '0' 1 on most problems"),
    ("game_of_life_halting", {}, "gives '.*' 1 on most problems"),
  ],
)
def test_what_cannot_be_graded_is_refused(name, options, words):
  with pytest.raises(UserError, match=words):
    problems(name, **options)


def test_a_score_lies_between_zero_and_one():
  lines = problems("spell_backward", 40)
  scores = {gym.reward("", line["entry"]["answer"], line) for line in lines}
  assert scores == {1.0}


@pytest.mark.parametrize("answer", ["x", "2 x 3", "[", "9" * 900, "\0"])
def test_an_answer_that_a_verifier_cannot_read_is_wrong(answer):
  (line,) = problems("prime_factorization", 1)
  assert gym.reward("", answer, line) <= 0.01


@pytest.mark.slow
def test_no_verifier_that_is_offered_likes_a_wrong_answer():
  """How many there are stands in tsd_jax/models/README.md."""
  offered = 0
  for name in reasoning_gym.factory.DATASETS:
    try:
      problems(name, 1)
    except UserError:
      continue
    offered += 1
  page = (ROOT / "tsd_jax" / "models" / "README.md").read_text()
  count = f"{offered} of its {len(reasoning_gym.factory.DATASETS)}"
  assert count in " ".join(page.split())


ONE_DIGIT = dict(min_terms=2, max_terms=2, min_digits=1, max_digits=1)


def test_no_problem_is_asked_twice_or_shown_and_asked():
  lines = list(gym.lines("chain_sum", ONE_DIGIT, 400, 0, "Be brief.", 3))
  shown = lines[0]["messages"][1:-1]
  asked = [line["messages"][-1]["content"] for line in lines]
  drawn = reasoning_gym.create_dataset(
    "chain_sum", size=400, seed=0, **ONE_DIGIT
  )
  answers = {entry["question"]: entry["answer"] for entry in drawn}
  assert len(asked) == len(set(asked)) == len(answers) - 3 < 300
  assert [m["role"] for m in shown] == ["user", "assistant"] * 3
  for question, answer in zip(shown[::2], shown[1::2], strict=True):
    assert question["content"] not in asked
    assert answer["content"] == answers[question["content"]]
  assert all(line["messages"][1:-1] == shown for line in lines)


def test_a_file_of_problems_is_made_once(tmp_path, monkeypatch):
  monkeypatch.setattr(gym.data, "default_data_dir", lambda: tmp_path)
  arguments = "chain_sum", ONE_DIGIT, 20, "Be brief."
  file = gym.problems_file(*arguments, shots=2)
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  assert lines == list(gym.lines("chain_sum", ONE_DIGIT, 20, 0, "Be brief.", 2))
  other = gym.problems_file(*arguments)
  assert other != file and other.exists()
  monkeypatch.delattr(gym, "lines")  # Nothing is drawn again.
  assert gym.problems_file(*arguments, shots=2) == file


def test_the_command_writes_a_file_once(tmp_path):
  file = tmp_path / "sums.jsonl"
  command = [
    sys.executable, "-m", "experiments.recipes.reasoning_gym_lines",
    "--dataset=chain_sum", "--count=3", '--options={"max_terms": 2}',
    f"--output={file}",
  ]  # fmt: skip
  done = [
    subprocess.run(
      command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    for _ in range(2)
  ]
  assert done[0].returncode == 0, done[0].stderr
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  assert len(lines) == 3 and lines[0]["messages"][0]["role"] == "system"
  assert done[1].returncode == 2 and "exists" in done[1].stderr
