"""The decoder-only core: Llama, Qwen2 and Qwen3 shapes with two value outputs.

One function of (parameters, tokens, keys and values of what came before). The
caller owns every cache: a call returns the keys and values of its own tokens,
and attends to any number of `Segment`s beside them, so that a prompt, the path
through a search tree and a response under way are attended to without ever
being copied together.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from tsd_jax.base.types import LOG_ZERO, Array, Media
from tsd_jax.models.operations import (
  apply_rope,
  attend,
  fourier_features,
  project,
  project_each,
  rms_norm,
  rope_tables,
)
from tsd_jax.parallel import sharding

_KEPT = "kept"  # Names what a layer's backward pass need not make again.


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape of a model. `presets.py` names the published ones."""

  vocab_size: int
  d_model: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  d_mlp: int
  rope_theta: float = 10_000.0
  rms_eps: float = 1e-6
  qkv_bias: bool = False  # Qwen2
  qk_norm: bool = False  # Qwen3
  tied_embeddings: bool = True
  # Tokens 0..number_tokens-1 are integers; their embeddings start as Fourier
  # features of the integer, in which a small model can add and multiply.
  number_tokens: int = 0
  compute_dtype: Literal["float32", "bfloat16"] = "float32"
  remat: bool = False  # Recompute each layer in the backward pass.
  unroll_layers: int = 1  # Layers per step of the scan over layers.
  # Whether search and sampling write their layers out, which takes no copies of
  # weights and keys in every step, but longer to compile.
  unroll_decode: bool = False

  @property
  def unrolled(self) -> bool:
    """Whether the layers are written out instead of scanned."""
    return self.unroll_layers >= self.num_layers

  def __post_init__(self):
    """Refuses impossible shapes."""
    for field in (
      "vocab_size",
      "d_model",
      "num_layers",
      "num_heads",
      "num_kv_heads",
      "head_dim",
      "d_mlp",
      "unroll_layers",
    ):
      if getattr(self, field) < 1:
        raise ValueError(
          f"model.{field}={getattr(self, field)} must be at least 1"
        )
    if not 0 < self.rope_theta < math.inf:
      raise ValueError(
        f"model.rope_theta={self.rope_theta} must be a positive number"
      )
    if not 0 <= self.rms_eps < math.inf:
      raise ValueError(
        f"model.rms_eps={self.rms_eps} must be a number from 0 on"
      )
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"model.num_heads={self.num_heads} must be a multiple of "
        f"model.num_kv_heads={self.num_kv_heads}"
      )
    if self.head_dim % 2:
      raise ValueError(f"model.head_dim={self.head_dim} must be even (RoPE)")
    if not 0 <= self.number_tokens <= self.vocab_size:
      raise ValueError(
        f"model.number_tokens={self.number_tokens} must be in "
        f"0..model.vocab_size={self.vocab_size}"
      )
    if self.number_tokens and self.d_model < 2:
      raise ValueError(
        f"model.d_model={self.d_model} must be at least 2, for the features of "
        f"model.number_tokens={self.number_tokens}"
      )


class KV(NamedTuple):
  """Keys (after RoPE) and values of some positions, all layers.

  One array each, or where layers are unrolled a tuple with an array a layer:
  XLA on CPU copies a layer out of a stack before it is multiplied.
  """

  k_LRKSE: Array | tuple[Array, ...]
  v_LRKSE: Array | tuple[Array, ...]


class Segment(NamedTuple):
  """Earlier positions that the tokens of a call may attend to.

  The keys may have fewer rows than the queries: with R/g rows, row i serves
  query rows i*g .. i*g+g-1 (one prompt, g responses).
  """

  kv: KV
  mask_RTS: Array  # bool, broadcastable; rows as in the keys times g.


# What a layer sees of the past when it lives in mutable memory: given the layer
# index and the call's own keys and values, returns keys, values and a mask.
LayerMemory = Callable[[int | Array, Array, Array], tuple[Array, Array, Array]]


class Hidden(NamedTuple):
  """Result of the trunk: normalised features and the call's own keys."""

  x_RTD: Array
  kv: KV


