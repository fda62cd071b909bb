"""Small models, and the folders that they are published in."""

import dataclasses
import json

import numpy as np

from tests.noisy import add_noise
from tsd_jax.models import hf, transformer
from tsd_jax.models.symbols import SymbolTokenizer
from tsd_jax.models.transformer import ModelConfig
from tsd_jax.run import preferences

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
TOKENS_RT = np.random.default_rng(0).integers(0, 208, (3, 20))


def make(config, seed=0):
  """A model in which every parameter counts: no zeros, no ones."""
  graphdef, params = transformer.create(config, seed)
  return graphdef, add_noise(params, scale=0.1, seed=7)


def export(folder, config, params, **kwargs):
  hf.save(folder, config, params, SymbolTokenizer(), max_length=64, **kwargs)
  return folder


def reward_model(folder, shape="llama", heads=3, seed=0):
  """Writes a random reward model of symbols; returns its path."""
  config, params = SHAPES[shape], make(SHAPES[shape], seed)[1]
  config, _, trunk = preferences.without_output(config, params)
  rng = np.random.default_rng(seed)
  made = hf.RewardHeads(
    rng.normal(size=(heads, config.d_model)).astype("float32") / 4,
    rng.normal(size=heads).astype("float32"),
  )
  export(folder, config, trunk, reward=made)
  return str(folder)


def edit_config(folder, **changes):
  """Sets attributes of config.json; None removes one."""
  file = folder / "config.json"
  saved = json.loads(file.read_text()) | changes
  saved = {k: v for k, v in saved.items() if v is not None}
  file.write_text(json.dumps(saved))
