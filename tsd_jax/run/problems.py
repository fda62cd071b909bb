"""problems.json: how far a run solves each held-out problem, first and last."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tsd_jax.base import outside_files
from tsd_jax.base.errors import UserError
from tsd_jax.run import directory

TEXT = 300  # Characters of a prompt that are kept.
Asked = tuple[Sequence[str], np.ndarray]  # Texts of problems, and families.
Solved = Mapping[str, np.ndarray]  # By mode, of each problem, from 0 to 1.


class Problems(NamedTuple):
  """Held-out problems, and how far they are solved."""

  split: str
  prompts: Sequence[str]
  group_P: np.ndarray  # Families: equal where two problems are of one.
  solved: Mapping[int, Solved]  # By iteration: the first and the last.

  @property
  def last(self) -> Solved:
    """As of the newest evaluation."""
    return self.solved[max(self.solved)]


def write(folder: str | pathlib.Path, problems: Problems) -> None:
  """Writes a run's problems.json.

  Raises:
    UserError: it cannot be written.
  """
  content = {
    "split": problems.split,
    "prompts": [text[:TEXT] for text in problems.prompts],
    "families": [int(group) for group in problems.group_P],
    "solved": {
      str(step): {
        mode: [round(float(x), 4) for x in solved_Q]
        for mode, solved_Q in solved.items()
      }
      for step, solved in problems.solved.items()
    },
  }
  file = pathlib.Path(folder) / directory.PROBLEMS
  directory.write_whole(file, json.dumps(content) + "\n")


def read(folder: str | pathlib.Path) -> Problems | None:
  """Reads a run's problems.json; None where there is none.

  Raises:
    UserError: it is damaged.
  """
  file = pathlib.Path(folder) / directory.PROBLEMS
  try:
    found = outside_files.read_object(file)
  except outside_files.MissingFile:
    return None
  prompts, solved = found.get("prompts"), found.get("solved")
  families = found.get("families")
  if not (
    isinstance(prompts, list)
    and all(isinstance(text, str) for text in prompts)
    and _are_numbers(families, prompts)
    and isinstance(solved, dict)
    and solved
    and all(_is_solved(*item, prompts) for item in solved.items())
  ):
    raise UserError(f"{file} is damaged (it holds no problems): delete it")
  return Problems(
    str(found.get("split")),
    prompts,
    np.asarray(families, int),
    {
      int(step): {mode: np.asarray(x, float) for mode, x in modes.items()}
      for step, modes in solved.items()
    },
  )


def _is_solved(step: str, modes: Any, prompts: list[str]) -> bool:
  return (
    step.isdecimal()
    and isinstance(modes, dict)
    and all(_are_numbers(values, prompts) for values in modes.values())
  )


def _are_numbers(values: Any, prompts: list[str]) -> bool:
  """Whether there is a number for each prompt."""
  return (
    isinstance(values, list)
    and len(values) == len(prompts)
    and all(map(outside_files.is_number, values))
  )
