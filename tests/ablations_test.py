"""The ablation table: every line is a run that can start."""

import json
import pathlib
import subprocess
import sys

import pytest

from experiments import ablations
from tsd_jax import config as config_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("experiment", ["countdown", "countdown4", "maze"])
@pytest.mark.parametrize("name", ablations.VARIANTS)
def test_every_line_changes_a_run_that_can_start(experiment, name):
  base = config_lib.load(f"experiments/{experiment}.py")
  changed = config_lib.override(base, ablations.VARIANTS[name])
  assert changed != base
  learner = changed.learner_config()
  if name not in ("two_epochs",):
    assert learner.update_rows == 9


def run(*flags):
  return subprocess.run(
    [sys.executable, "-m", "experiments.ablations", *flags],
    cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
  )  # fmt: skip


def test_an_unknown_line_is_refused(tmp_path):
  done = run(f"--workdir={tmp_path}", "--only=no_fork")
  assert done.returncode == 2
  assert "--only=no_fork is unknown: use no_champion" in done.stderr


@pytest.mark.slow
def test_the_table(tmp_path):
  done = run(
    f"--workdir={tmp_path}", "--config=tests/small_experiment.py",
    "--only=frozen_search,no_champion", "--seeds=0,1",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert [line.split()[0] for line in lines] == [
    "change", "default", "frozen_search", "no_champion",
  ]  # fmt: skip
  saved = json.loads((tmp_path / "ablations.json").read_text())
  assert set(saved["rows"]) == {"default", "frozen_search", "no_champion"}
  assert saved["rows"]["no_champion"]["change"]["loss.champion_weight"] == "0"
  assert len(saved["rows"]["default"]["mean@2"]) == 2
