"""Operations of a token: the parameters that multiply, and what XLA counts."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tsd_jax.models import presets, transformer
from tsd_jax.models.flops import flops_per_token


@pytest.mark.parametrize("tied", [True, False])
def test_they_are_two_a_weight_that_multiplies(tied):
  config = dataclasses.replace(presets.TINY, tied_embeddings=tied)
  # Matrices; the table of embeddings is else looked up alone.
  left_out = ["norm", "value_hidden", "value_output", "value_bias"]
  left_out += [] if tied else ["['embedding_VD']"]
  leaves = jax.tree.leaves_with_path(transformer.abstract(config)[1])
  names = {jax.tree_util.keystr(path): p.size for path, p in leaves}
  weights = sum(
    size
    for name, size in names.items()
    if not any(word in name for word in left_out)
  )
  assert flops_per_token(config) == 2 * weights


def counted(context):
  """XLA's count of one token a row that attends to so many positions."""
  config = dataclasses.replace(presets.TINY, unroll_layers=2)
  graphdef, params = transformer.create(config, 0)
  rows = 64
  c = config
  keys = jax.ShapeDtypeStruct(
    (c.num_layers, rows, c.num_kv_heads, context - 1, c.head_dim), jnp.float32
  )

  def forward(params, tokens_R1, k, v):
    model = nnx.merge(graphdef, params)
    past = transformer.Segment(
      model.unstack(transformer.KV(k, v)), jnp.ones((1, 1, context - 1), bool)
    )
    x_R1D = model.trunk(tokens_R1, 0 * tokens_R1, segments=[past]).x_RTD
    return model.logits(x_R1D)

  shape = jax.ShapeDtypeStruct((rows, 1), jnp.int32)
  lowered = jax.jit(forward).lower(params, shape, keys, keys)
  return config, lowered.compile().cost_analysis()["flops"] / rows


def test_they_are_what_xla_counts():
  """The rest: norms, softmax, activations."""
  config, one = counted(context=2)
  assert 1.0 < one / flops_per_token(config, context=2) < 1.1
  _, many = counted(context=402)
  more = flops_per_token(config, context=402) - flops_per_token(config, 2)
  # Of softmax a few operations a head and a position, beside 4 x 32.
  assert 1.0 <= (many - one) / more < 1.1
