"""Time of a call, and the least that a model's multiplications take."""

import statistics
import time

import jax
import jax.numpy as jnp


def seconds(call, repeats):
  """Median time of a call, after one that compiles."""
  jax.block_until_ready(call())
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def floor_seconds(model, rows, calls, repeats):
  """Time of `calls` passes of `rows` tokens through the weight matrices."""
  c = model.config
  w = {n: p[...].astype(model.dtype) for n, p in model.layers.items()}
  shapes = {
    "query_LDHE": (c.d_model, -1),
    "key_LDKE": (c.d_model, -1),
    "value_LDKE": (c.d_model, -1),
    "output_LHED": (-1, c.d_model),
    "gate_LDF": (c.d_model, -1),
    "up_LDF": (c.d_model, -1),
    "down_LFD": (-1, c.d_model),
  }
  matrices = {n: w[n].reshape(c.num_layers, *s) for n, s in shapes.items()}

  embedding_VD = model.embedding_VD[...].astype(model.dtype)

  @jax.jit
  def run(x_RD):
    def layer(x_RD, m):
      q, k, v = (x_RD @ m[n] for n in ("query_LDHE", "key_LDKE", "value_LDKE"))
      x_RD += q @ m["output_LHED"] + (k.sum() + v.sum()) * 1e-9
      x_RD += (x_RD @ m["gate_LDF"] + x_RD @ m["up_LDF"]) @ m["down_LFD"]
      return x_RD, None

    def call(x_RD, _):
      x_RD, _ = jax.lax.scan(layer, x_RD, matrices)
      logits_RV = x_RD @ embedding_VD.T
      least = logits_RV.mean().astype(x_RD.dtype) * 1e-9
      return x_RD * 1e-3 + least, None

    return jax.lax.scan(call, x_RD, length=calls)[0]

  x_RD = jnp.full((rows, c.d_model), 1e-3, model.dtype)
  return seconds(lambda: run(x_RD), repeats)
