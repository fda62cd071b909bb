"""Countdown in words: chats that show worked examples, and their grader.

The problems are those of `tsd_jax/tasks/countdown_problems.py`; a language
model sees them as "Make 12 from 3 and 4." and answers "3 * 4". `reward` is what
a user would write for any verifier: text in, a number out.
"""

import ast
import fractions
import operator
import pathlib
import random
import re
from collections.abc import Iterator

from experiments.recipes import chats
from tsd_jax.tasks import countdown_problems

SYSTEM = "Use every number once with + - * /."
THINK = (
  SYSTEM + " Think in short lines, one trial each. Then write a last line that "
  'begins with "Answer:" and gives the sum alone, such as Answer: (3 + 4) * 2'
)
EXAMPLES = {
  2: (((3, 4), 12, "3 * 4"), ((9, 2), 7, "9 - 2"),
      ((8, 4), 2, "8 / 4"), ((5, 6), 11, "5 + 6")),
  3: (((3, 4, 2), 10, "3 * 4 - 2"), ((9, 2, 5), 16, "9 + 2 + 5"),
      ((8, 4, 6), 8, "8 / 4 + 6"), ((5, 7, 3), 36, "(5 + 7) * 3")),
}  # fmt: skip
LONGEST = 64  # Characters of an answer that is read at all.
ILLEGAL, LEGAL = 0.05, 0.1  # Rewards of other numbers, and of another value.
# No comments, other notations of numbers, or line ends, which Python reads too.
_SUM = re.compile(r"[0-9+\-*/() ]+")
_OPERATORS = {
  ast.Add: operator.add,
  ast.Sub: operator.sub,
  ast.Mult: operator.mul,
  ast.Div: operator.truediv,
}


def problems_file(
  numbers: int,
  max_number: int,
  *,
  think: bool = False,
  most: int | None = None,
) -> pathlib.Path:
  """Writes solvable problems into the folder of datasets.

  Args:
    numbers: how many are given, 2 or 3; any number from 2 on with `think`.
    max_number: the largest of them.
    think: ask for lines of thought before the answer instead of showing
      examples; `reasoned` grades that.
    most: how many problems, drawn from all; all by default.

  Returns:
    The file, for `TextConfig.file`.
  """
  found = list(lines(numbers, max_number, think=think))
  if most is not None and most < len(found):
    found = random.Random(0).sample(found, most)
  return chats.write(f"countdown_words_{numbers}_{max_number}", found)


def lines(
  numbers: int, max_number: int, *, think: bool = False
) -> Iterator[dict]:
  """The problems as lines of a text task; those of the examples are left out.

  Numbers stand in a random order, the same at every call.
  """
  sizes = countdown_problems.Sizes(
    numbers, max_number, min_target=1, max_target=99, max_value=199
  )
  examples = () if think else EXAMPLES[numbers]
  shown = {(tuple(sorted(given)), target) for given, target, _ in examples}
  opening = chats.opening(
    THINK if think else SYSTEM,
    ((ask(given, target), answer) for given, target, answer in examples),
  )
  rng = random.Random(0)
  for given, target in countdown_problems.all_problems(sizes):
    if (given, target) not in shown:
      order = rng.sample(given, len(given))
      yield {
        "messages": [*opening, {"role": "user", "content": ask(order, target)}],
        "problem": f"{' '.join(map(str, given))} -> {target}",
        "family": " ".join(map(str, given)),
        "numbers": list(given),
        "target": target,
      }


def ask(numbers, target: int) -> str:
  """The user's words."""
  *first, last = map(str, numbers)
  return f"Make {target} from {', '.join(first)} and {last}."


def reward(prompt: str, response: str, example: dict) -> float:
  """1 for the target, less for a wrong value, for other numbers, for no sum.

  Args:
    prompt: what the model saw.
    response: what it wrote, such as "3 * 4".
    example: the line of the file.
  """
  del prompt
  response = response.strip()
  if len(response) > LONGEST or not _SUM.fullmatch(response):
    return 0.0
  try:
    # A tree of syntax, which is walked here and never run.
    tree = ast.parse(response, mode="eval").body
    used: list[int] = []
    value = _value(tree, used)
  except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
    return 0.0
  if sorted(used) != sorted(example["numbers"]):
    return ILLEGAL
  return 1.0 if value == example["target"] else LEGAL


def reasoned(prompt: str, response: str, example: dict) -> float:
  """The reward of what follows the last "Answer:"; 0 where there is none."""
  _, found, answer = response.rpartition("Answer:")
  return reward(prompt, answer, example) if found else 0.0


def _value(node: ast.AST, used: list[int]) -> fractions.Fraction:
  """Value of an expression of whole numbers, which are noted in `used`."""
  match node:
    case ast.BinOp(left, op, right) if type(op) in _OPERATORS:
      apply = _OPERATORS[type(op)]
      return apply(_value(left, used), _value(right, used))
    case ast.Constant(number) if type(number) is int:
      used.append(number)
      return fractions.Fraction(number)
  raise ValueError(f"{type(node).__name__} is no part of a sum")
