"""What a run shows of itself while it goes on; nothing here ever ends it."""

import pathlib
import time
from collections.abc import Callable

from absl import logging

from tsd_jax.base import outside_files
from tsd_jax.run import audit, directory, problems, report
from tsd_jax.run.problems import Asked, Problems, Solved

_SHARE = 0.01  # Of the run's time, that its page may take.
_SECONDS = 120.0  # After which a page without a new evaluation is old.


class Live:
  """report.html and problems.json of a run that goes on.

  The page takes a hundredth of the run's time at most, whatever it costs. What
  cannot be written is told once, and is tried again with the next evaluation.
  """

  def __init__(self, name: str, folder: pathlib.Path, mode: str):
    """Nothing is written yet.

    Args:
      name: what the run is called.
      folder: its folder.
      mode: of evaluation, that the page shows.
    """
    self._name, self._folder, self._mode = name, folder, mode
    self._next = self._old = time.monotonic()
    self._told = False

  def keep(
    self, split: str, step: int, solved: Solved, asked: Callable[[], Asked]
  ) -> None:
    """Writes how far each problem is solved, beside what the run began with.

    Args:
      split: of the problems.
      step: iterations made.
      solved: by mode.
      asked: gives the problems, where they are not written yet.
    """

    def write():
      found = problems.read(self._folder)
      if found is None or not step:
        found = Problems(split, *asked(), {})
      first = {at: each for at, each in found.solved.items() if not at}
      found = found._replace(solved=first | {step: solved})
      problems.write(self._folder, found)

    self._try(write)

  def keep_rejected(self, found: audit.Audited) -> None:
    """Writes the best-paid answers that the audit rejects."""
    self._try(lambda: audit.write(self._folder, found))

  def refresh(self, *, evaluated: bool) -> None:
    """Writes the page after an evaluation, or when it has become old.

    Args:
      evaluated: whether there is a new evaluation to show.
    """
    start = time.monotonic()
    if evaluated:
      self._old = start
    if start < max(self._next, self._old):
      return
    file = self._folder / directory.REPORT
    self._try(lambda: report.write(file, self._name, self._folder, self._mode))
    now = time.monotonic()
    self._next = now + (now - start) / _SHARE
    self._old = now + _SECONDS

  def _try(self, write: Callable[[], None]) -> None:
    try:
      write()
    except Exception as error:  # A run of days is worth more than its page.
      if not self._told:
        logging.warning(
          "%s is not up to date (%s): training goes on",
          self._folder / directory.REPORT,
          outside_files.told(error),
        )
      self._told = True
