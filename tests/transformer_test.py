"""The model against published sizes, causality and a NumPy forward."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import shipped
from tsd_jax.models import operations, presets, transformer
from tsd_jax.models.transformer import ModelConfig, Segment, Transformer

PLAIN = ModelConfig(
  vocab_size=17,
  d_model=16,
  num_layers=3,
  num_heads=4,
  num_kv_heads=4,
  head_dim=6,
  d_mlp=24,
)
CONFIGS = {
  "plain": PLAIN,
  "qkv_bias": dataclasses.replace(PLAIN, num_kv_heads=2, qkv_bias=True),
  "qk_norm_gqa_untied": dataclasses.replace(
    PLAIN,
    num_kv_heads=2,
    qk_norm=True,
    tied_embeddings=False,
    rope_theta=100.0,
    unroll_layers=2,
  ),
}


pytestmark = pytest.mark.usefixtures("strict_ranks")


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys(), scope="module")
def model(request) -> Transformer:
  return build(request.param)


def build(config: ModelConfig) -> Transformer:
  """A model none of whose parameters is a zero or a one that hides a bug."""
  graph, shapes = nnx.split(
    nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(params=0)))
  )
  rng = np.random.default_rng(1)

  def draw(path, shape):
    mean = 1.0 if "norm" in jax.tree_util.keystr(path) else 0.0
    return jnp.asarray(rng.normal(mean, 0.3, shape.shape), shape.dtype)

  return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, shapes))


def random_tokens(rows: int, length: int, seed: int = 0) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return rng.integers(0, PLAIN.vocab_size, (rows, length)).astype(np.int32)


def numpy_logits(model: Transformer, tokens_T) -> np.ndarray:
  """Llama's equations for one sequence, one head and one position a time."""
  c = model.config
  w = {k: np.asarray(p[...], np.float64) for k, p in model.layers.items()}
  embedding_VD = np.asarray(model.embedding_VD[...], np.float64)

  def norm(x, scale):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + c.rms_eps) * scale

  def rotate(x_E, position):
    # Dimension i turns together with i + E/2, by position * theta^(-2i/E).
    half = c.head_dim // 2
    y_E = np.empty_like(x_E)
    for i in range(half):
      angle = position * c.rope_theta ** (-2 * i / c.head_dim)
      cos, sin = np.cos(angle), np.sin(angle)
      y_E[i] = x_E[i] * cos - x_E[i + half] * sin
      y_E[i + half] = x_E[i + half] * cos + x_E[i] * sin
    return y_E

  x_TD = embedding_VD[tokens_T]
  T = len(tokens_T)
  for i in range(c.num_layers):
    h_TD = norm(x_TD, w["attention_norm_LD"][i])
    update_TD = np.zeros_like(x_TD)
    for head in range(c.num_heads):
      kv_head = head * c.num_kv_heads // c.num_heads
      q_TE = h_TD @ w["query_LDHE"][i, :, head]
      k_TE = h_TD @ w["key_LDKE"][i, :, kv_head]
      v_TE = h_TD @ w["value_LDKE"][i, :, kv_head]
      if c.qkv_bias:
        q_TE = q_TE + w["query_bias_LHE"][i, head]
        k_TE = k_TE + w["key_bias_LKE"][i, kv_head]
        v_TE = v_TE + w["value_bias_LKE"][i, kv_head]
      if c.qk_norm:
        q_TE = norm(q_TE, w["query_norm_LE"][i])
        k_TE = norm(k_TE, w["key_norm_LE"][i])
      q_TE = np.stack([rotate(q_TE[t], t) for t in range(T)])
      k_TE = np.stack([rotate(k_TE[t], t) for t in range(T)])
      for t in range(T):
        score_S = k_TE[: t + 1] @ q_TE[t] / np.sqrt(c.head_dim)
        weight_S = np.exp(score_S - score_S.max())
        weight_S /= weight_S.sum()
        update_TD[t] += (weight_S @ v_TE[: t + 1]) @ w["output_LHED"][i, head]
    x_TD = x_TD + update_TD
    h_TD = norm(x_TD, w["mlp_norm_LD"][i])
    gate_TF = h_TD @ w["gate_LDF"][i]
    gate_TF = gate_TF / (1 + np.exp(-gate_TF))
    x_TD = x_TD + (gate_TF * (h_TD @ w["up_LDF"][i])) @ w["down_LFD"][i]
  x_TD = norm(x_TD, np.asarray(model.final_norm_D[...], np.float64))
  if c.tied_embeddings:
    return x_TD @ embedding_VD.T
  return x_TD @ np.asarray(model.unembedding_VD[...], np.float64).T


