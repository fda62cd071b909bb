"""Where this checkout lies."""

import pathlib

# The repository's root, or the folder of the installed packages.
ROOT = pathlib.Path(__file__).resolve().parents[2]
