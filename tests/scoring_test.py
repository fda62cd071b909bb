"""Scores of given responses against plain forwards over all tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import shipped
from tsd_jax.base.types import Prompts
from tsd_jax.inference import scoring
from tsd_jax.learning import losses
from tsd_jax.models import transformer

B, G, T, P, V = 3, 2, 5, 4, 4096
GRAPHDEF, PARAMS = transformer.create(
  transformer.ModelConfig(
    vocab_size=V, d_model=16, num_layers=2, num_heads=2, num_kv_heads=1,
    head_dim=8, d_mlp=16,
  ),
  0,
)  # fmt: skip
RNG = np.random.default_rng(0)
PROMPT_BP = RNG.integers(0, V, (B, P))
TOKENS_BGT = RNG.integers(0, V, (B, G, T))


def read(log_prob_XV, token_X):
  return scoring.log_prob_of(log_prob_XV, token_X), losses.entropy(log_prob_XV)


def scores(params, chunk):
  model = nnx.merge(GRAPHDEF, params)
  prompts = Prompts(jnp.array(PROMPT_BP), jnp.full(B, P), jnp.arange(B))
  x_BGTD = scoring.hidden_states(model, prompts, jnp.array(TOKENS_BGT))
  return scoring.read_log_probs(
    model, read, x_BGTD, jnp.array(TOKENS_BGT), temperature=0.7, chunk=chunk
  )


def plain_scores(params):
  model = nnx.merge(GRAPHDEF, params)
  prompt_BGP = np.broadcast_to(PROMPT_BP[:, None], (B, G, P))
  rows_RT = np.concatenate([prompt_BGP, TOKENS_BGT], axis=2).reshape(B * G, -1)
  logits_RTV = model(jnp.array(rows_RT))[:, P - 1 : -1] / 0.7
  log_prob_BGTV = jax.nn.log_softmax(logits_RTV).reshape(B, G, T, V)
  chosen = jnp.take_along_axis(log_prob_BGTV, TOKENS_BGT[..., None], axis=-1)
  p_BGTV = jax.nn.softmax(logits_RTV).reshape(B, G, T, V)
  return chosen[..., 0], -jnp.sum(p_BGTV * log_prob_BGTV, axis=-1)


def loss(scored):
  chosen_BGT, entropy_BGT = scored
  return jnp.sum(chosen_BGT * jnp.cos(jnp.arange(T))) + jnp.mean(entropy_BGT)


@pytest.mark.parametrize("positions", [1, 4, G * T])
def test_chunks_give_scores_and_gradients_of_a_plain_forward(positions):
  """Four positions a chunk do not divide the ten of a prompt."""
  chunk = B * V * positions
  got = jax.jit(lambda p: scores(p, chunk))(PARAMS)
  for a, b in zip(got, plain_scores(PARAMS), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)
  grads = jax.jit(jax.grad(lambda p: loss(scores(p, chunk))))(PARAMS)
  expected = jax.jit(jax.grad(lambda p: loss(plain_scores(p))))(PARAMS)
  for a, b in zip(
    jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_log_probs_of_the_whole_vocabulary_are_never_alive():
  def temporary_bytes(chunk):
    step = jax.jit(jax.grad(lambda p: loss(scores(p, chunk))))
    return (
      shipped.compiled(step.lower(PARAMS)).memory_analysis().temp_size_in_bytes
    )

  whole = B * G * T * V
  assert temporary_bytes(whole) > 4 * whole
  assert temporary_bytes(whole // 10) < 4 * whole
