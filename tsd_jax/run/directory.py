"""A run's folder on disk: one writer, whole files, one config."""

import contextlib
import errno
import fcntl
import itertools
import json
import pathlib
import shutil
import types
from collections.abc import Collection, Mapping
from typing import IO, Any

from absl import logging

from tsd_jax.base import config_json, outside_files
from tsd_jax.base.errors import UserError
from tsd_jax.base.output_files import write_whole, writing

# What a run's folder holds.
CONFIG = "config.json"
DATA = "data.json"  # A digest of each split's problems.
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
REWARD = "reward.npz"  # Of a reward that has parameters.
SAMPLES = "samples.json"  # Written last: there if a run is finished.
REPORT = "report.html"
PROBLEMS = "problems.json"  # How far each held-out problem is solved.
AUDIT = "audit.json"  # The best-paid answers that a second verifier rejects.
BROKEN = "broken.txt"  # Why a run has ended whose numbers broke.
COUNTS = "counts.json"  # What a comparison counts of a run.
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
    return outside_files.read_json(file)
  except outside_files.MissingFile:
    raise UserError(
      f"no run in {workdir}: {file} is missing; train one with "
      f"python -m launch.train --workdir={workdir}"
    ) from None


def read_config(
  workdir: str | pathlib.Path, *, of_run: bool = True
) -> dict[str, Any]:
  """Reads a folder's config.json, as it was saved.

  Args:
    workdir: the folder.
    of_run: whether it is a run's; that of a comparison names no task itself.

  Raises:
    UserError: if it is not there, or damaged.
  """
  saved = read_json(workdir, CONFIG)
  task = saved.get("task") if isinstance(saved, dict) else None
  named = isinstance(task, dict) and isinstance(task.get("__class__"), str)
  if not isinstance(saved, dict) or (of_run and not named):
    raise UserError(
      f"{pathlib.Path(workdir) / CONFIG} names no task: it is no config of a "
      "run, or damaged"
    )
  return saved


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
      mesh may go on with it, log it anywhere, and go on after its audit.
  """
  length = () if fixed_length else ("iterations",)
  ignore = ("mesh", "log", "audit.stop", *length, *ignore)
  make(workdir)
  file = workdir / CONFIG
  if outside_files.is_there(file):
    saved = read_config(workdir, of_run=hasattr(config, "task"))
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
  file = pathlib.Path(workdir) / DATA
  if not file.exists():
    return []
  saved = outside_files.read_object(file)
  return [split for split in data if saved.get(split) != data[split]]


def finished(workdir: str | pathlib.Path) -> bool:
  """Whether a run has made all its iterations, and its report."""
  return (pathlib.Path(workdir) / SAMPLES).exists()


def floor(workdir: str | pathlib.Path) -> float | None:
  """Accuracy of the best constant answer; None where nobody has counted it."""
  try:
    found = outside_files.read_object(pathlib.Path(workdir) / COUNTS)
  except outside_files.MissingFile:
    return None
  value = found.get("constant")
  return value if outside_files.is_number(value) and value else None


def results(config: Any, workdir: pathlib.Path) -> dict[str, Any] | None:
  """The last evaluation of a finished run; None where there is more to do."""
  # One that is finished may be a shorter one.
  if not finished(workdir):
    return None
  saved, last = read_config(workdir), read_rows(workdir)[-1]
  ignore = ("iterations", "mesh", "log", "audit.stop")
  other = config_json.difference(saved, config, ignore=ignore)
  short = last["step"] < config.iterations
  return None if other or short else last.get("eval")


@contextlib.contextmanager
def sole_writer(workdir: pathlib.Path):
  """Makes a run's folder, and keeps others out of it; the lock dies with us.

  Raises:
    UserError: if another process trains there, or nothing can be written.
  """
  with _lock_file(workdir) as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(
        f"another process trains in {workdir}: wait for it, or use another "
        "--workdir"
      ) from None
    except OSError as error:  # Lustre without -o flock, some mounts of buckets.
      logging.warning(
        "the file system of %s knows no locks (%s): nothing keeps another "
        "process from training there too",
        workdir,
        error.strerror,
      )
    yield


def forget_checkpoints(workdir: pathlib.Path) -> None:
  """Deletes a training's checkpoints and its lock, once it is over."""
  for step in (workdir / CHECKPOINTS).glob("[0-9]*"):
    shutil.rmtree(step, ignore_errors=True)
  with contextlib.suppress(OSError):  # Something else may be there.
    (workdir / CHECKPOINTS).rmdir()
  (workdir / _LOCK).unlink(missing_ok=True)