class _Call(NamedTuple):
  """What all layers of a call share."""

  config: ModelConfig
  tables: tuple[Array, Array]  # Of RoPE.
  masks: tuple[Array, ...]  # RTS, of the segments.
  self_mask_RTT: Array
  memory: LayerMemory | None


def _layer(
  call: _Call, x_RTD: Array, inputs: tuple[dict[str, Array], Any, Any]
) -> tuple[Array, KV]:
  """Runs one layer.

  Args:
    call: what it shares with the others.
    x_RTD: features.
    inputs: its weights by name, its index, and its keys and values of every
      segment.

  Returns:
    Features, and the layer's keys and values of the call's own tokens.
  """
  w, layer_index, past = inputs
  c, (R, T, _) = call.config, x_RTD.shape
  w = jax.tree.map(lambda a: a.astype(x_RTD.dtype), w)
  kept = functools.partial(checkpoint_name, name=_KEPT)
  h = rms_norm(x_RTD, w["attention_norm_LD"], c.rms_eps)
  names = "query_LDHE", "key_LDKE", "value_LDKE"
  q, k, v = (
    kept(x_RTX).reshape(R, T, -1, c.head_dim)
    for x_RTX in project_each(
      h, tuple(w[name].reshape(c.d_model, -1) for name in names)
    )
  )
  if c.qkv_bias:
    q += w["query_bias_LHE"][None, None]
    k += w["key_bias_LKE"][None, None]
    v += w["value_bias_LKE"][None, None]
  if c.qk_norm:
    q = rms_norm(q, w["query_norm_LE"], c.rms_eps)
    k = rms_norm(k, w["key_norm_LE"], c.rms_eps)
  q, k = apply_rope(q, call.tables), apply_rope(k, call.tables)
  k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
  pieces = [
    (kv.k_LRKSE, kv.v_LRKSE, mask)
    for kv, mask in zip(past, call.masks, strict=True)
  ]
  if call.memory is None:
    pieces.append((k, v, call.self_mask_RTT))
  else:
    pieces.append(call.memory(layer_index, k, v))
  out_RTX = kept(attend(q, pieces).reshape(R, T, -1))
  x_RTD += kept(project(out_RTX, w["output_LHED"].reshape(-1, c.d_model)))
  x_RTD = sharding.split_features(x_RTD)
  h = rms_norm(x_RTD, w["mlp_norm_LD"], c.rms_eps)
  gate, up = map(kept, project_each(h, (w["gate_LDF"], w["up_LDF"])))
  x_RTD += project(jax.nn.silu(gate) * up, w["down_LFD"])
  return sharding.split_features(x_RTD), KV(k, v)


