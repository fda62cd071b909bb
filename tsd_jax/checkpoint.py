"""Checkpoints of a run: everything that decides its future, by Orbax.

Arrays go to Orbax, asynchronously; counts and the data position travel beside
them as JSON. Restoring takes the newest checkpoint that reads back whole and
says so when it had to pass over a damaged one.
"""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from tsd_jax.config import UserError


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
      UserError: if the folder is only to be read and there is none.
    """
    self.path = pathlib.Path(workdir).resolve() / "checkpoints"
    self._read_only = read_only
    if read_only and not self.path.is_dir():
      raise UserError(f"no checkpoints in {workdir}: train there first")
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
    self._manager.save(
      step,
      args=ocp.args.Composite(
        arrays=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record)
      ),
    )

  def steps(self) -> list[int]:
    """Steps whose folders exist, newest first."""
    return sorted(self._manager.all_steps(), reverse=True)

  def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
    """Reads the newest whole checkpoint.

    Args:
      like: arrays of the same structure, shapes, dtypes and shardings.

    Returns:
      Arrays and record, or None where there is no checkpoint at all.

    Raises:
      UserError: if there are checkpoints but all are damaged.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    tried = self.steps()
    for step in tried:
      try:
        restored = self._manager.restore(
          step,
          args=ocp.args.Composite(
            arrays=ocp.args.StandardRestore(abstract),
            record=ocp.args.JsonRestore(),
          ),
        )
        arrays = jax.block_until_ready(restored.arrays)
      # Orbax raises many kinds of error on damaged files; all mean the same.
      except Exception as error:
        first_line = str(error).strip().split("\n")[0][:200]
        logging.warning(
          "checkpoint %s is damaged and passed over (%s: %s)",
          self.path / str(step),
          type(error).__name__,
          first_line,
        )
        if not self._read_only:
          self._manager.delete(step)  # The run will write this step again.
        continue
      return arrays, restored.record
    if tried:
      raise UserError(
        f"every checkpoint in {self.path} is damaged (steps {tried}): "
        "use another --workdir, or delete the folder to start again"
      )
    return None

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()
