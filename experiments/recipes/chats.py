"""Chats with worked examples, as files of text tasks."""

import hashlib
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from tsd_jax.run import directory
from tsd_jax.tasks import data

Message = dict[str, str]


def opening(
  system: str, examples: Iterable[tuple[str, str]]
) -> tuple[Message, ...]:
  """What a chat begins with: the system's message, and answered questions."""
  turns = [("system", system)]
  for asked, answered in examples:
    turns += [("user", asked), ("assistant", answered)]
  return tuple({"role": role, "content": text} for role, text in turns)


def write(name: str, lines: Iterable[dict[str, Any]]) -> pathlib.Path:
  """Writes lines into the folder of datasets, once.

  Args:
    name: how the file's name begins; a digest of the lines follows.
    lines: of a text task.

  Returns:
    The file, for `TextConfig.file`.
  """
  text = "".join(json.dumps(line) + "\n" for line in lines)
  digest = hashlib.sha256(text.encode()).hexdigest()[:8]
  file = data.default_data_dir() / f"{name}_{digest}.jsonl"
  if not file.is_file():
    file.parent.mkdir(parents=True, exist_ok=True)
    directory.write_whole(file, text)
  return file
