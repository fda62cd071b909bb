"""The ablation table: every line is a run that can start."""

import json
import pathlib
import subprocess
import sys

import pytest

from experiments.benchmarks import ablations
from tsd_jax.base import config as config_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
  "experiment", ["countdown_balanced", "countdown4", "maze"]
)
def test_every_line_changes_a_run_that_can_start(experiment, capsys):
  base = config_lib.load(f"experiments/{experiment}.py")
  names = ablations.possible(base)
  left_out = ["width_8", "width_32", "no_success_head"]
  left_out = left_out if experiment == "maze" else []
  assert names == [n for n in ablations.VARIANTS if n not in left_out]
  said = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in said] == left_out
  for name in names:
    changed = config_lib.override(base, ablations.VARIANTS[name])
    assert changed.learner_config() != base.learner_config()
    learner, task = changed.learner_config(), changed.make_task()
    count = learner.update_tokens(task) / base.learner_config().update_tokens(
      task
    )
    assert 0.8 < count < 1.45, name


def test_the_committed_table_is_of_these_lines():
  """A change of a committed row is one that can be made again today."""
  file = ROOT / "experiments" / "results" / "ablations.json"
  rows = json.loads(file.read_text())["rows"]
  changes = {name: row["change"] for name, row in rows.items()}
  assert changes.pop("default") == {}
  assert changes == {name: ablations.VARIANTS[name] for name in changes}


def run(*flags):
  return subprocess.run(
    [sys.executable, "-m", "experiments.benchmarks.ablations", *flags],
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
    "--only=frozen_search,any_prompts", "--seeds=0,1",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert [line.split()[0] for line in lines] == [
    "change", "default", "frozen_search", "any_prompts",
  ]  # fmt: skip
  saved = json.loads((tmp_path / "ablations.json").read_text())
  assert set(saved["rows"]) == {"default", "frozen_search", "any_prompts"}
  assert saved["rows"]["any_prompts"]["change"] == {"rollout.choose": "first"}
  assert len(saved["rows"]["default"]["mean@2"]) == 2
