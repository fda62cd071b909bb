"""Checkpoints of a run: everything that decides its future, by Orbax.

Arrays go to Orbax, asynchronously; counts and the data position travel beside
them as JSON. Restoring takes the newest checkpoint that reads back whole and
says so when it had to pass over a damaged one. A save that fails (disk full,
bucket out of reach) is reported and does not stop the run: `behind` then asks
for another one.
"""

import pathlib
import shutil
import time
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from tsd_jax.base.errors import UserError
from tsd_jax.parallel import processes
from tsd_jax.run import directory

SAVE_TRIES = 4  # Of a run's last checkpoint.


class Checkpointer:
  """The `checkpoints/` folder of a run."""

  def __init__(
    self,
    workdir: str | pathlib.Path,
    keep: int = 2,
    *,
    read_only: bool = False,
  ):
    """Opens the folder, creating it where there is none.

    Args:
      workdir: the run's folder.
      keep: how many checkpoints are kept; two, so that a damaged last one
        leaves one to return to.
      read_only: change nothing on disk: for readers of a run that may still be
        going on.

    Raises:
      UserError: if the folder is only to be read and there is none, or it
        cannot be made.
    """
    self.path = pathlib.Path(workdir).resolve() / directory.CHECKPOINTS
    self._read_only = read_only
    self._saving: int | None = None  # Step of a save whose end is not known.
    self._behind = False
    if read_only and not self.path.is_dir():
      raise UserError(f"no checkpoints in {workdir}: train there first")
    with directory.writing(self.path):
      self._manager = ocp.CheckpointManager(
        self.path,
        options=ocp.CheckpointManagerOptions(
          max_to_keep=None if read_only else keep,
          create=not read_only,
          read_only=read_only,
          enable_async_checkpointing=not read_only,
        ),
      )

  def save(self, step: int, arrays: Any, record: dict[str, Any]) -> None:
    """Starts writing a checkpoint; returns before it is on disk."""
    self._settle()  # The one before: a save waits for it anyway.
    self._saving = step
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          arrays=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record)
        ),
      )
    except Exception as error:  # Any: what storage raises has many types.
      self._failed(error)

  def save_now(
    self, step: int, arrays: Any, record: dict[str, Any], *, pause: float = 5.0
  ) -> None:
    """Writes a checkpoint and waits for it, trying a few times.

    Args:
      step: iterations made.
      arrays: the state.
      record: what goes beside it.
      pause: seconds before the second try, doubled for each.

    Raises:
      UserError: if it cannot be written.
    """
    for attempt in range(SAVE_TRIES):
      if attempt:
        time.sleep(pause * 2 ** (attempt - 1))
      self.save(step, arrays, record)
      self._settle()
      if not processes.any_says(self._behind):  # All write, or all try again.
        return
    last = self.steps()[:1] or "none"
    raise UserError(
      f"no checkpoint of iteration {step} could be written to {self.path} in "
      f"{SAVE_TRIES} tries (the last one there: {last}): "
      "free some space or mend the storage, and the same command resumes"
    )

  def behind(self) -> bool:
    """Whether the newest save is known to have failed; never waits."""
    if not self._manager.is_saving_in_progress():
      self._settle()
    return self._behind

  def _settle(self) -> None:
    """Waits for a save under way and learns how it ended."""
    if self._saving is None:
      return
    try:
      self._manager.wait_until_finished()
      self._behind, self._saving = False, None
    except Exception as error:  # As above.
      self._failed(error)

  def _failed(self, error: Exception) -> None:
    if not self._behind:  # Once, until one succeeds.
      logging.warning(
        "the checkpoint of iteration %d was not written (%s); training goes on "
        "and will try again",
        self._saving,
        _first_line(error),
      )
    self._saving, self._behind = None, True
    # What it left half written takes the room that the next one needs.
    for folder in self.path.glob("*.orbax-checkpoint-tmp*"):
      shutil.rmtree(folder, ignore_errors=True)

  def steps(self) -> list[int]:
    """Steps whose folders exist, newest first."""
    return sorted(self._manager.all_steps(), reverse=True)

  def record(self) -> dict[str, Any] | None:
    """What stands beside the newest arrays; None where nothing can be read."""
    for step in self.steps():
      try:
        found: Any = self._manager.restore(
          step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
        )
        return found.record
      except Exception:  # As below: `restore` says what is damaged.
        continue
    return None

  def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
    """Reads the newest whole checkpoint; deletes newer ones that it passes.

    Args:
      like: arrays of the same structure, shapes, dtypes and shardings.

    Returns:
      Arrays and record, or None where there is no checkpoint at all.

    Raises:
      UserError: if there are checkpoints but none can be read; they stay.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    tried, failure = self.steps(), ""
    for step in tried:
      found, failure = None, "another process cannot read it"
      try:
        restored: Any = self._manager.restore(
          step,
          args=ocp.args.Composite(
            arrays=ocp.args.StandardRestore(abstract),
            record=ocp.args.JsonRestore(),
          ),
        )
        found = jax.block_until_ready(restored.arrays), restored.record
      # Orbax raises many kinds of error on damaged files; all mean the same.
      except Exception as error:
        failure = _first_line(error)
      # All go back to the same step. Where it is not the file but a process
      # that is lost, this raises, and nothing is deleted.
      if not processes.any_says(found is None):
        if not self._read_only:
          for newer in tried[: tried.index(step)]:
            self._manager.delete(newer)  # The run will write it again.
        return found
      logging.warning(
        "checkpoint %s is damaged and passed over (%s)",
        self.path / str(step),
        failure,
      )
    if tried:
      raise UserError(
        f"every checkpoint in {self.path} is damaged, or of other code (steps "
        f"{tried}: {failure}): use another --workdir, or delete the folder to "
        "start again"
      )
    return None

  def close(self) -> None:
    """Waits until everything is on disk; a failed save is told, not raised."""
    self._settle()
    try:
      self._manager.close()
    except Exception:  # It raises once more what a save has.
      if not self._behind:
        raise


def _first_line(error: Exception) -> str:
  text = str(error).strip().split("\n")[0][:200]
  return f"{type(error).__name__}: {text}"
