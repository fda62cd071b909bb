"""A run's folder on disk: one writer, whole files, one config."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Collection
from typing import Any

from absl import logging

from tsd_jax.base import config_json
from tsd_jax.base.errors import UserError

# What a run's folder holds.
CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
REWARD = "reward.npz"  # Of a reward that has parameters.
SAMPLES = "samples.json"
REPORT = "report.html"  # There if and only if a run is finished.
_LOCK = ".lock"


def read_json(workdir: str | pathlib.Path, name: str) -> Any:
  """Reads one of a run's JSON files.

  Args:
    workdir: the run's folder.
    name: the file's.

  Raises:
    UserError: if it is not there, or damaged.
  """
  file = pathlib.Path(workdir) / name
  try:
    return json.loads(file.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise UserError(
      f"no run in {workdir}: {file} is missing; train one with "
      f"python -m launch.train --workdir={workdir}"
    ) from None
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise UserError(f"{file} is damaged ({error}): delete it") from error


def write_whole(file: pathlib.Path, text: str) -> None:
  """Writes a file whole: a reader finds the old text or the new."""
  partial = file.with_suffix(".tmp")
  partial.write_text(text, encoding="utf-8")
  os.replace(partial, file)


def prepare(
  config: Any,
  workdir: pathlib.Path,
  *,
  fixed_length: bool = False,
  ignore: Collection[str] = (),
) -> None:
  """Writes config.json, or checks that the folder's is the same run.

  Args:
    config: the run's config.
    workdir: its folder, made where there is none.
    fixed_length: whether a run may not go on for longer, or end earlier, than
      it was begun for.
    ignore: names of other fields that may differ.

  Raises:
    UserError: if the folder holds a run with other settings. Any mesh may go on
      with it.
  """
  ignore = ("mesh", *ignore, *(() if fixed_length else ("iterations",)))
  workdir.mkdir(parents=True, exist_ok=True)
  file = workdir / CONFIG
  if file.exists():
    saved = read_json(workdir, CONFIG)
    lines = config_json.difference(saved, config, ignore=ignore)
    if lines:
      raise UserError(
        f"{workdir} holds a run with other settings ({'; '.join(lines[:5])}): "
        "use another --workdir"
      )
  write_whole(file, config_json.to_json(config))


def results(config: Any, workdir: pathlib.Path) -> dict[str, Any] | None:
  """The last evaluation of a finished run; None where there is more to do."""
  # One that is finished may be a shorter one.
  if not (workdir / REPORT).exists():
    return None
  saved = read_json(workdir, CONFIG)
  last = read_rows(workdir)[-1]
  other = config_json.difference(saved, config, ignore=("iterations", "mesh"))
  return None if other or last["step"] < config.iterations else last["eval"]


@contextlib.contextmanager
def sole_writer(workdir: pathlib.Path):
  """Keeps other processes out of a run's folder; the lock dies with us.

  Raises:
    UserError: if another process trains there.
  """
  with open(workdir / _LOCK, "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise UserError(
        f"another process trains in {workdir}: wait for it, or use another "
        "--workdir"
      ) from None
    yield


class RowLog:
  """Appends rows to metrics.jsonl; a full disk loses none of them."""

  def __init__(self, file: pathlib.Path):
    """Goes on behind the file's rows."""
    self._file = file
    self._size = file.stat().st_size if file.exists() else 0
    self._waiting = b""

  def write(self, rows: list[dict[str, Any]]) -> None:
    """Writes rows, and before them those that could not be written."""
    self._waiting += b"".join(json.dumps(r).encode() + b"\n" for r in rows)
    try:
      with open(self._file, "ab") as log:
        log.truncate(self._size)  # Part of a row may stand at the end.
        log.write(self._waiting)
    except OSError as error:
      logging.warning(
        "%s cannot be written (%s); its rows are kept and tried again",
        self._file,
        error,
      )
      return
    self._size += len(self._waiting)
    self._waiting = b""

  def finish(self) -> None:
    """Writes what waits.

    Raises:
      UserError: if that is still impossible.
    """
    self.write([])
    if self._waiting:
      raise UserError(
        f"the last rows of {self._file} could not be written: free some space, "
        "and the same command resumes"
      )


def read_rows(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
  """Reads a run's metrics, one row an iteration.

  Raises:
    UserError: if the folder holds no run, or a damaged file.
  """
  file = pathlib.Path(workdir) / METRICS
  try:
    return [json.loads(line) for line in file.read_text().splitlines()]
  except FileNotFoundError:
    raise UserError(f"no run in {workdir}: {file} missing") from None
  except json.JSONDecodeError as error:
    raise UserError(f"{file} is damaged: {error}") from error


def keep_rows(file: pathlib.Path, step: int) -> None:
  """Drops metrics rows past a checkpoint; the resumed run writes them again."""
  if not file.exists():
    return
  rows = []
  for line in file.read_text().splitlines():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      continue  # A row half written when the run was killed.
    if row["step"] <= step:
      rows.append(line + "\n")
  write_whole(file, "".join(rows))
