"""Forgetting: the start learns both tasks, the runs start there."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from experiments.recipes import supervised
from tests import small_experiment, small_maze
from tsd_jax.models import transformer
from tsd_jax.run import evaluation, load
from tsd_jax.run.experiment import initial_params
from tsd_jax.tasks.task import as_prompts

ROOT = pathlib.Path(__file__).resolve().parent.parent


def perplexities(graphdef, params, examples):
  return [
    evaluation.perplexity(
      graphdef, params, task, as_prompts(task, rows[0][0]), rows[1][0]
    )
    for task, rows in examples
  ]


@pytest.mark.slow
def test_supervised_training_learns_every_task_it_is_given():
  configs = (small_experiment.get_config(), small_maze.get_config())
  rng = np.random.default_rng(0)

  def draw(task, steps):
    return supervised.draw(task, rng, steps, 32, 0.3, set())

  examples = [draw(c.task, 60) for c in configs]
  unseen = [(c.make_task(), draw(c.task, 1)) for c in configs]
  graphdef, params = transformer.create(configs[0].model, 0)
  tasks = [c.make_task() for c in configs]
  first = supervised.train(
    graphdef, params, [examples[:1]], tasks=tasks[:1], learning_rate=1e-2
  )
  both = supervised.train(
    graphdef, params, [examples], tasks=tasks, learning_rate=1e-2
  )
  start, one, two = (
    perplexities(graphdef, p, unseen) for p in (params, first, both)
  )
  assert one[0] < start[0] / 2 and two[0] < start[0] / 2
  assert two[1] < start[1] / 2  # The second task was among the examples here,
  assert two[1] < one[1] / 2  # and here it was not.


def test_examples_never_ask_a_held_out_problem():
  task = small_maze.get_config().task
  excluded = supervised.held_out(task)
  assert len(excluded) == task.validation_size + task.test_size
  rng = np.random.default_rng(0)
  prompt_SBP, _ = supervised.draw(task, rng, 50, 40, 1.0, excluded)
  asked = {task.canonical(p) for p in prompt_SBP.reshape(2000, -1)}
  assert len(asked) > 100 and not asked & excluded
  free, _ = supervised.draw(task, rng, 50, 40, 1.0, set())
  assert {task.canonical(p) for p in free.reshape(2000, -1)} & excluded


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
  assert config.init == str(folder / "start_8.safetensors")
  assert (config.algorithm, config.loss.kl_weight) == ("grpo", 5.0)
  # Read on the examples that the command draws, the second task's too.
  maze = small_maze.get_config()
  examples = maze.task.warm_start(
    np.random.default_rng(1), 4096, 0.3, supervised.held_out(maze.task)
  )
  name = "other task, perplexity"
  for row, (graphdef, params) in (
    (start, initial_params(config)),
    (rows[3], load.open_run(folder / "grpo_5" / "0")[1:3]),
  ):
    assert row[name] == pytest.approx(
      [
        evaluation.perplexity(
          graphdef,
          params,
          maze.make_task(),
          as_prompts(maze.make_task(), examples[0]),
          examples[1],
        )
      ],
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
