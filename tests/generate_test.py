"""Replies of published models, from the command line too."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from tests.published import LLAMA, export, make
from tsd_jax.inference import generate
from tsd_jax.models.symbols import SymbolTokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAD = 205


def run(*flags):
  return subprocess.run(
    [sys.executable, "-m", "launch.generate", *flags],
    cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
  )  # fmt: skip


def test_padded_prompts_are_continued_as_bare_ones():
  """Against plain full forwards, one token after the other."""
  graphdef, params = make(LLAMA)
  model = nnx.merge(graphdef, params)
  prompts = [[5, 7, PAD, 9], [3], [11, 12, 13, 14, 15, 16]]
  rows_BP = np.full((3, 8), PAD, np.int32)
  for row, prompt in zip(rows_BP, prompts, strict=True):
    row[: len(prompt)] = prompt
  tokens_BT, mask_BT = generate.complete(
    graphdef, params, rows_BP, None, length=5, end_ids=(999,), pad_id=PAD
  )
  assert mask_BT.all()
  # One length, compiled once: no token sees what stands behind it.
  forward = jax.jit(lambda tokens_1S: model(tokens_1S))
  for prompt, tokens in zip(prompts, tokens_BT, strict=True):
    for i in range(5):
      context = [*prompt, *map(int, tokens[:i])]
      context_1S = np.array([context + [0] * (11 - len(context))])
      logits_SV = np.asarray(forward(context_1S))[0]
      assert int(tokens[i]) == int(logits_SV[len(context) - 1].argmax())


def test_samples_follow_the_key_and_the_temperature():
  graphdef, params = make(LLAMA)
  rows_BP = np.array([[5, 7], [5, 7]], np.int32)

  def draw(seed, temperature):
    tokens_BT, _ = generate.complete(
      graphdef, params, rows_BP, jax.random.key(seed), temperature,
      length=8, end_ids=(999,), pad_id=PAD,
    )  # fmt: skip
    return np.asarray(tokens_BT)

  np.testing.assert_array_equal(draw(0, 1.0), draw(0, 1.0))
  assert (draw(0, 1.0) != draw(1, 1.0)).any()
  assert (draw(0, 1.0)[0] != draw(0, 1.0)[1]).any()
  cold = draw(0, 1e-4)
  np.testing.assert_array_equal(cold[0], cold[1])


def test_the_command_prints_a_reply_a_prompt(tmp_path):
  tests = pytest.importorskip("tests.text_tokenizer_test")
  path = tests.gguf_file(tmp_path / "m.gguf", tests.train())
  done = run(
    f"--model={path}", "--prompt=12 + 3?", "--prompt=sure", "--max_tokens=4",
    "--reply=It is",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  # Noise speaks in replacement characters and line ends: count the beginnings.
  assert done.stdout.count("It is") == 2


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--prompt=hi"], "--model is missing"),
    (["--model=nowhere", "--prompt=hi"], "no model at nowhere"),
    (["--model=x.bin", "--prompt=hi"], "x.bin is a pickle file"),
    (["--model=x"], "--prompt=TEXT is missing"),
    (["--model=x", "--prompt=a", "--temperature=-1"], "--temperature=-1.0"),
    (["--model=x", "--prompt=a", "--max_tokens=0"], "--max_tokens=0"),
  ],
)
def test_bad_input_is_one_line(flags, message):
  done = run(*flags)
  assert done.returncode == 2, done.stderr
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith("error: ") and message in last


def test_what_does_not_fit_is_refused(tmp_path):
  tests = pytest.importorskip("tests.text_tokenizer_test")
  path = tests.gguf_file(tmp_path / "m.gguf", tests.train())
  done = run(f"--model={path}", "--prompt=sure", "--max_tokens=64")
  assert done.returncode == 2
  assert "exceed the 64 positions" in done.stderr
  done = run(f"--model={path}", "--prompt=sure")  # As long as it can be.
  assert done.returncode == 0, done.stderr


def test_an_exported_run_is_continued(tmp_path):
  """The symbol tokenizer is read as any other; it knows no chat, no words."""
  folder = export(tmp_path / "out", LLAMA, make(LLAMA)[1])
  done = run(
    f"--model={folder}", "--raw", "--prompt=3 4 12 =", "--max_tokens=5"
  )
  assert done.returncode == 0, done.stderr
  SymbolTokenizer().encode(done.stdout)
  done = run(f"--model={folder}", "--prompt=3 4 12 =")
  assert done.returncode == 2 and "no chat template" in done.stderr
  assert "--raw" in done.stderr
  done = run(f"--model={folder}", "--raw", "--prompt=what")
  assert done.returncode == 2 and "cannot encode 'what'" in done.stderr
