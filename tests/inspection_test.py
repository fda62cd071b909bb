"""Problems of a run by place and text, and the command that shows trees."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from tests import small_experiment
from tsd_jax.base.errors import UserError
from tsd_jax.base.ledger import Ledger
from tsd_jax.run import inspection, load
from tsd_jax.run.experiment import initial_params
from tsd_jax.search import explorer
from tsd_jax.tasks import data

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = small_experiment.get_config()
TASK = CONFIG.task
TOKENIZER = TASK.make().tokenizer


def problems():
  return data.load_problems(TASK, "validation")


def text_of(place):
  return TOKENIZER.decode(problems().tokens_BP[place])


def test_a_problem_is_found_by_its_place():
  found = inspection.find_example(TASK, "validation", 17)
  assert str(found) == "validation 17" and len(found.prompts) == 1
  np.testing.assert_array_equal(
    found.prompts.tokens_BP[0], problems().tokens_BP[17]
  )
  assert found.prompts.example_B[0] == problems().example_B[17]


def test_a_problem_is_found_by_its_text():
  for place in (0, 17, 511):
    found = inspection.find_prompt(TASK, f"  {text_of(place)} ")
    assert str(found) == f"validation {place}"
  # Its numbers in another order: that is asked, of the same problem.
  place = next(i for i in range(99) if len(set(text_of(i).split()[:3])) == 3)
  a, b, c, *rest = text_of(place).split()
  turned = inspection.find_prompt(TASK, " ".join([c, a, b, *rest]))
  assert str(turned) == f"validation {place}"
  assert TOKENIZER.decode(turned.prompts.tokens_BP[0]).split()[:3] == [c, a, b]
  assert turned.prompts.example_B[0] == problems().example_B[place]


def test_a_text_that_others_begin_or_end_with_is_itself(tmp_path):
  pytest.importorskip("tokenizers", reason="needs the extra: text")
  pytest.importorskip("jinja2", reason="needs the extra: text")
  from tests.grading import letters
  from tests.text_tokenizer_test import write_folder
  from tsd_jax.tasks.text import TextConfig

  file = tmp_path / "lines.jsonl"
  texts = ["add 2 and 3:", "please add 2 and 3:", "add 2 and 3: now"]
  file.write_text(
    "".join(json.dumps({"prompt": x, "answer": "5"}) + "\n" for x in texts)
  )
  config = TextConfig(
    file=str(file), tokenizer=str(write_folder(tmp_path / "t")),
    reward=letters, prompt_length=24, response_length=8, correct_at=0.3,
    validation_size=1, test_size=1,
  )  # fmt: skip
  found = inspection.find_prompt(config, "add 2 and 3:")
  said = config.make().tokenizer.decode(
    found.prompts.tokens_BP[0][: found.prompts.length_B[0]]
  )
  assert said.strip() == "add 2 and 3:"
  with pytest.raises(UserError, match="3 problems of this run have '2 and 3:'"):
    inspection.find_prompt(config, "2 and 3:")


@pytest.mark.parametrize("place", [-1, 512])
def test_a_place_outside_of_the_split_is_one_line(place):
  with pytest.raises(UserError, match=rf"--example={place} .* use 0 to 511"):
    inspection.find_example(TASK, "validation", place)


@pytest.mark.parametrize(
  ("text", "words"),
  [
    (" ", "--prompt is empty"),
    ("1 1 1 = 99", "no problem of this run asks '1 1 1 = 99': name one by"),
    ("three and four", "no problem of this run asks 'three and four'"),
    ("= 21", "problems of this run have '= 21' in their prompt, such as train"),
    ("x" * 99, r"asks 'x{60}…'"),
  ],
)
def test_a_text_that_asks_nothing_is_one_line(text, words):
  with pytest.raises(UserError, match=words):
    inspection.find_prompt(TASK, text)


def test_the_search_is_the_run_s_own_of_one_tree():
  def chosen(n):
    return inspection.chosen_search(CONFIG, n, stop_when_solved=False)

  assert chosen(None).num_simulations == CONFIG.search.num_simulations
  assert chosen(5).num_simulations == 5
  assert not chosen(5).rule.stop_when_solved
  with pytest.raises(UserError, match="--num_simulations=0"):
    chosen(0)
  with pytest.raises(UserError, match="num_simulations"):
    chosen(10**9)  # No device has room for it.


def test_start_and_policy_search_the_same_problem(monkeypatch, tmp_path):
  graphdef, params = initial_params(CONFIG)
  run = load.Run(CONFIG, graphdef, params, 3, Ledger())
  monkeypatch.setattr(load, "open_run", lambda workdir: run)
  search = inspection.chosen_search(CONFIG, None, stop_when_solved=False)
  problem = inspection.find_example(TASK, "validation", 17)
  start, policy = inspection.trees(
    tmp_path, problem, search, seed=0, beside_start=True
  )
  assert (start["name"], policy["name"]) == ("start", "iteration 3")
  # Here they have the same parameters.
  assert start["nodes"] == policy["nodes"] and len(start["nodes"]) == 9
  assert start["facts"] == {"problem": "validation 17", "rule": "best_first"}
  assert start["prompt"] == text_of(17)
  assert explorer.summary(policy).startswith("iteration 3: 8 simulations, 9 ")
  (alone,) = inspection.trees(
    tmp_path, problem, search, seed=0, beside_start=False
  )
  assert alone == policy


# The command.


def inspect(*flags, cwd=ROOT):
  return subprocess.run(
    [sys.executable, "-m", "launch.inspect", *flags],
    cwd=cwd, capture_output=True, text=True, timeout=600, check=False,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
  )  # fmt: skip


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--example=1"], "neither of --workdir and --model given: give one"),
    (["--workdir=x"], "neither of --example and --prompt given: give one"),
    (["--model=x", "--prompt=y"], "--reward=FILE.py:NAME is missing"),
    (["--workdir=nowhere", "--example=1"], "no run in nowhere"),
    (
      ["--model=x", "--prompt=y", "--reward=none.py:f"],
      "none.py:f: there is no file",
    ),
  ],
)
def test_bad_flags_are_one_line(flags, message):
  done = inspect(*flags)
  assert done.returncode == 2
  (line,) = [x for x in done.stderr.splitlines() if x.startswith("error:")]
  assert message in line and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_model_with_a_reward_is_searched(tmp_path):
  pytest.importorskip("tokenizers", reason="needs the extra: text")
  pytest.importorskip("jinja2", reason="needs the extra: text")
  from tests import small_text
  from tsd_jax.models import hf

  tokenizer, config, params = small_text.random_model(tmp_path)
  hf.save(tmp_path / "m", config, params, tokenizer, max_length=512)
  (tmp_path / "mine.py").write_text(
    "def reward(prompt, response):\n  return min(1, len(response) / 9)\n"
  )
  done = inspect(
    "--model=m", "--prompt=Say <b>a</script>", "--reward=mine.py:reward",
    "--num_simulations=8", "--max_tokens=6", cwd=tmp_path,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "8 simulations" in done.stdout and "tree.html" in done.stdout
  page = (tmp_path / "tree.html").read_text()
  (saved,) = re.findall(r'id="data">(.*?)</script>', page)
  (tree,) = json.loads(saved)["trees"]
  assert "<b>a</script>" in tree["prompt"]
