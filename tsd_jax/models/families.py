"""Published model families: their configs, and what of them is refused.

A config that says something which our core does not compute is refused by
name, and so is one that says something unknown: a model that is almost the
published one would give almost its text.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tsd_jax.base import outside_files
from tsd_jax.base.errors import UserError
from tsd_jax.models.transformer import ModelConfig

ARCHITECTURES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
# What follows that in the name of a language model, and of a reward model.
WRITES, SCORES = "ForCausalLM", "ForSequenceClassification"

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
# Attributes that change the result, with the one value that we compute.
_FIXED = {
  "add_cross_attention": False,
  "chunk_size_feed_forward": 0,
  "is_causal": True,
  "is_encoder_decoder": False,
  "mlp_bias": False,
  "partial_rotary_factor": 1.0,
  "pruned_heads": {},
  "rope_interleaved": False,
  "use_mrope": False,
  "use_sliding_window": False,
}
_SILU = ("silu", "swish")  # Two names of one function.
# Attributes without influence on the logits of a full forward.
_HARMLESS = {
  "attention_dropout", "bos_token_id", "dtype", "eos_token_id",
  "initializer_range", "is_llama_config", "max_position_embeddings",
  "max_window_layers", "name_or_path", "pad_token_id", "pretraining_tp",
  "torch_dtype", "transformers.js_config", "transformers_version",
  "use_cache",
  # What transformers writes for every model, and for its own uses of one.
  "attn_implementation", "auto_map", "cross_attention_hidden_size",
  "decoder_start_token_id", "finetuning_task", "id2label", "is_decoder",
  "keys_to_ignore_at_inference", "label2id", "num_labels",
  "output_attentions", "output_hidden_states", "prefix", "problem_type",
  "return_dict", "sep_token_id", "task_specific_params", "tf_legacy_loss",
  "tie_encoder_decoder", "tokenizer_class", "torchscript", "unk_token_id",
  "use_bfloat16", "use_return_dict",
  # How a text is sampled, in folders without generation_config.json.
  "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample",
  "early_stopping", "encoder_no_repeat_ngram_size",
  "exponential_decay_length_penalty", "forced_bos_token_id",
  "forced_eos_token_id", "length_penalty", "max_length", "min_length",
  "no_repeat_ngram_size", "num_beam_groups", "num_beams",
  "num_return_sequences", "output_scores", "remove_invalid_values",
  "repetition_penalty", "return_dict_in_generate", "suppress_tokens",
  "temperature", "top_k", "top_p", "typical_p",
}  # fmt: skip
# What transformers takes where config.json lacks a key. A null is another
# thing: it means what follows from the rest.
_ABSENT = {
  "llama": {},
  "qwen2": {"num_key_value_heads": 32},
  "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
}
_ANY_ABSENT = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False}


# What arithmetic with odd values raises. TypeError: a list, one value a layer.
_ODD = (TypeError, ValueError, AttributeError, ArithmeticError)


class Card(NamedTuple):
  """What a published model says of itself besides its tensors."""

  config: ModelConfig
  max_length: int | None  # Positions that it was trained on, where it says so.
  scores: bool = False  # Whether it gives rewards instead of next tokens.


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


def to_hf(
  config: ModelConfig,
  *,
  max_length: int,
  dtype: str,
  tokens: Mapping[str, Any],
  scores: bool = False,
) -> dict[str, Any]:
  """Content of their config.json.

  Args:
    config: our shape.
    max_length: positions that the model was trained on.
    dtype: of the tensors beside it.
    tokens: ids by role, such as `{"eos_token_id": 207}`.
    scores: whether it is a reward model.
  """
  name = family(config)
  labels = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
  return {
    "architectures": [ARCHITECTURES[name] + (SCORES if scores else WRITES)],
    **(labels if scores else {}),
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
    "dtype": dtype,
    # The same under the name that older readers know.
    "torch_dtype": dtype,
    **tokens,
  }


def from_hf(saved: Mapping[str, Any]) -> Card:
  """Reads their config.json.

  Raises:
    UserError: naming what this model has and our core has not, or what this
      reader does not know.
  """
  kind = saved.get("model_type")
  if not isinstance(kind, str) or kind not in ARCHITECTURES:
    raise UserError(
      f"model_type={kind!r:.60} is not supported: choose a model of type "
      f"{', '.join(ARCHITECTURES)}"
    )
  writes, scores = (ARCHITECTURES[kind] + head for head in (WRITES, SCORES))
  head = saved.get("architectures") or [writes]
  if head not in ([writes], [scores]):
    raise UserError(
      f"architectures={saved['architectures']} is not supported: choose a "
      f"model with {writes}, or a reward model with {scores}"
    )
  said = {k: v for k, v in saved.items() if v is not None and k[:1] != "_"}
  try:
    rope = _rope(said)
    _check_attributes(kind, said)
    said = _derived(kind, saved, said) | said
    sizes = {ours: said[theirs] for ours, theirs in _SIZES.items()}
    config = ModelConfig(
      **_typed(sizes),
      rope_theta=rope,
      qkv_bias=kind == "qwen2",
      qk_norm=kind == "qwen3",
    )
    length = _length(said.get("max_position_embeddings"))
    return Card(config, length, head == [scores])
  except KeyError as error:
    raise UserError(f"config.json has no {error}") from None
  except _ODD as error:
    message = str(error)
    # In their words.
    for ours, theirs in (*_SIZES.items(), ("rope_theta", "rope_theta")):
      message = message.replace(f"model.{ours}=", f"{theirs}=")
    raise UserError(f"config.json: {message}") from error


def _derived(
  kind: str, saved: Mapping[str, Any], said: Mapping[str, Any]
) -> dict[str, Any]:
  """What config.json means by what it does not say.

  Raises:
    KeyError: it lacks what everything else follows from.
  """
  width, heads = said["hidden_size"], said["num_attention_heads"]
  derived = {"num_key_value_heads": heads}
  if kind != "qwen3":
    derived["head_dim"] = width // heads
  absent = _ANY_ABSENT | _ABSENT[kind]
  return derived | {k: v for k, v in absent.items() if k not in saved}


def _rope(said: Mapping[str, Any]) -> float:
  """Base of the rotary frequencies; other kinds of them are refused."""
  # The older name comes first in transformers, all of it.
  rope = dict(said.get("rope_scaling") or said.get("rope_parameters") or {})
  kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
  rope.pop("type", None)
  if kind != "default":
    raise UserError(
      f"rope_type={kind} is not supported: choose a model whose rotary "
      "frequencies are not scaled (an edited config.json would make another "
      "model of this one)"
    )
  theta = rope.pop("rope_theta", said.get("rope_theta", 10_000.0))
  if odd := {k: v for k, v in rope.items() if v is not None}:
    raise UserError(f"rope_parameters have {_show(odd.items())}: not supported")
  if isinstance(theta, bool) or not isinstance(theta, int | float):
    raise ValueError(f"rope_theta={theta!r} is of a wrong type")
  return float(theta)


def _check_attributes(kind: str, said: Mapping[str, Any]) -> None:
  """Refuses what changes the result, and what nobody here has heard of."""
  fixed = dict(_FIXED)
  if kind != "qwen2":  # There it says what is always so.
    fixed["attention_bias"] = False
  wrong = [(k, said[k]) for k in fixed if k in said and said[k] != fixed[k]]
  if said.get("hidden_act", "silu") not in _SILU:
    wrong.append(("hidden_act", said["hidden_act"]))
  layers = said.get("layer_types") or []
  if any(layer != "full_attention" for layer in layers):
    wrong.append(("layer_types", sorted(set(layers))))
  if kind == "llama" and "sliding_window" in said:
    wrong.append(("sliding_window", said["sliding_window"]))
  if wrong:
    raise UserError(f"a {kind} with {_show(wrong)} is not supported")
  known = {
    "architectures", "attention_bias", "hidden_act", "layer_types",
    "model_type",
    "rope_parameters", "rope_scaling", "rope_theta", "sliding_window",
    *_SIZES.values(), *_HARMLESS, *fixed,
  }  # fmt: skip
  if unknown := [(k, v) for k, v in said.items() if k not in known]:
    raise UserError(
      f"config.json says {_show(unknown)}, which is unknown here and may "
      "change what the model computes: choose another model, or remove it from "
      "a copy if you know that transformers reads over it"
    )


def _show(attributes: Iterable[tuple[str, Any]]) -> str:
  return ", ".join(f"{name}={value}" for name, value in attributes)


def _typed(sizes: dict[str, Any]) -> dict[str, Any]:
  """Checks the types of JSON's values.

  Raises:
    ValueError: naming the attribute in their words.
  """
  for ours, value in sizes.items():
    kind = {"rms_eps": (float, int), "tied_embeddings": bool}.get(ours, int)
    if not isinstance(value, kind) or (
      isinstance(value, bool) and kind is not bool
    ):
      raise ValueError(f"{_SIZES[ours]}={value!r:.60} is of a wrong type")
    if not abs(value) <= outside_files.COUNT:
      raise ValueError(f"{_SIZES[ours]}={value!r:.60} is too large")
  return sizes


# Ours <- theirs in GGUF metadata, below the architecture's name.
_GGUF_SIZES = {
  "d_model": "embedding_length",
  "num_layers": "block_count",
  "num_heads": "attention.head_count",
  "d_mlp": "feed_forward_length",
}
_GGUF_OPTIONAL = {
  "attention.head_count_kv", "attention.key_length", "attention.value_length",
  "attention.layer_norm_rms_epsilon", "context_length", "rope.dimension_count",
  "rope.freq_base", "rope.scaling.type", "vocab_size",
}  # fmt: skip


def to_gguf(config: ModelConfig, *, max_length: int) -> dict[str, Any]:
  """Metadata of a GGUF file: its architecture's name, and sizes below it.

  Args:
    config: our shape.
    max_length: positions that the model was trained on.

  Raises:
    UserError: no architecture of theirs, or of llama.cpp, has this shape.
  """
  kind = family(config)
  width = config.num_heads * config.head_dim
  if kind == "qwen2" and width != config.d_model:
    raise UserError(
      f"a qwen2 of {config.num_heads} heads of {config.head_dim} numbers, "
      f"{width} in all, not model.d_model={config.d_model}, is none that "
      "llama.cpp reads: export a Hugging Face folder (--format=huggingface)"
    )
  sizes = {
    theirs: getattr(config, ours) for ours, theirs in _GGUF_SIZES.items()
  }
  sizes |= {
    "attention.head_count_kv": config.num_kv_heads,
    "attention.key_length": config.head_dim,
    "attention.value_length": config.head_dim,
    "attention.layer_norm_rms_epsilon": config.rms_eps,
    "context_length": max_length,
    "rope.dimension_count": config.head_dim,
    "rope.freq_base": float(config.rope_theta),
    "vocab_size": config.vocab_size,
  }
  said = {f"{kind}.{name}": value for name, value in sizes.items()}
  return {"general.architecture": kind} | said


def from_gguf(said: Mapping[str, Any], *, vocab_size: int, tied: bool) -> Card:
  """Reads the metadata of a GGUF file.

  Args:
    said: all of it, by name.
    vocab_size: rows of the embedding.
    tied: whether the file has no output matrix.

  Raises:
    UserError: naming what this model has and our core has not, or what this
      reader does not know.
  """
  kind = said.get("general.architecture")
  if not isinstance(kind, str) or kind not in ARCHITECTURES:
    raise UserError(
      f"general.architecture={kind!r:.60} is not supported: choose a model of "
      f"type {', '.join(ARCHITECTURES)}"
    )
  prefix = f"{kind}."
  own = {
    k.removeprefix(prefix): v for k, v in said.items() if k.startswith(prefix)
  }
  known = {*_GGUF_SIZES.values(), *_GGUF_OPTIONAL}
  if unknown := [(prefix + k, v) for k, v in own.items() if k not in known]:
    raise UserError(f"a {kind} with {_show(unknown)} is not supported")
  try:
    sizes: dict[str, Any] = {
      ours: int(own[theirs]) for ours, theirs in _GGUF_SIZES.items()
    }
    head_dim = own.get(
      "attention.key_length", sizes["d_model"] // sizes["num_heads"]
    )
    same = {
      "attention.value_length": head_dim,
      "rope.dimension_count": head_dim,
      "rope.scaling.type": "none",
      "vocab_size": vocab_size,
    }
    for name, value in same.items():
      if own.get(name, value) != value:
        raise UserError(
          f"{prefix}{name}={own[name]} is not supported: expected {value}"
        )
    config = ModelConfig(
      **sizes,
      vocab_size=vocab_size,
      num_kv_heads=int(own.get("attention.head_count_kv", sizes["num_heads"])),
      head_dim=int(head_dim),
      rms_eps=_short(own["attention.layer_norm_rms_epsilon"]),
      rope_theta=_short(own.get("rope.freq_base", 10_000.0)),
      tied_embeddings=tied,
      qkv_bias=kind == "qwen2",
      qk_norm=kind == "qwen3",
    )
    return Card(config, _length(own.get("context_length")))
  except KeyError as error:
    raise UserError(f"the metadata lacks {prefix}{error.args[0]}") from None
  except _ODD as error:
    # TypeError: a list, one value a layer.
    raise UserError(f"the metadata of a {kind}: {error}") from error


def _length(value: Any) -> int | None:
  if value is not None and int(value) < 1:
    raise ValueError(f"a model of {int(value)} positions")
  return None if value is None else int(value)


def _short(value: float) -> float:
  """The shortest decimal of a float32: 1e-5, not 9.99999974e-06."""
  return float(str(np.float32(value)))
