"""Files that we write: whole or not at all, and one line where that fails."""

import contextlib
import os
import pathlib

from tsd_jax.base.errors import UserError


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], partial: pathlib.Path | None = None):
  """Says in one line that something cannot be written; leaves no part of it.

  Args:
    path: what is written, for the message.
    partial: a file that is there meanwhile.

  Raises:
    UserError: in place of an OSError.
  """
  try:
    yield
  except BaseException as error:
    if partial is not None:
      with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
    if not isinstance(error, OSError):  # Ctrl-C, for instance.
      raise
    raise UserError(
      f"{path} cannot be written ({error.strerror or error}): free some space "
      "or mend the storage, and the same command goes on"
    ) from error


@contextlib.contextmanager
def whole(file: pathlib.Path, suffix: str = ".tmp"):
  """Gives a path to write to, which becomes the file at the end.

  A reader finds the old content or the new.

  Args:
    file: what is written.
    suffix: of the path, beside the file.

  Raises:
    UserError: it cannot be written, or is no name of a file.
  """
  if not file.name:
    raise UserError(f"{file} is a folder: name a file")
  partial = file.with_name(file.name + suffix)
  with writing(file, partial):
    yield partial
    os.replace(partial, file)


def write_whole(file: pathlib.Path, text: str) -> None:
  """Writes a text `whole`.

  Raises:
    UserError: it cannot be written.
  """
  with whole(file) as partial:
    partial.write_text(text, encoding="utf-8")
