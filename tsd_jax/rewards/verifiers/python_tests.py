"""Whether a function that a response writes passes its tests.

`TextConfig(file=..., reward=python_tests.reward)`, with lines as HumanEval has:
{"prompt": ..., "entry_point": "add", "test": "def check(candidate): ..."}.
The code runs where the reward runs: in a process for this call alone
(`rewards/isolation.py`). Nothing keeps it from its own tests there: code that
looks for them can make itself pass.
"""

import re
from typing import Any

# A block of code in whatever language; the last one may lack its end.
_BLOCK = re.compile(
  r"^[ \t]*```([^\n`]*)\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)",
  re.DOTALL | re.MULTILINE,
)


def reward(prompt: str, response: str, example: dict[str, Any]) -> float:
  """1 where all tests pass, else 0; code that hangs is killed and counted.

  Args:
    prompt: what the model saw.
    response: what it wrote: the whole function or, where the line's prompt is
      the beginning of one, what follows. Of several blocks of code, the last
      that is Python by its name, or has none.
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
    # The response may have a `check` of its own, which it calls.
    own, names = names.get("check"), dict(names)
    exec(test, names)
    check = names.get("check")
    if check is not None and check is not own:
      check(function)
  except BaseException:  # SystemExit too: the tests did not come to their end.
    return 0.0
  return 1.0


def _program(beginning: str, response: str):
  """A response's code after the prompt's, if that is code, or by itself."""
  blocks = [
    code
    for language, code in _BLOCK.findall(response.replace("\r\n", "\n"))
    if re.match(r"\s*(i?py|$)", language, re.IGNORECASE)
  ]
  code = blocks[-1] if blocks else response
  return _compiled(f"{beginning}\n{code}", "response") or _compiled(
    code, "response"
  )


def _compiled(code: str, name: str):
  try:
    return compile(code, name, "exec")
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return None  # Null characters and brackets without end, too.
