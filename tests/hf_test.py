"""Hugging Face folders both ways, against transformers."""

import dataclasses
import json
import pathlib
from unittest import mock

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file

from tests.published import LLAMA, SHAPES, TOKENS_RT, export, make
from tsd_jax.base.errors import UserError
from tsd_jax.models import families, hf, pretrained, weights
from tsd_jax.models.symbols import SymbolTokenizer


@pytest.fixture(params=SHAPES)
def exported(request, tmp_path):
  config = SHAPES[request.param]
  graphdef, params = make(config)
  return config, graphdef, params, export(tmp_path / "out", config, params)


def logits_of(transformers_model):
  torch = pytest.importorskip("torch")
  with torch.no_grad():
    return transformers_model(torch.tensor(TOKENS_RT)).logits.float().numpy()


def test_transformers_computes_the_same_logits(exported):
  pytest.importorskip("torch", reason="needs the extra: interop")
  transformers = pytest.importorskip("transformers")
  _, graphdef, params, folder = exported
  theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
    folder, output_loading_info=True
  )
  assert not any(info.values()), info
  ours = nnx.merge(graphdef, params)(jnp.asarray(TOKENS_RT))
  np.testing.assert_allclose(ours, logits_of(theirs), atol=2e-5, rtol=2e-4)


def theirs_of(kind: str, **changes):
  """A random model that transformers made."""
  torch = pytest.importorskip("torch", reason="needs the extra: interop")
  transformers = pytest.importorskip("transformers")
  config_class = getattr(transformers, f"{kind}Config")
  sizes = dict(
    vocab_size=208, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, intermediate_size=48, rms_norm_eps=1e-5,
  )  # fmt: skip
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(
    config_class(**sizes | changes)
  )
  with torch.no_grad():  # Biases start as zeros, norms as ones.
    for parameter in model.parameters():
      parameter += 0.1 * torch.randn_like(parameter)
  return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
  ("kind", "changes"),
  [
    ("Llama", {"head_dim": 16}),
    ("Qwen2", {}),
    ("Qwen3", {"head_dim": 16, "rope_theta": 1e6}),
  ],
)
def test_what_transformers_makes_we_compute(tmp_path, kind, changes, tied):
  theirs = theirs_of(kind, tie_word_embeddings=tied, **changes)
  theirs.save_pretrained(tmp_path / "in")
  config, graphdef, params = pretrained.load(tmp_path / "in")
  assert families.family(config) == kind.lower()
  assert config.tied_embeddings == tied
  ours = nnx.merge(graphdef, params)(jnp.asarray(TOKENS_RT))
  np.testing.assert_allclose(ours, logits_of(theirs), atol=2e-5, rtol=2e-4)
  # And out again: the very tensors, under the very names.
  export(tmp_path / "out", config, params)
  first, second = (
    load_file(tmp_path / name / "model.safetensors") for name in ("in", "out")
  )
  assert set(first) == set(second)
  for name, array in first.items():
    np.testing.assert_array_equal(array, second[name], name)


def test_half_precision_comes_back_bit_for_bit(tmp_path):
  torch = pytest.importorskip("torch", reason="needs the extra: interop")
  theirs_of("Qwen2").to(torch.bfloat16).save_pretrained(tmp_path / "in")
  config, _, params = pretrained.load(tmp_path / "in")
  leaf = weights.flatten(params)["layers.gate_LDF"]
  assert leaf.dtype == np.float32
  export(tmp_path / "out", config, params, dtype="bfloat16")
  first, second = (
    load_file(tmp_path / name / "model.safetensors") for name in ("in", "out")
  )
  for name, array in first.items():
    assert array.dtype == second[name].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(array, second[name], name)
  saved = json.loads((tmp_path / "out" / "config.json").read_text())
  assert saved["dtype"] == "bfloat16"


def test_transformers_saves_what_we_load(exported, tmp_path):
  pytest.importorskip("torch", reason="needs the extra: interop")
  transformers = pytest.importorskip("transformers")
  config, graphdef, params, folder = exported
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
  # Several files, as large published models have.
  theirs.save_pretrained(tmp_path / "back", max_shard_size="20KB")
  assert len(list((tmp_path / "back").glob("model-*.safetensors"))) > 1
  loaded, _, back = pretrained.load(tmp_path / "back")
  assert loaded == dataclasses.replace(config, number_tokens=0)
  tokens_RT = jnp.arange(40).reshape(2, 20)
  np.testing.assert_array_equal(
    nnx.merge(graphdef, back)(tokens_RT), nnx.merge(graphdef, params)(tokens_RT)
  )


