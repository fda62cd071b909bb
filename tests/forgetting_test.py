"""Forgetting: the start learns both tasks, the runs start there."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests import small_maze
from tsd_jax.learning import supervised
from tsd_jax.run import evaluation, load
from tsd_jax.run.experiment import initial_params
from tsd_jax.tasks.task import as_prompts

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(*flags):
  return subprocess.run(
    [sys.executable, "-m", "experiments.benchmarks.forgetting", *flags],
    cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
  )  # fmt: skip


@pytest.mark.slow
def test_the_command(tmp_path):
  folder, output = tmp_path / "runs", tmp_path / "forgetting.json"
  flags = (
    "--config=tests/small_experiment.py", "--second=tests/small_maze.py",
    f"--workdir={folder}", f"--output={output}", "--seeds=0", "--teach=8",
    "--batch=16", "--kl_weights=0,5", "--config.iterations=2",
  )  # fmt: skip
  done = run(*flags)
  assert done.returncode == 0, done.stderr
  content = json.loads(output.read_text())
  start, *rows = content["rows"]
  assert [(r["model"], r["kl_weight"]) for r in rows] == [
    ("tsd", 0), ("tsd", 5), ("grpo", 0), ("grpo", 5),
  ]  # fmt: skip
  assert str(tmp_path) not in output.read_text()
  # All of them started from the file that knows both tasks.
  config = load.read_config(folder / "grpo_5" / "0")
  (start_file,) = folder.glob("start_*.safetensors")
  assert config.init == str(start_file)
  # Of other tasks, or taught in another way, it would be another file.
  assert len(start_file.stem) == len("start_") + 8
  assert (config.algorithm, config.loss.kl_weight) == ("grpo", 5.0)
  # Read on the examples that the command draws, the second task's too.
  maze = small_maze.get_config()
  task = maze.make_task()
  prompt_QP, response_QT = maze.task.warm_start(
    np.random.default_rng(1), 4096, 0.3, supervised.held_out(maze.task)
  )
  examples = as_prompts(task, prompt_QP), response_QT
  name = "other task, perplexity"
  last = load.open_run(folder / "grpo_5" / "0")
  for row, (graphdef, params) in (
    (start, initial_params(config)),
    (rows[3], (last.graphdef, last.params)),
  ):
    assert row[name] == pytest.approx(
      [evaluation.perplexity(graphdef, params, task, *examples)],
      abs=1e-3,
    )
  before = folder.stat().st_mtime_ns
  done = run(*flags)  # A finished run is not run again.
  assert done.returncode == 0 and folder.stat().st_mtime_ns == before
  assert json.loads(output.read_text())["rows"] == content["rows"]


def test_the_same_task_twice_is_refused(tmp_path):
  flags = ("--config=tests/small_maze.py", "--second=tests/small_maze.py")
  done = run(*flags, f"--workdir={tmp_path / 'x'}")
  assert done.returncode == 2 and "another task" in done.stderr
  assert not (tmp_path / "x").exists()