@pytest.mark.parametrize(
  "config, published",
  [
    (presets.SMOLLM2_135M, 134_515_008),
    (presets.QWEN2_5_0_5B, 494_032_768),
    (presets.QWEN2_5_1_5B, 1_543_714_304),
    (presets.QWEN3_0_6B, 596_049_920),
    (presets.QWEN3_1_7B, 1_720_574_976),
    (presets.LLAMA3_8B, 8_030_261_248),
    (presets.LLAMA3_70B, 70_553_706_496),
  ],
)
def test_parameter_counts_are_the_published_ones(config, published):
  D = config.d_model
  value_outputs = 2 * D * D + 2 * D + 2
  assert transformer.count_parameters(config) - value_outputs == published


def test_later_tokens_have_no_gradient(model):
  """Token t's features move with embeddings 0..t and with no later one."""
  graph, state = nnx.split(model)
  # Distinct tokens, so that a row of the table is one position. Features and
  # not logits, which a tied table would reach from every row.
  tokens_1T = jnp.arange(7)[None]

  def features(state):
    positions_1T = jnp.arange(7)[None]
    hidden = nnx.merge(graph, state).trunk(tokens_1T, positions_1T)
    return jnp.sum(hidden.x_RTD[0] ** 3, axis=-1)

  jacobian = jax.jit(jax.jacrev(features))(state)
  reach_TT = np.abs(jacobian["embedding_VD"][...][:, :7]).max(-1)
  assert np.all(reach_TT[np.triu_indices(7, k=1)] == 0)
  assert np.all(reach_TT[np.tril_indices(7)] > 0)


def test_numpy_forward(model):
  tokens_RT = random_tokens(2, 9)
  logits_RTV = jax.jit(lambda t: model(t))(tokens_RT)
  for tokens_T, logits_TV in zip(tokens_RT, logits_RTV, strict=True):
    expected_TV = numpy_logits(model, tokens_T)
    assert expected_TV.std() > 0.1
    np.testing.assert_allclose(logits_TV, expected_TV, atol=1e-4, rtol=1e-4)


def test_one_token_calls_equal_the_full_forward(model):
  """A prompt segment for two rows each, and a segment a decoded token."""
  P, T = 4, 8
  tokens_RT = random_tokens(4, T)
  # Rows 0, 1 and rows 2, 3 share a prompt.
  tokens_RT[1::2, :P] = tokens_RT[::2, :P]
  full_RTV = jax.jit(lambda t: model(t))(tokens_RT)

  @jax.jit
  def cached(tokens_RT):
    positions_RP = jnp.broadcast_to(jnp.arange(P)[None], (2, P))
    hidden = model.trunk(tokens_RT[::2, :P], positions_RP)
    see_all = jnp.ones((1, 1, 1), bool)
    segments = [Segment(hidden.kv, see_all)]
    logits = [jnp.repeat(model.logits(hidden.x_RTD), 2, axis=0)]
    for t in range(P, T):
      hidden = model.trunk(
        tokens_RT[:, t : t + 1], jnp.full((4, 1), t), segments=segments
      )
      segments.append(Segment(hidden.kv, see_all))
      logits.append(model.logits(hidden.x_RTD))
    return jnp.concatenate(logits, axis=1)

  np.testing.assert_allclose(cached(tokens_RT), full_RTV, atol=1e-4)


def test_remat_and_unroll_change_nothing():
  tokens_RT = random_tokens(2, 5)

  def loss_and_gradient(config):
    graph, state = nnx.split(build(config))
    return jax.jit(
      jax.value_and_grad(
        lambda s: jnp.mean(nnx.merge(graph, s)(tokens_RT)[..., 0])
      )
    )(state)

  config = CONFIGS["qk_norm_gqa_untied"]
  plain = loss_and_gradient(dataclasses.replace(config, unroll_layers=1))
  other = loss_and_gradient(dataclasses.replace(config, remat=True))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, other
  )


def test_a_scan_keeps_what_matmuls_made_and_no_more():
  """What the backward pass holds, in floats a layer and token."""
  config = ModelConfig(
    vocab_size=8, d_model=32, num_layers=16, num_heads=2, num_kv_heads=1,
    head_dim=8, d_mlp=256,
  )  # fmt: skip
  graph, state = nnx.split(build(config))

  def loss(state, tokens_RT):
    return jnp.mean(nnx.merge(graph, state)(tokens_RT)[..., 0])

  def held(rows):
    tokens_RT = jax.ShapeDtypeStruct((rows, 8), jnp.int32)
    compiled = shipped.compiled(jax.jit(jax.grad(loss)).lower(state, tokens_RT))
    return compiled.memory_analysis().temp_size_in_bytes

  found = (held(64) - held(32)) / (32 * 8 * config.num_layers * 4)
  # gate, up; query, key, value and what attention gives; the stream, twice.
  kept = 2 * 256 + 2 * 16 + 2 * 8 + 2 * 32
  assert kept <= found < 1.4 * kept


