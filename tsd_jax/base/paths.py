"""Where this checkout lies, and paths that people name."""

import os
import pathlib
import re

from tsd_jax.base.errors import UserError

# The repository's root, or the folder of the installed packages.
ROOT = pathlib.Path(__file__).resolve().parents[2]


def named(path: str | os.PathLike[str]) -> pathlib.Path:
  """A path that a person has named, ~ included; nothing need be there.

  Raises:
    UserError: the system can have no such path.
  """
  refuse_address(str(path))
  try:
    found = pathlib.Path(path).expanduser()
    found.exists()
    if "\0" in str(found):  # Which `exists` takes for a file that is not there.
      raise OSError("it has a zero byte")
  except (OSError, RuntimeError) as error:
    why = getattr(error, "strerror", None) or error
    raise UserError(f"{str(path)[:60]!r} is no path: {why}") from None
  return found


def refuse_address(path: str) -> None:
  """Refuses a bucket's address, which would be a folder of that name.

  Raises:
    UserError: it is one.
  """
  if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
    raise UserError(
      f"{path[:60]} is an address: mount it (a bucket with gcsfuse), and name "
      "the folder"
    )
