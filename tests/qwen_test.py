"""The Qwen experiment, at reduced size: a tiny model of the same kind."""

import json
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("tokenizers", reason="needs the extra: text")
pytest.importorskip("jinja2", reason="needs the extra: text")

from tests.published import make
from tests.text_tokenizer_test import write_folder
from tsd_jax.base import config
from tsd_jax.base.errors import UserError
from tsd_jax.models import hf, text_tokenizer
from tsd_jax.models.transformer import ModelConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILE = "experiments/qwen2_5_countdown.py"
REDUCED = {
  "iterations": "2", "checkpoint_every": "2", "mesh.fsdp": "1",
  "task.response_length": "16",
  "task.validation_size": "8", "task.test_size": "8",
  "task.grading.workers": "1",
  "rollout.prompts": "4", "rollout.baseline_prompts": "4",
  "search.num_simulations": "4", "search.step_tokens": "4",
  "search.width": "2", "search.trees": "8", "loss.distilled_prompts": "4",
  "eval.every": "2", "eval.modes": "greedy,mean@2",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A random Qwen2 with the small tokenizer."""
  tokenizer = text_tokenizer.load(write_folder(tmp_path / "tokenizer"))
  shape = ModelConfig(
    vocab_size=tokenizer.vocab_size, d_model=16, num_layers=2, num_heads=2,
    num_kv_heads=1, head_dim=8, d_mlp=16, qkv_bias=True,
  )  # fmt: skip
  hf.save(tmp_path / "model", shape, make(shape)[1], tokenizer, max_length=1024)
  monkeypatch.setenv("QWEN2_5_FOLDER", str(tmp_path / "model"))
  monkeypatch.setenv("TSD_JAX_DATA_DIR", str(tmp_path / "data"))
  return tmp_path / "model"


def test_a_missing_model_is_named(monkeypatch):
  monkeypatch.setenv("QWEN2_5_FOLDER", "/nowhere")
  with pytest.raises(UserError, match="QWEN2_5_FOLDER=/nowhere is no model"):
    config.load(FILE)


@pytest.mark.slow
def test_it_trains_at_reduced_size(folder, tmp_path):
  # Fewer problems, in fewer words: the small tokenizer needs more tokens.
  file = tmp_path / "short.py"
  file.write_text(
    "from experiments import qwen2_5_countdown\n"
    "from experiments.recipes import countdown_words\n"
    "countdown_words.THINK, whole = '', countdown_words.problems_file\n"
    "def few(*_, think, most): return whole(4, 5, think=think, most=64)\n"
    "countdown_words.problems_file = few\n"
    "get_config = qwen2_5_countdown.get_config\n"
  )
  flags = [f"--config.{name}={value}" for name, value in REDUCED.items()]
  done = subprocess.run(
    [sys.executable, "-m", "launch.train", f"--config={file}",
     f"--workdir={tmp_path / 'run'}", *flags],
    cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  last = json.loads(lines[-1])
  assert last["step"] == 2
  # Steps of up to 4 tokens, each drawn as it is tried.
  assert last["ledger"]["search"] > 2 * 8 * 4
