"""A reward's parameters, kept in the run's folder from its first iteration on.

Whatever the file that they came from says later, a resumed run and whoever
evaluates it go on with the same reward.
"""

import pathlib
import zipfile
from typing import Any

import jax
import numpy as np

from tsd_jax.base import output_files, outside_files
from tsd_jax.base.errors import UserError
from tsd_jax.parallel import processes
from tsd_jax.rewards.reward import Reward
from tsd_jax.run import directory


def read(reward: Reward, folder: pathlib.Path, *, keep: bool = False) -> Any:
  """Parameters of a run's reward; () where it has none.

  Args:
    reward: the run's.
    folder: the run's.
    keep: whether to write them there, where they are not.

  Raises:
    UserError: the reward cannot be read or kept, or the folder's parameters are
      damaged or of another reward.
  """
  try:
    params = reward.load()
  except OSError as error:
    name = type(reward).__name__
    raise UserError(f"reward {name} cannot be loaded: {error}") from error
  leaves, structure = jax.tree.flatten(params)
  file = folder / directory.REWARD
  if not leaves:
    return params
  if not outside_files.is_there(file):
    if keep and processes.leads():
      # NumPy adds the ending where it is another.
      with output_files.whole(file, ".tmp.npz") as partial:
        np.savez(partial, *map(np.asarray, leaves))
    return params
  expected = list(map(np.asarray, leaves))
  _check_size(file, expected)
  with outside_files.library(file, "delete it"), np.load(file) as saved:
    found = [saved[f"arr_{i}"] for i in range(len(saved.files))]
  if len(found) == len(expected):
    found = [_typed(a, b.dtype) for a, b in zip(found, expected, strict=True)]
  if [(a.shape, a.dtype) for a in found] != [
    (a.shape, a.dtype) for a in expected
  ]:
    raise UserError(
      f"{file} holds another reward's parameters: use another --workdir"
    )
  return structure.unflatten(found)


def _check_size(file: pathlib.Path, expected: list[np.ndarray]) -> None:
  """Refuses an archive that is larger, unpacked, than the parameters.

  Raises:
    UserError: it is, or no regular file or no archive.
  """
  outside_files.read_start(file, 0)
  with outside_files.library(file, "delete it"), zipfile.ZipFile(file) as saved:
    size = sum(entry.file_size for entry in saved.infolist())
  # Each array has a header.
  most = sum(array.nbytes + 1_000 for array in expected)
  if size > most:
    raise UserError(
      f"{file} holds {size:,} bytes, another reward's parameters than these "
      f"of at most {most:,}: use another --workdir"
    )


def _typed(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """An array as it was saved: NumPy's files forget types such as bfloat16."""
  raw = array.dtype.kind == "V" and array.dtype.itemsize == dtype.itemsize
  return array.view(dtype) if raw else array
