"""A reward's parameters, kept in the run's folder from its first iteration on.

Whatever happens to the file that they came from, a resumed run and whoever
evaluates it go on with the same reward.
"""

import pathlib
from typing import Any

import jax
import numpy as np

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
    UserError: the folder's are damaged, or of another reward.
  """
  params = reward.load()
  leaves, structure = jax.tree.flatten(params)
  file = folder / directory.REWARD
  if not leaves:
    return params
  if not file.exists():
    if keep and processes.leads():
      partial = file.with_suffix(".tmp.npz")
      np.savez(partial, *map(np.asarray, leaves))
      partial.rename(file)
    return params
  try:
    with np.load(file) as saved:
      found = [saved[f"arr_{i}"] for i in range(len(saved.files))]
  except Exception as error:  # Any: damaged archives raise many kinds.
    raise UserError(f"{file} is damaged ({error}): delete it") from error
  if [np.shape(a) for a in found] != [np.shape(a) for a in leaves]:
    raise UserError(
      f"{file} holds another reward's parameters: use another --workdir"
    )
  return structure.unflatten(found)
