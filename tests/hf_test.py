"""Export and import against transformers; the tokenizer's files too."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.noisy import add_noise
from tsd_jax.config import UserError
from tsd_jax.models import hf, transformer, weights
from tsd_jax.models.transformer import ModelConfig
from tsd_jax.tokenizers import SymbolTokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
LLAMA = ModelConfig(
  vocab_size=208, d_model=32, num_layers=3, num_heads=4, num_kv_heads=2,
  head_dim=16, d_mlp=48, rope_theta=5_000.0, rms_eps=1e-5, number_tokens=200,
)  # fmt: skip
SHAPES = {
  "llama": LLAMA,
  "llama_untied": dataclasses.replace(LLAMA, tied_embeddings=False),
  "qwen2": dataclasses.replace(LLAMA, qkv_bias=True, head_dim=8),
  "qwen3": dataclasses.replace(LLAMA, qk_norm=True),
}


def make(config, seed=0):
  """A model in which every parameter counts: no zeros, no ones."""
  graphdef, params = transformer.create(config, seed)
  return graphdef, add_noise(params, scale=0.1, seed=7)


def export(folder, config, params):
  hf.save(folder, config, params, SymbolTokenizer(), max_length=64)
  return folder


@pytest.fixture(params=SHAPES)
def exported(request, tmp_path):
  config = SHAPES[request.param]
  graphdef, params = make(config)
  return config, graphdef, params, export(tmp_path / "out", config, params)


def test_transformers_computes_the_same_logits(exported):
  torch = pytest.importorskip("torch", reason="needs the extra: interop")
  transformers = pytest.importorskip("transformers")
  _, graphdef, params, folder = exported
  tokens_RT = np.random.default_rng(0).integers(0, 208, (3, 20))
  theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
    folder, output_loading_info=True
  )
  assert not any(info.values()), info
  with torch.no_grad():
    expected = theirs(torch.tensor(tokens_RT)).logits.numpy()
  ours = nnx.merge(graphdef, params)(jnp.asarray(tokens_RT))
  np.testing.assert_allclose(ours, expected, atol=2e-5, rtol=2e-4)


def test_transformers_saves_what_we_load(exported, tmp_path):
  pytest.importorskip("torch", reason="needs the extra: interop")
  transformers = pytest.importorskip("transformers")
  config, graphdef, params, folder = exported
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
  # Several files, as large published models have.
  theirs.save_pretrained(tmp_path / "back", max_shard_size="20KB")
  assert len(list((tmp_path / "back").glob("model-*.safetensors"))) > 1
  loaded, _, back = hf.load(tmp_path / "back")
  assert loaded == dataclasses.replace(config, number_tokens=0)
  tokens_RT = jnp.arange(40).reshape(2, 20)
  np.testing.assert_array_equal(
    nnx.merge(graphdef, back)(tokens_RT), nnx.merge(graphdef, params)(tokens_RT)
  )


def test_what_we_save_we_load_value_outputs_included(exported):
  _, _, params, folder = exported
  _, _, back = hf.load(folder)
  for name, array in weights.flatten(params).items():
    np.testing.assert_array_equal(weights.flatten(back)[name], array, name)


def test_the_tokenizer_loads_and_agrees(tmp_path):
  transformers = pytest.importorskip(
    "transformers", reason="needs the extra: interop"
  )
  folder = export(tmp_path / "out", LLAMA, make(LLAMA)[1])
  theirs, ours = (
    transformers.AutoTokenizer.from_pretrained(folder),
    SymbolTokenizer(),
  )
  text = "3 4 12 = 24 ( 199".replace("(", "+") + " <eos>"
  assert theirs(text)["input_ids"] == ours.encode(text)
  assert theirs.decode(ours.encode(text)).split() == text.split()
  assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == (
    ours.eos_id, ours.pad_id, ours.bos_id,
  )  # fmt: skip


def test_a_folder_that_holds_something_is_refused_and_kept(tmp_path):
  (tmp_path / "notes").write_text("mine")
  with pytest.raises(UserError, match="is not empty: name a new folder"):
    export(tmp_path, LLAMA, make(LLAMA)[1])
  assert [f.name for f in tmp_path.iterdir()] == ["notes"]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"model_type": "gpt2"}, "model_type='gpt2' is not supported"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type=yarn"),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_type=linear"),
    ({"hidden_act": "gelu"}, "hidden_act=gelu"),
    ({"attention_bias": True}, "attention_bias=True"),
    ({"num_attention_heads": 3}, "num_kv_heads=2"),
    ({"intermediate_size": 50}, "config.json is of another model"),
    ({"num_hidden_layers": 4}, "lacks 9 arrays"),
    ({"num_hidden_layers": 2}, "unknown to a llama"),
    ({"hidden_size": None}, "hidden_size"),
  ],
)
def test_a_model_of_another_shape_is_refused(tmp_path, change, message):
  folder = export(tmp_path / "out", LLAMA, make(LLAMA)[1])
  file = folder / "config.json"
  saved = json.loads(file.read_text())
  saved.pop("rope_parameters")
  saved |= change
  saved = {k: v for k, v in saved.items() if v is not None}
  file.write_text(json.dumps(saved))
  with pytest.raises(UserError, match=message):
    hf.load(folder)


def test_damaged_and_missing_files_are_named(tmp_path):
  folder = export(tmp_path / "out", LLAMA, make(LLAMA)[1])
  file = folder / "model.safetensors"
  whole = file.read_bytes()
  file.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
    hf.load(folder)
  file.unlink()
  with pytest.raises(UserError, match=r"model\.safetensors is missing"):
    hf.load(folder)
  (folder / "config.json").write_text("{")
  with pytest.raises(UserError, match=r"config\.json is damaged"):
    hf.load(folder)
  with pytest.raises(UserError, match=r"config\.json is missing"):
    hf.load(tmp_path / "nowhere")


def test_both_special_norms_and_biases_have_no_architecture():
  with pytest.raises(UserError, match="no Hugging Face"):
    hf.family(dataclasses.replace(LLAMA, qkv_bias=True, qk_norm=True))


def test_export_needs_a_run(tmp_path):
  done = subprocess.run(
    [
      sys.executable, "-m", "launch.export", f"--workdir={tmp_path}",
      f"--output={tmp_path}/out",
    ],
    cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
  )  # fmt: skip
  assert done.returncode == 2
  assert done.stderr.strip().splitlines()[-1].startswith("error: no run in")
  assert not (tmp_path / "out").exists()
