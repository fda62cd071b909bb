"""Models none of whose parameters is a zero or a one that hides a bug."""

import jax
from flax import nnx


def add_noise(params, scale, seed):
  """Adds a normal draw to every parameter."""
  flat = nnx.to_flat_state(params)
  keys = jax.random.split(jax.random.key(seed), len(flat))
  return nnx.from_flat_state(
    [
      (name, v.replace(v[...] + scale * jax.random.normal(key, v[...].shape)))
      for (name, v), key in zip(flat, keys, strict=True)
    ]
  )
