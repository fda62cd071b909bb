"""Named model shapes, each checked against the published parameter count."""

import dataclasses

from tsd_jax.models.transformer import ModelConfig

# Symbol-level tasks: integers are tokens. 0.49 M parameters.
TINY = ModelConfig(
  vocab_size=208,
  d_model=128,
  num_layers=2,
  num_heads=4,
  num_kv_heads=4,
  head_dim=32,
  d_mlp=384,
  number_tokens=200,
  unroll_layers=2,
)

SMOLLM2_135M = ModelConfig(
  vocab_size=49_152,
  d_model=576,
  num_layers=30,
  num_heads=9,
  num_kv_heads=3,
  head_dim=64,
  d_mlp=1_536,
  rope_theta=100_000.0,
  rms_eps=1e-5,
)

QWEN2_5_0_5B = ModelConfig(
  vocab_size=151_936,
  d_model=896,
  num_layers=24,
  num_heads=14,
  num_kv_heads=2,
  head_dim=64,
  d_mlp=4_864,
  rope_theta=1_000_000.0,
  qkv_bias=True,
)

QWEN2_5_1_5B = dataclasses.replace(
  QWEN2_5_0_5B,
  d_model=1_536,
  num_layers=28,
  num_heads=12,
  head_dim=128,
  d_mlp=8_960,
)

QWEN3_0_6B = ModelConfig(
  vocab_size=151_936,
  d_model=1_024,
  num_layers=28,
  num_heads=16,
  num_kv_heads=8,
  head_dim=128,
  d_mlp=3_072,
  rope_theta=1_000_000.0,
  qk_norm=True,
)

QWEN3_1_7B = dataclasses.replace(QWEN3_0_6B, d_model=2_048, d_mlp=6_144)

LLAMA3_8B = ModelConfig(
  vocab_size=128_256,
  d_model=4_096,
  num_layers=32,
  num_heads=32,
  num_kv_heads=8,
  head_dim=128,
  d_mlp=14_336,
  rope_theta=500_000.0,
  rms_eps=1e-5,
  tied_embeddings=False,
  remat=True,
)

LLAMA3_70B = dataclasses.replace(
  LLAMA3_8B, d_model=8_192, num_layers=80, num_heads=64, d_mlp=28_672
)

# A dense shape for compile-time planning only; nobody published weights of it.
DENSE_1T = dataclasses.replace(
  LLAMA3_8B,
  d_model=24_576,
  num_layers=140,
  num_heads=192,
  num_kv_heads=16,
  d_mlp=81_920,
  vocab_size=131_072,
)
