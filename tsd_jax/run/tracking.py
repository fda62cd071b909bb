"""Logs a run with services beside its folder; none of them ever ends a run.

`metrics.jsonl` comes first and holds everything. A service that fails is told
of once and left out from then on. Only the leading process logs.
"""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from tsd_jax.base import outside_files
from tsd_jax.base.errors import UserError
from tsd_jax.run import directory, trackers
from tsd_jax.run.trackers import SERVICES, Opening, Tracker

FILE = "tracking.json"  # What each service calls the run, in its folder.


def services(log: str) -> list[str]:
  """Names in a list such as "tensorboard,wandb", each once."""
  names = [name.strip() for name in log.split(",")]
  return list(dict.fromkeys(name for name in names if name))


def violations(log: str) -> Iterator[str]:
  """What is wrong with such a list."""
  for name in services(log):
    if name not in SERVICES:
      yield f"log={name!r} is unknown: use {', '.join(SERVICES)}"


def check(log: str, runs: int = 1) -> None:
  """Refuses services that are not installed, before anything is computed.

  Args:
    log: names, with commas.
    runs: that train in one program.

  Raises:
    UserError: naming the command that installs what is missing.
  """
  names = services(log)
  missing = [n for n in names if not trackers.is_installed(n)]
  if missing:
    packages = " ".join(SERVICES[name].package for name in missing)
    raise UserError(
      f"log={log} needs what is not installed: pip install {packages}"
    )
  if runs > 1 and "trackio" in names:
    raise UserError(
      f"log={log}: trackio logs one run a process, and {runs} train in this "
      "program: train them one by one, or log them elsewhere"
    )


class Tracking:
  """The services of a run."""

  def __init__(
    self,
    opened: Mapping[str, Tracker],
    known: dict[str, dict[str, Any]],
    file: pathlib.Path,
  ):
    """Nothing is written yet.

    Args:
      opened: by name.
      known: what tracking.json says: of each service the run's `id` there, and
        the last `step` that it has.
      file: tracking.json, which follows.
    """
    self._opened, self._known, self._file = dict(opened), known, file

  def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
    """Logs rows, but those that a service has from before."""
    flat = [trackers.flat(row) for row in rows]
    for name in list(self._opened):
      own = self._known[name]
      new = [row for row in flat if row.step > own["step"]]
      if new and self._try(name, lambda tracker, new=new: tracker.write(new)):
        own["step"] = new[-1].step
        self._keep()

  def _keep(self) -> None:
    """Writes tracking.json; on a full disk the next call does."""
    with contextlib.suppress(UserError):
      text = json.dumps(self._known, indent=2) + "\n"
      directory.write_whole(self._file, text)

  def finish(
    self, step: int, shown: Sequence[Mapping[str, Any]], page: str
  ) -> None:
    """Logs what there is at the end of a run.

    Args:
      step: the last iteration.
      shown: samples.json.
      page: report.html.
    """

    def log(tracker: Tracker) -> None:
      for table in trackers.tables(shown):
        tracker.table(step, table)
      tracker.page(step, "report", page)

    for name in list(self._opened):
      self._try(name, log)

  def close(self) -> None:
    """Waits until all is written."""
    for name in list(self._opened):
      self._try(name, lambda tracker: tracker.close())
    self._opened = {}

  def _try(self, name: str, call: Callable[[Tracker], None]) -> bool:
    """Calls a service, or gives it up; whether it has done it."""
    try:
      call(self._opened[name])
      return True
    except Exception as error:
      del self._opened[name]
      logging.warning(
        "log=%s has failed (%s): training goes on without it, and %s has every "
        "row",
        name,
        outside_files.told(error),
        directory.METRICS,
      )
      return False


NONE = Tracking({}, {}, pathlib.Path())


def start(
  log: str,
  folder: pathlib.Path,
  config: Mapping[str, Any],
  kept: Sequence[Mapping[str, Any]],
  newest: int,
) -> Tracking:
  """Opens the services of a run; one that joins late gets the rows before.

  Args:
    log: their names, with commas.
    folder: the run's.
    config: as config.json has it.
    kept: rows that the run goes on from.
    newest: the last iteration whose row was written before, kept or not; -1 in
      a new run.

  Raises:
    UserError: one cannot be opened.
  """
  names = services(log)
  if not names:
    return NONE
  try:
    known = outside_files.read_object(folder / FILE)
  except outside_files.MissingFile:
    known = {}
  opened = {}
  for name in names:
    before = _known(known.get(name), newest)
    if before is None:
      raise UserError(f"{folder / FILE} is damaged: delete it")
    opened[name] = _open(name, Opening(folder, config, before["id"]))
    known[name] = before | {"id": opened[name].id}
  directory.write_whole(folder / FILE, json.dumps(known, indent=2) + "\n")
  tracking = Tracking(opened, known, folder / FILE)
  tracking.write(kept)
  return tracking


def _known(found: Any, newest: int) -> dict[str, Any] | None:
  """What tracking.json says of a service; None where that makes no sense."""
  if found is None:
    return {"id": None, "step": -1}
  if isinstance(found, str):  # As it was before steps were kept.
    return {"id": found, "step": newest}
  sound = isinstance(found, dict) and isinstance(found.get("id"), str)
  if sound and type(found.get("step")) is int:
    return {"id": found["id"], "step": found["step"]}
  return None


def _open(name: str, opening: Opening) -> Tracker:
  try:
    return SERVICES[name].open(opening)
  except Exception as error:
    raise UserError(
      f"log={name} cannot be opened ({outside_files.told(error)}): mend that, "
      f"or leave {name} out of --config.log"
    ) from error
