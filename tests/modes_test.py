"""The table of test-time modes: base and student, what each spends."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

from experiments.benchmarks import modes
from tests import small_experiment
from tsd_jax.run import evaluation, train
from tsd_jax.run.experiment import initial_params
from tsd_jax.tasks import data

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_samples_are_as_many_as_spend_the_tokens_of_a_tree():
  names = modes.modes([32, 64, 4], 8)
  assert names == (
    "greedy,mean@16,vote@4,best@4,search@32,vote@8,best@8,search@64,"
    "vote@1,best@1,search@4"
  )
  evaluation.parse_modes(names)


@pytest.mark.slow
def test_the_command(tmp_path):
  config, output = small_experiment.get_config(), tmp_path / "modes.json"
  folders = [str(tmp_path / name) for name in ("tsd", "ppo")]
  train.train(config, folders[0])
  train.train(dataclasses.replace(config, algorithm="ppo"), folders[1])
  done = subprocess.run(
    [sys.executable, "-m", "experiments.benchmarks.modes",
     f"--workdirs={','.join(folders)}", f"--output={output}",
     "--simulations=16"],
    cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  content = json.loads(output.read_text())
  assert f"after {config.iterations} iterations" in content["about"]
  assert "--workdirs=DIR/tsd,DIR/ppo " in content["command"]
  found = {(r["model"], r["mode"]): r for r in content["rows"]}
  asked = ["greedy", "mean@16", "vote@2", "best@2", "search@16"]
  models = ("base", "tsd", "ppo")
  assert list(found) == [(m, a) for m in models for a in asked]
  graphdef, params = initial_params(config)
  task = config.make_task()
  prompts = data.load_problems(config.task, "test")
  own = evaluation.evaluate(
    graphdef, params, task, prompts, "mean@16,best@2", seed=config.seed
  )
  for mode, result in own.items():
    row = found["base", mode]
    assert row["accuracy"] == pytest.approx(result["accuracy"], abs=1e-4)
    assert row["tokens a prompt"] == pytest.approx(
      result["tokens"] / len(prompts), abs=0.1
    )
