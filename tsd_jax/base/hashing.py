"""A hash that programs of JAX can compute."""

import jax.numpy as jnp

from tsd_jax.base.types import Array


def hashed(word_XZ: Array) -> Array:
  """Mixes Z integers into one, uint32 X (FNV-1a, a finish as in MurmurHash)."""
  word_XZ = word_XZ.astype(jnp.uint32)
  hash_X = jnp.full(word_XZ.shape[:-1], 2166136261, jnp.uint32)
  for k in range(word_XZ.shape[-1]):
    hash_X = (hash_X ^ word_XZ[..., k]) * jnp.uint32(16777619)
    hash_X ^= hash_X >> 15
  hash_X = (hash_X ^ (hash_X >> 16)) * jnp.uint32(0x85EBCA6B)
  hash_X = (hash_X ^ (hash_X >> 13)) * jnp.uint32(0xC2B2AE35)
  return hash_X ^ (hash_X >> 16)
