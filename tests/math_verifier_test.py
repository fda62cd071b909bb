"""math-verify behind a reward: answers that are equal, however written."""

import builtins
import importlib
import sys

import pytest

from tsd_jax.base.errors import UserError
from tsd_jax.rewards.pool import Pool, PoolConfig

NAME = "tsd_jax.rewards.verifiers.math"


@pytest.fixture(scope="module")
def verifier():
  pytest.importorskip("math_verify", reason="needs the extra: verify")
  return importlib.import_module(NAME)


@pytest.mark.parametrize(
  ("answer", "response", "reward"),
  [
    ("3/4", r"It is \boxed{\frac{3}{4}}.", 1.0),
    ("3/4", "The answer is 0.75", 1.0),
    ("3/4", "The answer is 0.8", 0.0),
    (r"$\frac{3}{4}$", "$3/4$", 1.0),
    (12, "12", 1.0),
    ("-7", r"\boxed{-7}", 1.0),
    ("7", r"\boxed{-7}", 0.0),
    ("x^2 + 2x + 1", r"$(x+1)^2$", 1.0),
    ("x^2 + 2x + 1", r"$(x-1)^2$", 0.0),
    (r"\{1, 2\}", r"\boxed{\{2, 1\}}", 1.0),
    ("7", "I do not know", 0.0),
    ("7", "", 0.0),
    ("7", "7" * 3000, 0.0),
  ],
)
def test_answers_that_are_equal_earn_one(verifier, answer, response, reward):
  assert verifier.reward("", response, {"answer": answer}) == reward


def test_an_answer_without_mathematics_is_the_files_fault(verifier):
  with pytest.raises(ValueError, match="no mathematics in the answer ''"):
    verifier.reward("", "7", {"answer": ""})


def test_it_runs_in_workers(verifier):
  workers = Pool(f"{NAME}.reward", PoolConfig(workers=1))
  asked = [("p", f"$1/{n}$", {"answer": "0.25"}) for n in (2, 4)]
  got = [float(x) for x in workers.grade(asked)]
  counts = workers.take_counts()
  workers.close()
  assert got == [0.0, 1.0] and counts == {"graded": 2}


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
  load = builtins.__import__

  def missing(name, *args):
    if name.startswith("math_verify"):
      raise ModuleNotFoundError("No module named 'math_verify'")
    return load(name, *args)

  monkeypatch.delitem(sys.modules, NAME, raising=False)
  monkeypatch.setattr(builtins, "__import__", missing)
  with pytest.raises(UserError) as error:
    importlib.import_module(NAME)
  (line,) = str(error.value).splitlines()
  assert "pip install math-verify" in line
