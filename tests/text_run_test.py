"""A run on text as a user writes it: a config file with its own reward."""

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("tokenizers", reason="needs the extra: text")

from tests import small_text
from tests.text_test import problems, write
from tsd_jax.models import hf, pretrained

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = """
import dataclasses

from tests import small_text


def grade(prompt, response, example):
  {body}


def get_config():
  found = small_text.experiment({model!r}, {file!r})
  task = dataclasses.replace(found.task, reward=grade)
  return dataclasses.replace(found, task=task)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("model")
  tokenizer, config, params = small_text.random_model(folder)
  hf.save(folder / "model", config, params, tokenizer, max_length=64)
  return folder / "model"


def configure(folder, model, body):
  lines = write(folder / "problems.jsonl", problems())
  file = folder / "mine.py"
  text = CONFIG.format(body=body, model=str(model), file=lines)
  file.write_text(text)
  return file


def run(module, *flags, cache):
  """A command with caches of its own, and none that the tests share."""
  environment = {
    k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"
  }
  environment |= {"HOME": str(cache), "PYTHONPATH": str(ROOT)}
  return subprocess.run(
    [sys.executable, "-m", module, *map(str, flags)],
    cwd=cache, capture_output=True, text=True, timeout=600, check=False,
    env=environment,
  )  # fmt: skip


@pytest.mark.slow
def test_a_reward_in_the_config_file_trains_evaluates_and_exports(
  model, tmp_path
):
  file = configure(tmp_path, model, "return float(len(response) > 2)")
  train = ("launch.train", f"--config={file}", f"--workdir={tmp_path / 'run'}")
  done = run(*train, cache=tmp_path)
  assert done.returncode == 0, done.stderr
  # What is compiled is kept, without being asked to.
  assert any((tmp_path / ".cache" / "tsd_jax" / "xla").glob("*-cache"))
  done = run(
    "launch.evaluate", f"--workdir={tmp_path / 'run'}", "--mode=greedy",
    f"--imports={file}", cache=tmp_path,
  )  # fmt: skip
  assert done.returncode == 0 and "greedy" in done.stdout, done.stderr
  done = run(
    "launch.export", f"--workdir={tmp_path / 'run'}",
    f"--output={tmp_path / 'exported'}", f"--imports={file}", cache=tmp_path,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "exported" / "model.safetensors").is_file()
  done = run(
    "launch.export", f"--workdir={tmp_path / 'run'}", "--format=gguf",
    f"--output={tmp_path / 'm.gguf'}", "--dtype=float16", f"--imports={file}",
    cache=tmp_path,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  found, read = (
    pretrained.read_card(tmp_path / name) for name in ("exported", "m.gguf")
  )
  assert found == read
  # A run remembers its problems with what their grader reads.
  lines = problems()
  lines[0] |= {"letters": "other"}
  write(tmp_path / "problems.jsonl", lines)
  done = run(*train, "--config.iterations=4", cache=tmp_path)
  assert done.returncode == 2 and "Traceback" not in done.stderr
  assert "prompts or examples of" in done.stderr


@pytest.mark.slow
def test_a_run_whose_reward_always_fails_ends_as_an_error(model, tmp_path):
  file = configure(tmp_path, model, "raise ValueError('\\\\x1b[2J no')")
  done = run(
    "launch.train", f"--config={file}", f"--workdir={tmp_path / 'run'}",
    cache=tmp_path,
  )  # fmt: skip
  assert done.returncode == 2
  assert "calls of the reward function came to a reward" in done.stderr
  assert "\x1b" not in done.stderr
