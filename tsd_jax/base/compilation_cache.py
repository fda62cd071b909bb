"""Compiled programs kept on disk, so that a command compiles once."""

import os
import pathlib

import jax
from absl import logging

VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # Of JAX; an empty one keeps nothing.
# Programs that compile faster are not kept. A start makes many small ones,
# which together take longer than the second that is JAX's default.
_LEAST = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_LEAST_SECONDS = 0.1


def enable() -> None:
  """Has JAX keep programs in ~/.cache/tsd_jax/xla, unless it is told where.

  The folder may be deleted at any time.
  """
  if _LEAST not in os.environ:
    jax.config.update(_LEAST.lower(), _LEAST_SECONDS)
  if VARIABLE in os.environ:
    return
  folder = pathlib.Path.home() / ".cache" / "tsd_jax" / "xla"
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    logging.warning("compiled programs are not kept: %s", error)
    return
  jax.config.update(VARIABLE.lower(), str(folder))
