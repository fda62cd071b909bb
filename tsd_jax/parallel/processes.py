"""Several processes that train as one program, one a host.

Every process runs the same code on the same numbers; arrays span them all. The
first one, the leader, writes what is not an array.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from tsd_jax.base.errors import UserError, show


def initialize(heartbeat_seconds: int, join_seconds: int) -> None:
  """Joins the other processes, before JAX touches a device.

  TPU slices, GKE and Slurm tell JAX who they are. Anywhere else the variables
  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID do.

  Args:
    heartbeat_seconds: a process that is silent for so long ends all others,
      which their supervisors then start again.
    join_seconds: how long to wait for the others. JAX then aborts this process,
      which its supervisor starts again.

  Raises:
    UserError: if neither does.
  """
  names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
  given = [_number(name) for name in names]
  logging.warning(
    "waiting for the other processes, at most %d s (--join_seconds)",
    join_seconds,
  )
  try:
    jax.distributed.initialize(
      num_processes=given[0],
      process_id=given[1],
      initialization_timeout=join_seconds,
      heartbeat_timeout_seconds=heartbeat_seconds,
    )
  except ValueError as error:
    raise UserError(
      f"--distributed: {error} This is no TPU slice, Slurm job or GKE job set: "
      f"set JAX_COORDINATOR_ADDRESS=HOST:PORT, {' and '.join(names)}"
    ) from error


def _number(name: str) -> int | None:
  """An environment variable that is a number, where it is there."""
  text = os.environ.get(name)
  if text is None or (text.isascii() and text.isdigit()):
    return None if text is None else int(text)
  raise UserError(f"{name}={text!r:.60} must be a number from 0 on")


def leads() -> bool:
  """Whether this process writes the run's files."""
  return jax.process_index() == 0


def alone() -> bool:
  """Whether there is no other process."""
  return jax.process_count() == 1


def any_says(flag: bool) -> bool:
  """Whether a flag is set in any process; all must ask."""
  if alone():
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def by_the_leader(act: Callable[[], None]) -> None:
  """What the leader does alone; where it cannot, no process goes on.

  Args:
    act: without sends between processes; all must ask.

  Raises:
    UserError: the leader's own, and one in every other process.
  """
  error = None
  if leads():
    try:
      act()
    except UserError as own:
      error = own
  if any_says(error is not None):
    raise error or UserError("the first process cannot go on: its log says why")


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
  """Ends a process that fails among others, without a word to them.

  At its usual end JAX waits minutes for processes that wait for this one, and
  then aborts all. So they learn of it by its silence (`heartbeat_seconds`).
  """
  try:
    yield
  except Exception as error:
    if alone():
      raise
    if isinstance(error, UserError):
      show(error)
    else:
      traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(getattr(error, "exit_code", 1))
