"""A config is shown as flags that give it back, with the code's comments."""

import dataclasses
import subprocess
import sys
from typing import Literal

import pytest

from tests import small_experiment
from tsd_jax.base import config as config_lib
from tsd_jax.base import config_text
from tsd_jax.base.paths import ROOT


@dataclasses.dataclass(frozen=True)
class Part:
  """A part."""

  # Stands before,
  # in two lines.
  size: int = 3
  rate: float = 1e-6  # Stands beside.
  sizes: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True)
class Base:
  """Has a field that is inherited."""

  seed: int = 0  # Of the base.


@dataclasses.dataclass(frozen=True)
class Whole(Base):
  """A whole."""

  part: Part = Part()  # The part.
  mode: Literal["a", "b"] = "a"
  name: str | None = None
  reward: object = print


def test_fields_have_values_defaults_and_comments():
  assert config_text.describe(Whole(seed=2, part=Part(size=4))) == (
    """# Of the base. (default 0)
--config.seed=2

# config.part is part. The part.
# Stands before, in two lines. (default 3)
--config.part.size=4
# Stands beside.
--config.part.rate=1e-06
--config.part.sizes=1,2
# (one of a, b)
--config.mode=a
# (may be none)
--config.name=none
# config.reward=<built-in function print>
"""
  )


@pytest.mark.parametrize("file", ["countdown", "maze", "compare_countdown"])
def test_the_flags_give_the_config_back(file):
  config = config_lib.load(f"experiments/{file}.py")
  lines = config_text.describe(config).splitlines()
  assert all(line.startswith(("#", "--config.")) for line in lines if line)
  flags = dict(
    line.removeprefix("--config.").split("=", 1)
    for line in lines
    if line.startswith("--")
  )
  assert len(flags) > 50
  assert config_lib.override(config, flags) == config


def test_a_class_of_no_file_is_shown_without_comments():
  made = dataclasses.make_dataclass("Made", [("size", int, 3)])
  assert config_text.describe(made()) == "--config.size=3\n"


def run(*flags):
  return subprocess.run(
    [sys.executable, "-m", *flags], cwd=ROOT, capture_output=True, text=True,
    timeout=120, check=False,
  )  # fmt: skip


def test_a_command_shows_its_config_and_stops(tmp_path):
  done = run(
    "launch.train", "--config=tests/small_experiment.py", "--print_config",
    "--config.search.num_simulations=5", f"--workdir={tmp_path / 'run'}",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  expected = config_lib.override(
    small_experiment.get_config(), {"search.num_simulations": "5"}
  )
  assert done.stdout == config_text.describe(expected)
  assert not (tmp_path / "run").exists()


def test_help_says_how_to_see_the_fields():
  shown = run("launch.train", "--help").stdout
  assert "--[no]print_config: Print the config's fields" in shown
  assert "print_config" not in run("launch.generate", "--help").stdout