def test_bfloat16_stays_near_float32():
  tokens_RT = random_tokens(2, 9)
  model32 = build(CONFIGS["qkv_bias"])
  model16 = build(
    dataclasses.replace(CONFIGS["qkv_bias"], compute_dtype="bfloat16")
  )
  positions_RT = np.tile(np.arange(9), (2, 1))
  hidden = jax.jit(lambda t: model16.trunk(t, positions_RT))(tokens_RT)
  assert hidden.x_RTD.dtype == hidden.kv.k_LRKSE.dtype == jnp.bfloat16
  logits16_RTV = model16.logits(hidden.x_RTD)
  assert logits16_RTV.dtype == jnp.float32
  assert all(v.dtype == jnp.float32 for v in model16.values(hidden.x_RTD))
  logits32_RTV = np.asarray(jax.jit(lambda t: model32(t))(tokens_RT))
  error = np.abs(logits16_RTV - logits32_RTV).mean()
  assert error < 0.05 * logits32_RTV.std(), f"{error=}"


def test_values_start_at_zero_and_half():
  graph, state = transformer.create(PLAIN, seed=3)
  model = nnx.merge(graph, state)
  x_RTD = jax.random.normal(jax.random.key(0), (2, 3, PLAIN.d_model))
  v_pi_RT, search_logit_RT = model.values(x_RTD)
  assert v_pi_RT.shape == search_logit_RT.shape == (2, 3)
  assert np.all(np.asarray(v_pi_RT) == 0)
  assert np.all(np.asarray(jax.nn.sigmoid(search_logit_RT)) == 0.5)


def test_number_tokens_get_distinct_bounded_embeddings():
  table_VD = operations.fourier_features(200, 128, scale=0.05)
  assert np.all(np.isfinite(table_VD)) and np.abs(table_VD).max() <= 0.0501
  distance_VV = np.linalg.norm(table_VD[:, None] - table_VD[None], axis=-1)
  np.fill_diagonal(distance_VV, 1.0)
  assert distance_VV.min() > 0.01
  model = nnx.merge(*transformer.create(presets.TINY, seed=0))
  np.testing.assert_array_equal(model.embedding_VD[...][:200], table_VD)


@pytest.mark.parametrize(
  "change", [dict(num_kv_heads=3), dict(head_dim=5), dict(number_tokens=18)]
)
def test_impossible_shapes_are_refused(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    dataclasses.replace(PLAIN, **change)


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4)])
def test_project_has_the_derivatives_of_a_product(shape):
  keys = jax.random.split(jax.random.key(0), 3)
  x, w = jax.random.normal(keys[0], shape), jax.random.normal(keys[1], (4, 6))
  g = jax.random.normal(keys[2], (*shape[:-1], 6))
  y, pull = jax.vjp(operations.project, x, w)
  expected, expected_pull = jax.vjp(lambda x, w: x @ w, x, w)
  np.testing.assert_allclose(y, expected, rtol=1e-6)
  for a, b in zip(pull(g), expected_pull(g), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_layers_written_out_equal_scanned_ones():
  config = PLAIN
  graphdef, params = transformer.create(config, 0)
  out = dataclasses.replace(config, unroll_layers=3)
  written, _ = transformer.create(out, 0)
  tokens_RT = jnp.arange(10).reshape(2, 5) % config.vocab_size
  for a in (graphdef, written):
    assert nnx.merge(a, params).config.unrolled == (a is written)
  np.testing.assert_allclose(
    nnx.merge(graphdef, params)(tokens_RT),
    nnx.merge(written, params)(tokens_RT),
    atol=1e-5,
  )


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"d_model": 1}, "d_model=1 must be at least 2, for the features of"),
    ({"number_tokens": -1}, "number_tokens=-1 must be in 0..model.vocab_size"),
    ({"number_tokens": 999}, "number_tokens=999 must be in 0..model.vocab"),
  ],
)
def test_numbers_need_room_for_their_features(changes, words):
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(presets.TINY, **changes)
  narrow = dataclasses.replace(presets.TINY, d_model=2)
  assert np.isfinite(transformer.create(narrow, 0)[1].embedding_VD[...]).all()
