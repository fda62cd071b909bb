"""From a warm start to an exported model, on a task that is not Countdown."""

import json
import pathlib
import subprocess
import sys

import pytest
from safetensors import safe_open

from tests import small_maze
from tsd_jax.models.symbols import SymbolTokenizer
from tsd_jax.run import load

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = "--config=tests/small_maze.py"


def run(module, *flags):
  return subprocess.run(
    [sys.executable, "-m", module, *map(str, flags)],
    cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
  )  # fmt: skip


def test_from_warm_start_to_export(tmp_path):
  start, workdir, exported = (tmp_path / n for n in ("s.safetensors", "r", "e"))
  done = run(
    "experiments.recipes.warm_start", CONFIG, "--steps=20,10", "--batch=32",
    f"--output={start}",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "phase 2: 10 steps" in done.stdout
  with safe_open(start, "np") as file:
    facts = file.metadata()
  assert facts["task"].startswith("maze, size4_walls4_moves4to6")
  assert (facts["seed"], facts["value_trained"]) == ("0", "false")

  init = f"--config.init={start}"
  done = run("launch.train", CONFIG, f"--workdir={workdir}", init)
  assert done.returncode == 0, done.stderr
  saved = json.loads((workdir / "config.json").read_text())
  assert saved["task"]["__class__"] == "tsd_jax.tasks.maze.MazeConfig"
  assert load.read_config(workdir).task == small_maze.get_config().task
  assert "tsd: Maze" in (workdir / "report.html").read_text()

  modes = ("--mode=greedy,search@8", "--split=test")
  done = run("launch.evaluate", f"--workdir={workdir}", *modes)
  assert done.returncode == 0, done.stderr
  found = json.loads((workdir / "eval.json").read_text())
  assert {mode: result["n"] for mode, result in found.items()} == {
    "greedy": 30, "search@8": 30,
  }  # fmt: skip

  done = run("launch.export", f"--workdir={workdir}", f"--output={exported}")
  assert done.returncode == 0, done.stderr
  written = json.loads((exported / "tokenizer.json").read_text())
  assert written == SymbolTokenizer().to_huggingface_json()


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    ("--steps=100", "--steps=100 must be two numbers"),
    ("--steps=a,b", "--steps=a,b must be two numbers"),
    ("--steps=0,0", "teaches nothing"),
    ("--batch=0", "batch"),
    ("--relabel_fraction=2", "relabel_fraction"),
    ("--learning_rate=-1", "--learning_rate=-1.0 must be positive"),
    ("--seed=-1", "seed"),
  ],
)
def test_impossible_flags_are_one_line(flag, words, tmp_path):
  command = [sys.executable, "-m", "experiments.recipes.warm_start", flag]
  done = subprocess.run(
    [*command, f"--output={tmp_path / 'x.safetensors'}"],
    capture_output=True, text=True, check=False, cwd=ROOT,
  )  # fmt: skip
  assert done.returncode == 2 and "Traceback" not in done.stderr
  assert words in done.stderr.strip().splitlines()[-1]


def test_a_config_without_a_start_needs_a_file_to_write():
  done = run("experiments.recipes.warm_start", CONFIG)
  assert done.returncode == 2
  assert "has no init: name a file, --output=" in done.stderr


def test_another_number_of_numbers_is_refused():
  done = run("experiments.recipes.warm_start", "--numbers=5")
  assert done.returncode == 2 and "--numbers=5" in done.stderr
