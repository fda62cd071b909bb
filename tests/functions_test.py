"""Functions fit on a screen, and a letter of a name means one thing."""

import ast
import collections
import pathlib
import re

import pytest

from tsd_jax.base import types

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINES = 80

# Longer ones, and why. Nothing else may be.
LONG: dict[str, str] = {}

# A name with an axis suffix: small letters, then the axes after a last `_`.
_AXES = re.compile(r"(?<!\w)_?[a-z][a-z0-9_]*_([A-Z0-9]*[A-Z][A-Z0-9]*)(?!\w)")


def lengths(source: str) -> dict[str, int]:
  """Lines of every function, those in others too; the longest of a name."""
  found = collections.defaultdict(int)
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      lines = node.end_lineno - node.lineno + 1
      found[node.name] = max(found[node.name], lines)
  return dict(found)


def sources(*folders: str) -> dict[str, str]:
  return {
    str(file.relative_to(ROOT)): file.read_text()
    for folder in folders
    for file in sorted((ROOT / folder).rglob("*.py"))
  }


def test_functions_fit_on_a_screen():
  long = {
    f"{file}:{name}"
    for file, source in sources("tsd_jax", "launch", "experiments").items()
    for name, lines in lengths(source).items()
    if lines > LINES
  }
  assert long - set(LONG) == set(), "split them"
  assert set(LONG) - long == set(), "they are short now: take them off the list"


def test_lines_are_counted_of_the_whole_function():
  inner = "  def g():\n    pass\n"
  assert lengths("@a\ndef f(\n  x,\n):\n" + inner) == {"f": 5, "g": 2}


def legend() -> list[tuple[str, str]]:
  return re.findall(r"^  ([A-Z])  (\S.*)$", types.__doc__, re.MULTILINE)


def test_a_letter_has_one_meaning_and_a_meaning_one_letter():
  letters, meanings = zip(*legend(), strict=True)
  assert len(letters) > 20
  assert len(set(letters)) == len(letters)
  assert len(set(meanings)) == len(meanings)


def test_every_axis_is_in_the_legend():
  known = {letter for letter, _ in legend()}
  unknown = {
    f"{file}: {name[0]}"
    for file, source in sources("tsd_jax").items()
    for name in _AXES.finditer(source)
    if set(re.sub("[0-9]", "", name[1])) - known
  }
  assert not unknown


@pytest.mark.parametrize(
  ("text", "axes"),
  [
    ("x_RTD = params['value_hidden_2DD']", ["RTD", "2DD"]),
    ("self._prompt_QP[at_B1]", ["QP", "B1"]),
    ("LOG_ZERO + jax.Array + _BATCH + log_prob + x_2 + Score_X", []),
  ],
)
def test_names_with_axes_are_found(text, axes):
  assert _AXES.findall(text) == axes
