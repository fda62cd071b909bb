"""The command line as results keep it."""

import sys

import pytest

from tsd_jax.base import config


@pytest.mark.parametrize(
  "folder", [["--workdir=runs/x"], ["--workdir", "runs/x"], []]
)
@pytest.mark.parametrize("output", [["--output=x.json"], ["--output", "x"], []])
def test_a_command_names_no_folder_of_this_machine(folder, output, monkeypatch):
  line = ["program", "--seeds=0,1", *folder, *output, "--config.iterations=5"]
  monkeypatch.setattr(sys, "argv", line)
  assert config.command("launch.compare") == (
    "python -m launch.compare --seeds=0,1 --config.iterations=5 --workdir=DIR"
  )
