"""A run's folder on disk: one writer, whole files, one config."""

import contextlib
import fcntl
import json
import os
import pathlib
import types
from collections.abc import Collection, Mapping
from typing import Any

from absl import logging

from tsd_jax.base import config_json
from tsd_jax.base.errors import UserError

# What a run's folder holds.
CONFIG = "config.json"
DATA = "data.json"  # A digest of each split's problems.
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
REWARD = "reward.npz"  # Of a reward that has parameters.
SAMPLES = "samples.json"
REPORT = "report.html"  # There if and only if a run is finished.
_LOCK = ".lock"
_NO_DATA: Mapping[str, str] = types.MappingProxyType({})


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


@contextlib.contextmanager
def writing(path: pathlib.Path, partial: pathlib.Path | None = None):
  """Says in one line that something cannot be written; leaves no part of it.

  Args:
    path: what is written, for the message.
    partial: a file that is there meanwhile.

  Raises:
    UserError: in place of an OSError.
  """
  try:
    yield
  except OSError as error:
    if partial is not None:
      with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
    raise UserError(
      f"{path} cannot be written ({error.strerror or error}): free some space "
      "or mend the storage, and the same command goes on"
    ) from error


def write_whole(file: pathlib.Path, text: str) -> None:
  """Writes a file whole: a reader finds the old text or the new.

  Raises:
    UserError: it cannot be written.
  """
  partial = file.with_suffix(".tmp")
  with writing(file, partial):
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)


def make(workdir: pathlib.Path) -> None:
  """Makes a run's folder where there is none.

  Raises:
    UserError: it cannot be made.
  """
  with writing(workdir):
    workdir.mkdir(parents=True, exist_ok=True)


def prepare(
  config: Any,
  workdir: pathlib.Path,
  data: Mapping[str, str] = _NO_DATA,
  *,
  fixed_length: bool = False,
  ignore: Collection[str] = (),
) -> None:
  """Writes config.json and data.json, or checks that they are the same run's.

  Args:
    config: the run's config.
    workdir: its folder, made where there is none.
    data: a digest of each split's problems (`tasks.data.digests`); without any
      data.json is left as it is.
    fixed_length: whether a run may not go on for longer, or end earlier, than
      it was begun for.
    ignore: names of other fields that may differ.

  Raises:
    UserError: if the folder holds a run with other settings or problems. Any
      mesh may go on with it.
  """
  ignore = ("mesh", *ignore, *(() if fixed_length else ("iterations",)))
  make(workdir)
  file = workdir / CONFIG
  if file.exists():
    saved = read_json(workdir, CONFIG)
    lines = config_json.difference(saved, config, ignore=ignore)
    if lines:
      raise UserError(
        f"{workdir} holds a run with other settings ({'; '.join(lines[:5])}): "
        "use another --workdir"
      )
  if splits := changed_splits(workdir, data):
    raise UserError(
      f"{workdir} holds a run on other problems: prompts or examples of "
      f"{' and '.join(splits)} have changed; bring them back, or use another "
      "--workdir"
    )
  write_whole(file, config_json.to_json(config))
  if data:
    write_whole(workdir / DATA, json.dumps(dict(data), indent=2) + "\n")


def changed_splits(
  workdir: str | pathlib.Path, data: Mapping[str, str]
) -> list[str]:
  """Names of splits whose problems are not those that a run began with.

  Args:
    workdir: the run's folder.
    data: digests of some splits, as they are now.
  """
  if not (pathlib.Path(workdir) / DATA).exists():
    return []
  saved = read_json(workdir, DATA)
  return [split for split in data if saved.get(split) != data[split]]


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
    UserError: if another process trains there, or nobody can.
  """
  lock = workdir / _LOCK
  with contextlib.ExitStack() as opened:
    with writing(lock):
      file = opened.enter_context(open(lock, "w"))
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
    self._told = False

  def write(self, rows: list[dict[str, Any]]) -> None:
    """Writes rows, and before them those that could not be written."""
    self._waiting += b"".join(json.dumps(r).encode() + b"\n" for r in rows)
    try:
      with open(self._file, "ab") as log:
        log.truncate(self._size)  # Part of a row may stand at the end.
        log.write(self._waiting)
    except OSError as error:
      if not self._told:  # Once, until it succeeds.
        logging.warning(
          "%s cannot be written (%s); its rows are kept and tried again",
          self._file,
          error,
        )
      self._told = True
      return
    self._told = False
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


def keep_rows(file: pathlib.Path, step: int) -> list[dict[str, Any]]:
  """Drops metrics rows past a checkpoint; the resumed run writes them again.

  Returns:
    The others.
  """
  if not file.exists():
    return []
  lines, rows = [], []
  for line in file.read_text().splitlines():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      continue  # A row half written when the run was killed.
    if row["step"] <= step:
      lines.append(line + "\n")
      rows.append(row)
  write_whole(file, "".join(lines))
  return rows