def _lock_file(workdir: pathlib.Path) -> IO[str]:
  checkpoints = workdir / CHECKPOINTS
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    # No link that leads nowhere, and no file.
    checkpoints.mkdir(exist_ok=True)
    lock = workdir / _LOCK
    if lock.exists() and not lock.is_file():  # A FIFO would wait for a reader.
      raise FileExistsError(errno.EEXIST, "no regular file", lock)
    return open(lock, "w")
  except (OSError, ValueError) as error:
    raise UserError(
      f"--workdir={workdir} cannot be written ({error}): use another one"
    ) from None


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
    self._waiting += b"".join(
      json.dumps(r, allow_nan=False).encode() + b"\n" for r in rows
    )
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
    lines = _whole_lines(file)
  except outside_files.MissingFile:
    raise UserError(f"no run in {workdir}: {file} missing") from None
  rows = [
    _row(line, f"{file}, line {number}")
    for number, line in enumerate(lines, 1)
    if line
  ]
  if not rows:
    raise UserError(f"{file} holds no rows: the run has made no iteration yet")
  return rows


def _whole_lines(file: pathlib.Path) -> list[str]:
  """Lines of metrics.jsonl, of runs of a million iterations too.

  A last line without an end is half written: a run is at it, or was killed.
  """
  *lines, _ = outside_files.read_lines(
    file, 16 * outside_files.LINES_BYTES, 16 * outside_files.VALUES
  )
  return lines


def _row(line: str, where: str) -> dict[str, Any]:
  """A row that has what every reader of rows takes for granted.

  Raises:
    UserError: it has not.
  """
  row = outside_files.parse_json(line, where)
  evaluated = row.get("eval", {}) if isinstance(row, dict) else None
  if not isinstance(evaluated, dict) or not _is_audit(row.get("audit", {})):
    raise UserError(f"{where} is no row of a run: remove that line")
  outside_files.integer(row.get("step"), f"{where}: step")
  counts = row.get("ledger")
  counts = counts if isinstance(counts, dict) else {}
  for part, count in counts.items():
    outside_files.integer(count, f"{where}: ledger.{part}", high=2**63)
  needed = {"ledger.total": counts.get("total")}
  for mode, result in evaluated.items():
    needed["seconds"] = row.get("seconds")
    for name in ("accuracy", "stderr"):
      value = result.get(name) if isinstance(result, dict) else None
      needed[f"eval.{mode}.{name}"] = value
  for name, value in needed.items():
    if not outside_files.is_number(value):
      raise UserError(
        f"{where}: {name} is {outside_files.shown(value)}, no number: remove "
        "that line"
      )
  return row


def _is_audit(found: Any) -> bool:
  """Whether it is what a row holds of an audit."""
  alarms = found.get("alarms", {}) if isinstance(found, dict) else None
  return isinstance(alarms, dict) and all(
    isinstance(why, str) for why in alarms.values()
  )


def newest_step(file: pathlib.Path) -> int:
  """The last iteration that metrics.jsonl has a row of; -1 without any."""
  if not outside_files.is_there(file):
    return -1
  lines = _whole_lines(file)
  return _row(lines[-1], str(file))["step"] if lines else -1


def keep_rows(file: pathlib.Path, step: int) -> list[dict[str, Any]]:
  """Drops metrics rows past a checkpoint; the resumed run writes them again.

  Returns:
    The others.

  Raises:
    UserError: if the file is damaged before its last line.
  """
  if not outside_files.is_there(file):
    return []
  lines = _whole_lines(file)
  rows = [
    _row(line, f"{file}, line {number}") for number, line in enumerate(lines, 1)
  ]
  kept = [row["step"] <= step for row in rows]
  write_whole(file, "".join(f"{x}\n" for x in itertools.compress(lines, kept)))
  return list(itertools.compress(rows, kept))