@pytest.mark.parametrize("place", ["file/x", "/proc/x/y", "dangling", "a\0b"])
def test_what_cannot_be_written_is_one_line(exported, tmp_path, place):
  (tmp_path / "file").write_text("")
  (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "x")
  config, _, params, _ = exported
  with pytest.raises(UserError, match="cannot be written|is no path"):
    hf.save(tmp_path / place, config, params, SymbolTokenizer(), max_length=32)
  assert not list(tmp_path.glob("*.partial"))


def test_who_may_read_a_model_is_what_the_system_says(tmp_path):
  """Its tensors as its config, though the library keeps them to itself."""
  folder = export(tmp_path / "out", LLAMA, make(LLAMA)[1])
  modes = {f.name: f.stat().st_mode for f in folder.iterdir()}
  assert set(modes.values()) == {modes["config.json"]}, modes


@pytest.mark.parametrize("dtype", ["float64", "int8", "q8_0", None])
def test_another_precision_is_refused_before_anything_is_written(
  tmp_path, dtype
):
  with pytest.raises(UserError, match="must be one of float32, bfloat16, flo"):
    export(tmp_path / "out", LLAMA, make(LLAMA)[1], dtype=dtype)
  assert not (tmp_path / "out").exists()


def test_a_disk_that_gets_full_leaves_no_part_of_a_model(tmp_path):
  def full(arrays, file, metadata):
    pathlib.Path(file).write_bytes(b"half")
    raise SafetensorError("No space left on device")

  params = make(LLAMA)[1]
  with mock.patch.object(weights, "save_file", full):
    with pytest.raises(UserError, match="No space left on device"):
      hf.save(tmp_path / "m", LLAMA, params, SymbolTokenizer(), max_length=32)
    with pytest.raises(UserError, match="start.safetensors cannot be written"):
      weights.save(tmp_path / "start.safetensors", params, metadata={})
  assert not list(tmp_path.iterdir())


def test_we_split_large_models_as_transformers_reads_them(tmp_path):
  transformers = pytest.importorskip(
    "transformers", reason="needs the extra: interop"
  )
  graphdef, params = make(LLAMA)
  folder = export(tmp_path / "out", LLAMA, params, max_file_bytes=20_000)
  files = sorted(folder.glob("model*.safetensors"))
  assert len(files) > 3
  # The embedding alone is larger than a file may be.
  largest = 208 * 32 * 4
  assert all(f.stat().st_size < largest + 5_000 for f in files)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
  ours = nnx.merge(graphdef, params)(jnp.asarray(TOKENS_RT))
  np.testing.assert_allclose(ours, logits_of(theirs), atol=2e-5, rtol=2e-4)
  _, _, back = pretrained.load(folder)
  for name, array in weights.flatten(params).items():
    np.testing.assert_array_equal(weights.flatten(back)[name], array, name)


def test_what_we_save_we_load_value_outputs_included(exported):
  _, _, params, folder = exported
  _, _, back = pretrained.load(folder)
  for name, array in weights.flatten(params).items():
    np.testing.assert_array_equal(weights.flatten(back)[name], array, name)
  assert not hf.value_trained(folder)


def test_a_trained_value_output_says_so(tmp_path):
  folder = export(tmp_path / "out", LLAMA, make(LLAMA)[1], value_trained=True)
  assert hf.value_trained(folder)
  (folder / hf.VALUE_HEADS).unlink()
  assert not hf.value_trained(folder)
  _, _, params = pretrained.load(folder)
  flat = weights.flatten(params)
  np.testing.assert_array_equal(flat["value_output_2D"], np.zeros((2, 32)))


def test_a_gguf_converter_finds_what_it_expects(exported):
  gguf = pytest.importorskip("gguf", reason="needs the extra: text")
  config, _, _, folder = exported
  kind = families.family(config)
  arch = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[kind]
  mapping = gguf.get_tensor_name_map(arch, config.num_layers)
  found = load_file(folder / "model.safetensors")
  theirs = {
    mapping.get_name(name, try_suffixes=(".weight", ".bias")) for name in found
  }
  assert None not in theirs and len(theirs) == len(found)
  vocab = gguf.SpecialVocab(folder)
  roles = {"eos": 207, "pad": 205}
  assert vocab.special_token_ids == roles


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