class Transformer(nnx.Module):
  """Decoder-only language model with a policy head and two value outputs.

  All parameters are float32; L layers are stacked on the first axis and run by
  one `scan`, so that the size of the compiled program does not grow with L. Few
  layers are better written out (`unroll_layers` = L).
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    """Initialises with variance 1/fan-in; residual outputs scaled by 1/2L."""
    c = self.config = config
    self.barred: tuple[int, ...] = ()  # Tokens that it never writes.
    L, D, F, H, K, E = (
      c.num_layers,
      c.d_model,
      c.d_mlp,
      c.num_heads,
      c.num_kv_heads,
      c.head_dim,
    )

    def normal(shape, fan_in, gain=1.0):
      std = gain * fan_in**-0.5
      return nnx.Param(std * jax.random.normal(rngs.params(), shape))

    embedding_VD = 0.02 * jax.random.normal(rngs.params(), (c.vocab_size, D))
    if c.number_tokens:
      waves = fourier_features(c.number_tokens, D, scale=0.05)
      embedding_VD = embedding_VD.at[: c.number_tokens].set(waves)
    self.embedding_VD = nnx.Param(embedding_VD)
    if not c.tied_embeddings:
      self.unembedding_VD = normal((c.vocab_size, D), D)
    residual_gain = (2 * L) ** -0.5
    layers = {
      "attention_norm_LD": nnx.Param(jnp.ones((L, D))),
      "query_LDHE": normal((L, D, H, E), D),
      "key_LDKE": normal((L, D, K, E), D),
      "value_LDKE": normal((L, D, K, E), D),
      "output_LHED": normal((L, H, E, D), H * E, residual_gain),
      "mlp_norm_LD": nnx.Param(jnp.ones((L, D))),
      "gate_LDF": normal((L, D, F), D),
      "up_LDF": normal((L, D, F), D),
      "down_LFD": normal((L, F, D), F, residual_gain),
    }
    if c.qkv_bias:
      layers["query_bias_LHE"] = nnx.Param(jnp.zeros((L, H, E)))
      layers["key_bias_LKE"] = nnx.Param(jnp.zeros((L, K, E)))
      layers["value_bias_LKE"] = nnx.Param(jnp.zeros((L, K, E)))
    if c.qk_norm:
      layers["query_norm_LE"] = nnx.Param(jnp.ones((L, E)))
      layers["key_norm_LE"] = nnx.Param(jnp.ones((L, E)))
    self.layers = nnx.Dict(layers)
    self.final_norm_D = nnx.Param(jnp.ones((D,)))
    # V_pi and V_search: one hidden layer each, so that they only share the
    # trunk. The last weights are zero: V_pi starts at 0, V_search at 1/2.
    self.value_hidden_2DD = normal((2, D, D), D)
    self.value_output_2D = nnx.Param(jnp.zeros((2, D)))
    self.value_bias_2 = nnx.Param(jnp.zeros((2,)))

  @property
  def dtype(self):
    """Dtype of matrix multiplications and caches."""
    return jnp.dtype(self.config.compute_dtype)

  def embed(self, tokens_RT: Array, media: Media | None = None) -> Array:
    """What the layers read: embeddings of tokens, RTD, or of media."""
    x_RTD = self.embedding_VD[...][tokens_RT]
    if media is not None:
      row_R1 = jnp.arange(x_RTD.shape[0])[:, None]
      # Positions outside of these tokens are dropped, negative ones as well.
      at_RJ = jnp.where(
        media.position_BJ < 0, x_RTD.shape[1], media.position_BJ
      )
      x_RTD = x_RTD.at[row_R1, at_RJ].set(
        media.embedding_BJD.astype(x_RTD.dtype), mode="drop"
      )
    return x_RTD.astype(self.dtype)

  def trunk(
    self,
    tokens_RT: Array,
    positions_RT: Array,
    *,
    segments: Sequence[Segment] = (),
    self_mask_RTT: Array | None = None,
    memory: LayerMemory | None = None,
  ) -> Hidden:
    """Runs the layers over some new tokens.

    Args:
      tokens_RT: int32 token ids, or what `embed` made of them.
      positions_RT: int32 positions of the tokens in their sequences.
      segments: earlier keys and values, with what each token may see of them.
      self_mask_RTT: what each token may see of the call's own tokens
        (broadcastable); causal by default.
      memory: replaces attention to the call's own keys by attention to a
        mutable memory that the layer writes its keys to first.

    Returns:
      Normalised features and the keys and values of the call's own tokens.
    """
    c = self.config
    T = tokens_RT.shape[1]
    if self_mask_RTT is None:
      self_mask_RTT = jnp.tril(jnp.ones((1, T, T), bool))
    tables = rope_tables(positions_RT, c.head_dim, c.rope_theta)
    x_RTD = tokens_RT if tokens_RT.ndim == 3 else self.embed(tokens_RT)
    x_RTD = sharding.split_features(x_RTD)

    call = _Call(
      c, tables, tuple(s.mask_RTS for s in segments), self_mask_RTT, memory
    )
    layer = functools.partial(_layer, call)
    if c.remat or not c.unrolled:
      # A scan would stack whatever the backward pass reads, for all layers: it
      # keeps the matmuls' results and makes what lies between them again.
      policy = jax.checkpoint_policies.save_only_these_names(_KEPT)
      layer = jax.checkpoint(
        layer, prevent_cse=c.unrolled, policy=None if c.remat else policy
      )
    past = tuple(s.kv for s in segments)
    if c.unrolled:
      new = []
      for i, w in enumerate(self._layer_weights()):
        seen = tuple(KV(kv.k_LRKSE[i], kv.v_LRKSE[i]) for kv in past)
        x_RTD, kv = layer(x_RTD, (w, i, seen))
        new.append(kv)
      kv = KV(*zip(*new, strict=True))
    else:
      weights = {name: p[...] for name, p in self.layers.items()}
      x_RTD, kv = jax.lax.scan(
        layer,
        x_RTD,
        (weights, jnp.arange(c.num_layers), past),
        unroll=c.unroll_layers,
      )
    return Hidden(rms_norm(x_RTD, self.final_norm_D[...], c.rms_eps), kv)

  def written_out(self) -> "Transformer":
    """The model for a loop: an array a layer, where its config wants that.

    Inside of one XLA on CPU would copy each out of its stack every time.
    """
    c = self.config
    if not (c.unrolled or c.unroll_decode):
      return self
    model = nnx.clone(self)
    model.config = dataclasses.replace(
      c, unroll_layers=c.num_layers, remat=False
    )
    model.layers = nnx.List(
      nnx.Dict({name: nnx.Param(a) for name, a in w.items()})
      for w in self._layer_weights()
    )
    return model

  def without(self, tokens: tuple[int, ...]) -> "Transformer":
    """The same model, of which some tokens have no probability.

    What it gives the others is its distribution given that none of these comes
    next: log pi(token) - log(1 - pi(tokens)).
    """
    if not tokens:
      return self
    model = nnx.clone(self)
    model.barred = tuple(tokens)
    return model

  def _layer_weights(self) -> list[dict[str, Array]]:
    """Weights of every layer by name, where layers are unrolled."""
    layers: Any = self.layers
    if isinstance(layers, nnx.List):
      return [{name: p[...] for name, p in w.items()} for w in layers]
    weights = {name: p[...] for name, p in layers.items()}
    return [
      {name: a[i] for name, a in weights.items()}
      for i in range(self.config.num_layers)
    ]

  def unstack(self, kv: KV) -> KV:
    """Stacked keys in the form that `trunk` returns."""
    return KV(*map(tuple, kv)) if self.config.unrolled else kv

  def logits(self, x_XD: Array) -> Array:
    """Next-token logits of normalised features, float32."""
    table = (
      self.embedding_VD if self.config.tied_embeddings else self.unembedding_VD
    )
    logits_XV = project(x_XD, table[...].astype(self.dtype).T, jnp.float32)
    if self.barred:
      barred_V = np.isin(np.arange(self.config.vocab_size), self.barred)
      logits_XV = jnp.where(barred_V, LOG_ZERO, logits_XV)
    # XLA on CPU would make one call of it and of what reads it, whose memory is
    # fresh every time: twice as slow with a real vocabulary.
    return jax.lax.optimization_barrier(logits_XV)

  def values(self, x_XD: Array) -> tuple[Array, Array]:
    """V_pi and the logit of V_search from the same normalised features."""

    def head(i):
      # On its own: what is not used is then not computed either.
      h_XD = jax.nn.silu(project(x_XD, self.value_hidden_2DD[i]))
      z_X = jnp.einsum("...d,d->...", h_XD, self.value_output_2D[i])
      return z_X.astype(jnp.float32) + self.value_bias_2[i]

    return head(0), head(1)

  def __call__(self, tokens_RT: Array) -> Array:
    """Logits of a plain full forward over unpadded sequences."""
    positions_RT = jnp.broadcast_to(
      jnp.arange(tokens_RT.shape[1])[None], tokens_RT.shape
    )
    return self.logits(self.trunk(tokens_RT, positions_RT).x_RTD)


def create(config: ModelConfig, seed: int):
  """Initialises a model and splits it once into structure and parameters."""
  return nnx.split(Transformer(config, nnx.Rngs(params=seed)), nnx.Param)


def abstract(config: ModelConfig):
  """The same, of shapes alone: no parameter is allocated."""
  return nnx.split(
    nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(params=0))), nnx.Param
  )


def count_parameters(config: ModelConfig) -> int:
  """Number of parameters, value outputs included."""
  return sum(
    int(np.prod(p.shape)) for p in jax.tree.leaves(abstract(config)[1])
  )
