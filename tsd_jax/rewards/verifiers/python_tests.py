"""Whether a function that a response writes passes its tests.

`TextConfig(file=..., reward=python_tests.reward)`, with lines as HumanEval has:
{"prompt": ..., "entry_point": "add", "test": "def check(candidate): ..."}.
The code runs where the reward runs: in a process for this call alone
(`rewards/isolation.py`). Nothing keeps it from its own tests there: code that
looks for them can make itself pass.
"""

import re
from typing import Any

_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def reward(prompt: str, response: str, example: dict[str, Any]) -> float:
  """1 where all tests pass, else 0; code that hangs is killed and counted.

  Args:
    prompt: what the model saw.
    response: what it wrote: the whole function or, where the line's prompt is
      the beginning of one, what follows. Of several blocks of code, the last.
    example: a line of the file. Its `test` is code that raises where the
      function is wrong; it may define `check`, which is called with the
      function. `entry_point` is the function's name.

  Raises:
    ValueError: the test is no Python.
  """
  del prompt
  test = _compiled(example["test"], "test")
  if test is None:
    raise ValueError(f"the test of {example['entry_point']} is no Python")
  program = _program(example.get("prompt", ""), response)
  if program is None:
    return 0.0
  names: dict[str, Any] = {"__name__": "response"}
  try:
    exec(program, names)
    function = names[example["entry_point"]]
    exec(test, names)
    if "check" in names:
      names["check"](function)
  except BaseException:  # SystemExit too: the tests did not come to their end.
    return 0.0
  return 1.0


def _program(beginning: str, response: str):
  """A response's code after the prompt's, if that is code, or by itself."""
  blocks = _BLOCK.findall(response)
  code = blocks[-1] if blocks else response
  return _compiled(f"{beginning}\n{code}", "response") or _compiled(
    code, "response"
  )


def _compiled(code: str, name: str):
  try:
    return compile(code, name, "exec")
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return None  # Null characters and brackets without end, too.
