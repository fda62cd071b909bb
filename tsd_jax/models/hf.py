"""Hugging Face folders: written so that transformers loads them, and read.

One table of names serves both ways. The value outputs, which transformers does
not know, travel beside the model in their own file.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tsd_jax.config import UserError
from tsd_jax.models import transformer, weights
from tsd_jax.models.transformer import ModelConfig

VALUE_HEADS = "value_heads.safetensors"

# Ours -> theirs; the same array.
_GLOBAL = {
  "embedding_VD": "model.embed_tokens.weight",
  "final_norm_D": "model.norm.weight",
  "unembedding_VD": "lm_head.weight",
}
# Ours -> theirs in layer i, and how many leading axes (after L) are inputs.
# Theirs are matrices of [outputs, inputs]; 0 inputs is a vector.
_LAYER = {
  "attention_norm_LD": ("input_layernorm.weight", 0),
  "query_LDHE": ("self_attn.q_proj.weight", 1),
  "key_LDKE": ("self_attn.k_proj.weight", 1),
  "value_LDKE": ("self_attn.v_proj.weight", 1),
  "output_LHED": ("self_attn.o_proj.weight", 2),
  "query_bias_LHE": ("self_attn.q_proj.bias", 0),
  "key_bias_LKE": ("self_attn.k_proj.bias", 0),
  "value_bias_LKE": ("self_attn.v_proj.bias", 0),
  "query_norm_LE": ("self_attn.q_norm.weight", 0),
  "key_norm_LE": ("self_attn.k_norm.weight", 0),
  "mlp_norm_LD": ("post_attention_layernorm.weight", 0),
  "gate_LDF": ("mlp.gate_proj.weight", 1),
  "up_LDF": ("mlp.up_proj.weight", 1),
  "down_LFD": ("mlp.down_proj.weight", 1),
}
# Ours <-> theirs in config.json.
_SIZES = {
  "vocab_size": "vocab_size",
  "d_model": "hidden_size",
  "num_layers": "num_hidden_layers",
  "num_heads": "num_attention_heads",
  "num_kv_heads": "num_key_value_heads",
  "head_dim": "head_dim",
  "d_mlp": "intermediate_size",
  "rms_eps": "rms_norm_eps",
  "tied_embeddings": "tie_word_embeddings",
}


def family(config: ModelConfig) -> str:
  """Their `model_type` of a shape.

  Raises:
    UserError: if no architecture of theirs has this shape.
  """
  if config.qkv_bias and config.qk_norm:
    raise UserError(
      "model.qkv_bias and model.qk_norm together are no Hugging Face "
      "architecture: choose one to export"
    )
  return {(True, False): "qwen2", (False, True): "qwen3"}.get(
    (config.qkv_bias, config.qk_norm), "llama"
  )


def config_to_hf(
  config: ModelConfig, *, max_length: int, tokens: Mapping[str, int]
) -> dict[str, Any]:
  """Content of their config.json.

  Args:
    config: our shape.
    max_length: positions that the model was trained on.
    tokens: ids by role, such as `{"eos_token_id": 207}`.
  """
  name = family(config)
  architecture = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[name]
  return {
    "architectures": [f"{architecture}ForCausalLM"],
    "model_type": name,
    **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
    # Both spellings: transformers 5 reads the second, earlier ones the first.
    "rope_theta": config.rope_theta,
    "rope_parameters": {
      "rope_type": "default",
      "rope_theta": config.rope_theta,
    },
    "hidden_act": "silu",
    "attention_bias": config.qkv_bias,
    "max_position_embeddings": max_length,
    "dtype": "float32",
    **tokens,
  }


def config_from_hf(saved: Mapping[str, Any]) -> ModelConfig:
  """Our shape of their config.json.

  Raises:
    UserError: naming what this model has and our core has not.
  """
  kind = saved.get("model_type")
  if kind not in ("llama", "qwen2", "qwen3"):
    raise UserError(
      f"model_type={kind!r} is not supported: use llama, qwen2 or qwen3"
    )
  rope = saved.get("rope_parameters") or saved.get("rope_scaling") or {}
  rope_type = rope.get("rope_type", rope.get("type", "default"))
  odd = {
    "rope_type": rope_type not in (None, "default"),
    "hidden_act": saved.get("hidden_act", "silu") != "silu",
    "attention_bias": bool(saved.get("attention_bias")) and kind != "qwen2",
    "mlp_bias": bool(saved.get("mlp_bias")),
    "use_sliding_window": bool(saved.get("use_sliding_window")),
  }
  if any(odd.values()):
    names = ", ".join(
      f"{name}={rope_type if name == 'rope_type' else saved[name]}"
      for name, is_odd in odd.items()
      if is_odd
    )
    raise UserError(f"a {kind} with {names} is not supported")
  try:
    heads, width = saved["num_attention_heads"], saved["hidden_size"]
    defaults = {
      "num_key_value_heads": heads,
      "head_dim": width // heads,
      "tie_word_embeddings": False,
    }
    sizes = {
      ours: saved[theirs] if saved.get(theirs) is not None else defaults[theirs]
      for ours, theirs in _SIZES.items()
    }
    return ModelConfig(
      **sizes,
      rope_theta=float(
        rope.get("rope_theta") or saved.get("rope_theta") or 10_000.0
      ),
      qkv_bias=kind == "qwen2",
      qk_norm=kind == "qwen3",
    )
  except KeyError as error:
    raise UserError(f"config.json has no {error}") from None
  except ValueError as error:
    raise UserError(f"config.json: {error}") from error


def _pieces(
  flat: Mapping[str, np.ndarray],
) -> Iterator[tuple[str, str, int | None, int]]:
  """Yields (our name, their name, layer or None, number of input axes)."""
  for ours, array in flat.items():
    if ours.startswith("value_"):
      continue
    if ours in _GLOBAL:
      yield ours, _GLOBAL[ours], None, 0
      continue
    theirs, inputs = _LAYER[ours.removeprefix("layers.")]
    for i in range(array.shape[0]):
      yield ours, f"model.layers.{i}.{theirs}", i, inputs


def _to_theirs(array: np.ndarray, inputs: int) -> np.ndarray:
  if inputs == 0:
    return array.reshape(-1)
  width = int(np.prod(array.shape[:inputs]))
  return np.ascontiguousarray(array.reshape(width, -1).T)


def save(
  folder: str | pathlib.Path,
  config: ModelConfig,
  params,
  tokenizer,
  *,
  max_length: int,
) -> None:
  """Writes a folder that transformers loads; it appears whole or not at all.

  Args:
    folder: must not exist, or be empty.
    config: shape of the model.
    params: its parameters.
    tokenizer: ids of the special tokens, and their tokenizer's two files.
    max_length: positions that the model was trained on.

  Raises:
    UserError: if the folder holds something.
  """
  folder = pathlib.Path(folder)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f"--output={folder} is not empty: name a new folder")
  tokens = {
    f"{role}_token_id": getattr(tokenizer, f"{role}_id")
    for role in ("bos", "eos", "pad")
  }
  files = {
    "config.json": config_to_hf(config, max_length=max_length, tokens=tokens),
    "generation_config.json": {**tokens, "do_sample": True, "temperature": 1.0},
    "tokenizer.json": tokenizer.to_huggingface_json(),
    "tokenizer_config.json": tokenizer.to_huggingface_config(),
  }
  flat = weights.flatten(params)
  model = {
    theirs: flat[ours] if i is None else _to_theirs(flat[ours][i], inputs)
    for ours, theirs, i, inputs in _pieces(flat)
  }
  heads = {k: v for k, v in flat.items() if k.startswith("value_")}
  folder.parent.mkdir(parents=True, exist_ok=True)
  partial = folder.with_name(folder.name + ".partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir()
  for name, content in files.items():
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    (partial / name).write_text(text, encoding="utf-8")
  # transformers refuses a file that does not say which framework wrote it.
  save_file(model, str(partial / "model.safetensors"), {"format": "pt"})
  save_file(heads, str(partial / VALUE_HEADS))
  os.replace(partial, folder)


def load(folder: str | pathlib.Path, **changes: Any):
  """Reads a folder of transformers' format, one file or several.

  Args:
    folder: with config.json and safetensors.
    **changes: fields of `ModelConfig` to set, such as `compute_dtype`.

  Returns:
    ModelConfig, graphdef and params. Value outputs are read where the folder
    has them and start fresh where it has not.

  Raises:
    UserError: if a file is missing or damaged, or the model is another one
      than its config.json says.
  """
  folder = pathlib.Path(folder)
  try:
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise UserError(f"no model in {folder}: config.json is missing") from None
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise UserError(f"{folder}/config.json is damaged ({error})") from error
  config = dataclasses.replace(config_from_hf(saved), **changes)
  graphdef, params = transformer.create(config, seed=0)
  ours_flat = weights.flatten(params)
  flat = {
    name: a if name.startswith("value_") else np.empty(a.shape, np.float32)
    for name, a in ours_flat.items()
  }
  pieces = {
    theirs: (ours, i, inputs) for ours, theirs, i, inputs in _pieces(flat)
  }
  found = set()
  files = sorted(folder.glob("model*.safetensors"))
  if not files:
    raise UserError(f"no model in {folder}: model.safetensors is missing")
  for file in files:
    for theirs, array in _read(file):
      if theirs not in pieces:
        if theirs == "lm_head.weight" and config.tied_embeddings:
          continue
        raise UserError(f"{file} has {theirs}, unknown to a {family(config)}")
      ours, i, inputs = pieces[theirs]
      target = flat[ours] if i is None else flat[ours][i]
      array = array.T if inputs else array
      if array.size != target.size:
        raise UserError(
          f"{file}: {theirs} has shape {array.shape}, which cannot be ours of "
          f"{target.shape}: config.json is of another model"
        )
      target[...] = array.reshape(target.shape)
      found.add(theirs)
  if missing := sorted(set(pieces) - found):
    raise UserError(f"{folder} lacks {len(missing)} arrays: {missing[:3]}")
  if (folder / VALUE_HEADS).is_file():
    heads = dict(_read(folder / VALUE_HEADS))
    if {k: v.shape for k, v in heads.items()} != {
      k: v.shape for k, v in flat.items() if k.startswith("value_")
    }:
      raise UserError(f"{folder / VALUE_HEADS} is of another model")
    flat |= heads
  return config, graphdef, weights.unflatten(params, flat)


def _read(file: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
  """Yields the arrays of a safetensors file as float32, one at a time."""
  try:
    with safe_open(str(file), framework="flax") as opened:
      for name in opened.keys():
        yield name, np.asarray(opened.get_tensor(name)).astype(np.float32)
  except SafetensorError as error:
    raise UserError(f"{file} is damaged ({error})") from error
