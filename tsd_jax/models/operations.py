"""What a layer is made of: norm, projection, rotary positions, attention."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tsd_jax.base.types import LOG_ZERO, Array


def rms_norm(x_XD: Array, scale_D: Array, eps: float) -> Array:
  """Root-mean-square normalisation in float32 (arXiv:1910.07467)."""
  x32_XD = x_XD.astype(jnp.float32)
  x32_XD *= jax.lax.rsqrt(jnp.mean(x32_XD**2, axis=-1, keepdims=True) + eps)
  scale_D = scale_D.reshape((1,) * (x_XD.ndim - 1) + scale_D.shape)
  return (x32_XD * scale_D).astype(x_XD.dtype)


def project(x_XD: Array, w_DF: Array, dtype=None) -> Array:
  """Multiplies features by a matrix; all rows in one matmul, also backward.

  D and F are here whatever a matrix reads and whatever it makes.
  """
  return project_each(x_XD, (w_DF,), dtype)[0]


def _project_each(
  x_XD: Array, weights: tuple[Array, ...], dtype=None
) -> tuple[Array, ...]:
  """Multiplies the same features by several matrices, DF each.

  JAX's own weight gradient is (g^T x)^T, for which XLA on CPU writes g^T and
  all that is fused into g column by column, slower than the matmul itself.
  """
  return tuple(
    jnp.dot(x_XD, w_DF, preferred_element_type=dtype) for w_DF in weights
  )


project_each = jax.custom_vjp(_project_each, nondiff_argnums=(2,))


def _project_forward(x_XD, weights, dtype):
  return project_each(x_XD, weights, dtype), (x_XD, weights)


def _project_backward(dtype, saved, gradients):
  del dtype
  x_XD, weights = saved
  x_RD = x_XD.reshape(-1, x_XD.shape[-1])
  # Turned before it is multiplied, which XLA on CPU does on the way, slower.
  x_DR = jax.lax.platform_dependent(
    x_RD,
    cpu=lambda x_RD: jax.lax.optimization_barrier(x_RD.T),
    default=lambda x_RD: x_RD.T,
  )
  each_RD, dw = [], []
  for w_DF, g_XF in zip(weights, gradients, strict=True):
    g_RF = g_XF.reshape(-1, g_XF.shape[-1])
    each_RD.append(g_RF @ w_DF.T)
    dw.append((x_DR @ g_RF).astype(w_DF.dtype))
  dx_RD = functools.reduce(jnp.add, each_RD)
  return dx_RD.reshape(x_XD.shape).astype(x_XD.dtype), tuple(dw)


project_each.defvjp(_project_forward, _project_backward)


def rope_tables(positions_RT: Array, head_dim: int, theta: float):
  """Cosines and sines of rotary positions (arXiv:2104.09864), float32."""
  exponent_e = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
  frequency_e = jnp.asarray(theta**-exponent_e, jnp.float32)[None, None]
  angle_RTe = positions_RT[..., None].astype(jnp.float32) * frequency_e
  cos_RTe, sin_RTe = jnp.cos(angle_RTe), jnp.sin(angle_RTe)
  # Fused into its uses, a cosine would be taken again for every head and layer.
  return jax.lax.optimization_barrier(
    tuple(
      jnp.stack(halves, axis=-2)[:, :, None]
      for halves in ((cos_RTe, cos_RTe), (-sin_RTe, sin_RTe))
    )
  )


def apply_rope(x_RTHE: Array, tables: tuple[Array, Array]) -> Array:
  """Rotates the two halves of each head (the "rotate half" layout)."""
  cos_RT12e, sin_RT12e = tables
  shape = x_RTHE.shape
  x_RTH2e = x_RTHE.astype(jnp.float32).reshape(*shape[:-1], 2, -1)
  # Halves change places by a reversal; XLA on CPU joins two halves value by
  # value.
  turned_RTH2e = jax.lax.rev(x_RTH2e, (3,))
  rotated_RTH2e = x_RTH2e * cos_RT12e + turned_RTH2e * sin_RT12e
  return rotated_RTH2e.reshape(shape).astype(x_RTHE.dtype)


def attend(
  q_RTHE: Array, pieces: Sequence[tuple[Array, Array, Array]]
) -> Array:
  """Softmax attention over several pieces of the past, in one softmax.

  Neither keys nor values nor scores are put together: no cache is copied.

  Args:
    q_RTHE: queries, R rows.
    pieces: (k_rKSE, v_rKSE, mask) each, with r dividing R and the mask
      broadcastable to RTS.

  Returns:
    Attention output, RTHE.
  """
  rows, T, H, E = q_RTHE.shape

  # The heads of a key lead its rows, so that devices may share them.
  def beside(x_RTHX, past):
    """Rows beside the past that serves them, [r, K, H/K*T, X]."""
    r, K = past.shape[:2]
    x = x_RTHX.reshape(r, rows // r * T, K, H // K, -1)
    return x.transpose(0, 2, 3, 1, 4).reshape(r, K, -1, x.shape[-1])

  def back(x):
    """The rows as they were, RTHX."""
    r, K, _, X = x.shape
    x = x.reshape(r, K, H // K, -1, X)
    return x.transpose(0, 3, 1, 2, 4).reshape(rows, T, H, X)

  def multiply(x_RTHX, past, over):
    """Rows times keys or values, summed over an axis of those; float32.

    Plain batches of matrices: from an einsum over all axes XLA on CPU makes
    products with the keys on the left, up to three times as slow.
    """
    dims = (((3,), (over,)), ((0, 1), (0, 1)))
    return back(
      jax.lax.dot_general(
        beside(x_RTHX, past), past, dims, preferred_element_type=jnp.float32
      )
    )

  scores = [
    jnp.where(mask[:, :, None], multiply(q_RTHE, k, 3) * E**-0.5, LOG_ZERO)
    for k, _, mask in pieces
  ]
  tops = [jnp.max(s_RTHS, axis=-1, keepdims=True) for s_RTHS in scores]
  top_RTH1 = jax.lax.stop_gradient(functools.reduce(jnp.maximum, tops))
  totals, outs = [], []
  for s_RTHS, (_, v, _) in zip(scores, pieces, strict=True):
    w_RTHS = jnp.exp(s_RTHS - top_RTH1)
    totals.append(jnp.sum(w_RTHS, axis=-1, keepdims=True))
    outs.append(multiply(w_RTHS.astype(q_RTHE.dtype), v, 2))
  out, total = (functools.reduce(jnp.add, x) for x in (outs, totals))
  return (out / total).astype(q_RTHE.dtype)


def fourier_features(count: int, d_model: int, scale: float) -> np.ndarray:
  """Embeddings of the integers 0..count-1 from waves of several periods.

  Periods run geometrically from 2 to twice the count, so that near integers
  look alike on the long ones and residues are readable on the short ones; the
  last two features grow linearly and logarithmically.
  """
  n = np.arange(count, dtype=np.float64)[:, None]
  half = (d_model - 2) // 2
  period = np.geomspace(2.0, 2.0 * count, half)[None]
  waves = np.concatenate(
    [np.cos(2 * np.pi * n / period), np.sin(2 * np.pi * n / period)], axis=1
  )
  features = np.zeros((count, d_model))
  features[:, : 2 * half] = waves
  features[:, -2] = 2 * n[:, 0] / count - 1
  features[:, -1] = np.log1p(n[:, 0]) / np.log1p(count)
  return (features * scale).astype(np.float32)
