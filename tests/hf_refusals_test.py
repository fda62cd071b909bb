"""Models that are not ours, and files that are not whole: each is named."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.published import LLAMA, SHAPES, edit_config, export, make
from tsd_jax.base.errors import UserError
from tsd_jax.models import families, hf, pretrained

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_a_folder_that_holds_something_is_refused_and_kept(tmp_path):
  (tmp_path / "notes").write_text("mine")
  with pytest.raises(UserError, match="is not empty: name a new folder"):
    export(tmp_path, LLAMA, make(LLAMA)[1])
  assert [f.name for f in tmp_path.iterdir()] == ["notes"]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"model_type": "gpt2"}, "model_type='gpt2' is not supported"),
    ({"architectures": ["LlamaModel"]}, "with LlamaForCausalLM"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type=yarn"),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_type=linear"),
    (
      {"rope_parameters": {"rope_theta": 1.0, "partial_rotary_factor": 0.5}},
      "partial_rotary_factor=0.5",
    ),
    ({"hidden_act": "gelu"}, "hidden_act=gelu"),
    ({"attention_bias": True}, "attention_bias=True"),
    ({"mlp_bias": True}, "mlp_bias=True"),
    ({"rope_interleaved": True}, "rope_interleaved=True"),
    ({"sliding_window": 4096}, "sliding_window=4096"),
    ({"use_sliding_window": True}, "use_sliding_window=True"),
    ({"layer_types": ["sliding_attention"]}, "sliding_attention"),
    ({"quantization_config": {"bits": 4}}, "quantization_config="),
    ({"logit_scale": 0.5}, "logit_scale=0.5, which is unknown"),
    ({"rope_scaling": "yarn"}, "config.json: "),
    ({"max_position_embeddings": "long"}, "config.json: .*long"),
    ({"num_attention_heads": 3}, "num_key_value_heads=2"),
    ({"hidden_size": "32"}, "config.json: "),
    ({"num_hidden_layers": 2.5}, "num_hidden_layers=2.5 is of a wrong type"),
    (
      {"intermediate_size": 50},
      r"down_proj\.weight has shape \[32, 48\], not \[32, 50\]",
    ),
    ({"num_hidden_layers": 10**9}, "says 1,000,000,000 layers: it is of ano"),
    ({"num_hidden_layers": 10**99}, "num_hidden_layers=10+ is too large"),
    ({"model_type": ["llama"]}, "model_type=.'llama'. is not supported"),
    ({"rope_theta": 10**400}, "config.json: "),
    ({"num_hidden_layers": 4}, "lacks 9 tensors: model.layers.3"),
    ({"num_hidden_layers": 2}, "has 9 tensors .*: model.layers.2"),
    ({"tie_word_embeddings": False}, "lacks 1 tensors: lm_head.weight"),
    ({"hidden_size": None}, "hidden_size"),
  ],
)
def test_a_model_that_is_not_ours_is_refused(tmp_path, change, message):
  folder = export(tmp_path / "out", LLAMA, make(LLAMA)[1])
  edit_config(folder, **{"rope_parameters": None} | change)
  with pytest.raises(UserError, match=message):
    pretrained.load(folder)


def test_harmless_attributes_are_read_over(tmp_path):
  """As the configs of SmolLM2 and Qwen2.5 have them."""
  folder = export(tmp_path / "out", LLAMA, make(LLAMA)[1])
  edit_config(
    folder, is_llama_config=True, rope_interleaved=False, pretraining_tp=1,
    rope_scaling={}, use_cache=True, _name_or_path="x",
  )  # fmt: skip
  assert pretrained.read_card(folder).config.rope_theta == 5_000.0
  config = SHAPES["qwen2"]
  folder = export(tmp_path / "qwen", config, make(config)[1])
  edit_config(
    folder, sliding_window=131_072, use_sliding_window=False, use_mrope=False,
    max_window_layers=28, attention_dropout=0.0,
  )  # fmt: skip
  assert pretrained.read_card(folder).config.qkv_bias


def test_another_shape_in_the_config_is_named(tmp_path):
  folder = export(tmp_path / "out", LLAMA, make(LLAMA)[1])
  other = dataclasses.replace(LLAMA, d_mlp=64, unroll_layers=3)
  with pytest.raises(UserError, match=r"model\.d_mlp=64 \(there 48\)"):
    pretrained.load(folder, config=other)
  same = dataclasses.replace(LLAMA, unroll_layers=3)
  assert pretrained.load(folder, config=same)[0] == same


def test_damaged_and_missing_files_are_named(tmp_path):
  folder = export(tmp_path / "out", LLAMA, make(LLAMA)[1])
  file = folder / "model.safetensors"
  whole = file.read_bytes()
  for size in (len(whole) - 1, len(whole) // 2, 100, 0):
    file.write_bytes(whole[:size])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
      pretrained.load(folder)
  file.unlink()
  with pytest.raises(UserError, match=r"model\.safetensors is missing"):
    pretrained.load(folder)
  (folder / "config.json").write_text("{")
  with pytest.raises(UserError, match=r"config\.json is damaged"):
    pretrained.load(folder)
  (folder / "config.json").write_text("[]")
  with pytest.raises(UserError, match=r"config\.json is no JSON object"):
    pretrained.load(folder)
  (folder / "config.json").unlink()
  with pytest.raises(UserError, match=r"config\.json is missing"):
    pretrained.load(folder)
  with pytest.raises(UserError, match="no model at .*nowhere"):
    pretrained.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
  "name", ["config.json", "model.safetensors", hf.VALUE_HEADS]
)
def test_what_is_no_file_in_a_folder_is_named(tmp_path, name):
  folder = export(tmp_path / "out", LLAMA, make(LLAMA)[1])
  file = folder / name
  for put, message in (
    (os.mkfifo, "is a FIFO"),
    (os.mkdir, "is a folder"),
    (lambda f: f.symlink_to("/dev/zero"), "is a device"),
    (lambda f: f.symlink_to(name), "symbolic links"),
    (lambda f: f.symlink_to("gone"), "where nothing is"),
  ):
    shutil.rmtree(file) if file.is_dir() else file.unlink()
    put(file)
    with pytest.raises(UserError, match=f"{name}.*{message}"):
      pretrained.load(folder)


def test_a_header_of_gigabytes_is_refused(tmp_path):
  folder = export(tmp_path / "out", LLAMA, make(LLAMA)[1])
  file = folder / "model.safetensors"
  file.write_bytes((2**40).to_bytes(8, "little") + file.read_bytes()[8:])
  with pytest.raises(UserError, match="header has 1,099,511,627,776 bytes"):
    pretrained.load(folder)


def test_pickles_are_refused_by_name(tmp_path):
  folder = export(tmp_path / "out", LLAMA, make(LLAMA)[1])
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
  with pytest.raises(UserError, match=r"pickle files \(pytorch_model\.bin\)"):
    pretrained.load(folder)
  for name in ("x.pt", "x.bin", "x.pth"):
    with pytest.raises(UserError, match=f"{name} is a pickle file"):
      pretrained.load(tmp_path / name)


def test_tensors_of_other_formats_are_refused_by_name(tmp_path):
  folder = export(tmp_path / "out", LLAMA, make(LLAMA)[1])
  arrays = load_file(folder / "model.safetensors")
  arrays["model.norm.weight"] = arrays["model.norm.weight"].astype(np.int8)
  save_file(arrays, folder / "model.safetensors")
  with pytest.raises(UserError, match=r"model\.norm\.weight is stored as I8"):
    pretrained.load(folder)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ({"weight_map": {"a": "model-9.safetensors"}}, "lacks model-9.safetensors"),
    ({"weight_map": {"a": "../x.safetensors"}}, "no file beside it"),
    ({}, "has no weight_map"),
  ],
)
def test_an_index_of_other_files_is_refused(tmp_path, content, message):
  folder = export(tmp_path / "out", LLAMA, make(LLAMA)[1])
  (folder / "model.safetensors").unlink()
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps(content))
  with pytest.raises(UserError, match=message):
    pretrained.load(folder)


def test_value_outputs_of_another_model_are_refused(tmp_path):
  folder = export(tmp_path / "out", LLAMA, make(LLAMA)[1])
  heads = load_file(folder / hf.VALUE_HEADS)
  save_file(
    heads | {"value_bias_2": np.zeros(3, "f4")}, folder / hf.VALUE_HEADS
  )
  with pytest.raises(UserError, match=r"value_bias_2 has shape \[3\]"):
    pretrained.load(folder)
  heads.pop("value_bias_2")
  save_file(heads, folder / hf.VALUE_HEADS)
  with pytest.raises(UserError, match="value outputs of .* are value_hidden"):
    pretrained.load(folder)


def test_both_special_norms_and_biases_have_no_architecture():
  with pytest.raises(UserError, match="no Hugging Face"):
    families.family(dataclasses.replace(LLAMA, qkv_bias=True, qk_norm=True))


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
