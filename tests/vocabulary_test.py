"""Ranking and adding up where devices share a vocabulary."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small_experiment
from tsd_jax import aot, hlo, sharding, vocabulary
from tsd_jax import config as config_lib

SPLIT = sharding.MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize("count", [3, 9])
def test_the_best_of_a_split_vocabulary_are_found_where_they_lie(count):
  devices = sharding.make_mesh(SPLIT)
  rng = np.random.default_rng(0)
  x_BV = rng.integers(0, 5, (8, 16)).astype(np.float32)  # Many ties.

  def ranked(weights, x_BV, key):
    del weights, key
    value_BA, index_BA = vocabulary.top_k(x_BV, count)
    return (value_BA, index_BA), jnp.int32(0), {}

  run = jax.jit(sharding.per_part(ranked, devices))
  rows = jax.device_put(x_BV, sharding.over_prompts(devices))
  found, _, _ = run({}, rows, jax.random.key(0))
  expected = jax.lax.top_k(x_BV, count)
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_sums_along_a_split_vocabulary_are_those_of_one_device():
  devices = sharding.make_mesh(SPLIT)
  x_BV = np.random.default_rng(0).random((8, 16)).astype(np.float32)

  def summed(weights, x_BV, key):
    del weights, key
    return vocabulary.cumsum(x_BV), jnp.int32(0), {}

  run = jax.jit(sharding.per_part(summed, devices))
  rows = jax.device_put(x_BV, sharding.over_prompts(devices))
  found, _, _ = run({}, rows, jax.random.key(0))
  np.testing.assert_allclose(found, np.cumsum(x_BV, axis=1), rtol=1e-6)


@pytest.mark.slow
def test_no_loop_brings_a_vocabulary_together():
  config = config_lib.override(
    small_experiment.get_config(), {"mesh.data": "2", "mesh.tensor": "2"}
  )
  chunk, shapes = aot.arguments(config, sharding.make_mesh(config.mesh))
  program = hlo.Program(chunk.lower(*shapes).compile().as_text())
  rows = config.rollout.prompts * config.learner_config().rollout.group // 2
  whole = 4 * rows * config.model.vocab_size
  gathers = [
    c for c in program.collectives
    if c.kind == "all-gather" and re.search("searching|sampling", c.scope)
  ]  # fmt: skip
  assert gathers and max(c.bytes for c in gathers) < whole / 8
