"""Reading a vocabulary: one device's against SciPy, many against one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from tests import shipped, small_experiment
from tsd_jax.base import config as config_lib
from tsd_jax.inference import vocabulary
from tsd_jax.parallel import sharding
from tsd_jax.planning import aot, hlo

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

  run = jax.jit(sharding.per_shard(ranked, devices))
  rows = jax.device_put(x_BV, sharding.over_prompts(devices))
  found, _, _ = run({}, rows, jax.random.key(0))
  expected = jax.lax.top_k(x_BV, count)
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("width", [7, 64, 3 * 512])
def test_the_best_are_found_in_blocks_as_in_all(width):
  x_BV = np.random.default_rng(0).integers(0, 9, (4, 5, width))  # Many ties.
  x_BV = x_BV.astype(np.float32)
  for count in (1, 7):
    found = vocabulary.top_k(x_BV, count)
    expected = jax.lax.top_k(x_BV, count)
    for ours, theirs in zip(found, expected, strict=True):
      np.testing.assert_array_equal(ours, theirs)


def test_softmax_is_scipys():
  z_BV = np.random.default_rng(0).normal(0, 30, (4, 300)).astype(np.float32)
  found = vocabulary.softmax(z_BV)
  p_BV = scipy.special.softmax(z_BV.astype(np.float64), axis=1)
  total_B1 = np.sum(found.weight_XV, axis=1, keepdims=True)
  np.testing.assert_allclose(found.weight_XV / total_B1, p_BV, atol=1e-6)
  np.testing.assert_allclose(
    found.log_total_X, scipy.special.logsumexp(z_BV, axis=1), rtol=1e-6
  )
  np.testing.assert_allclose(
    found.entropy_X, scipy.stats.entropy(p_BV, axis=1), atol=1e-5
  )


@pytest.mark.parametrize("width", [7, 64, 3 * 512])
def test_a_draw_inverts_the_running_sum(width):
  weight_RV = weights(100, width)
  uniform_R = np.random.default_rng(1).random(100).astype(np.float32)
  uniform_R[:2] = 0.0, 1 - 2**-24
  index_R = np.asarray(vocabulary.draw(uniform_R, weight_RV))
  check_draws(index_R, uniform_R, weight_RV)


@pytest.mark.parametrize("width", [13, 512])
def test_what_has_no_weight_is_never_drawn(width):
  """Sums that are made in parallel rise by a rounding where a weight is 0."""
  rng = np.random.default_rng(0)
  weight_V = rng.random(width).astype(np.float32) ** 8
  weight_V[rng.random(width) < 0.5] = 0.0
  sums_J = np.asarray(jax.numpy.cumsum(weight_V))
  total = np.float32(weight_V.sum())
  # Targets at all sums, and beside them, and at both ends.
  aim_R = np.concatenate([sums_J, np.nextafter(sums_J, np.float32(0))]) / total
  uniform_R = np.clip(np.append(aim_R, [0, 1]), 0, 1 - 2**-24)
  weight_RV = np.broadcast_to(weight_V, (len(uniform_R), width))
  index_R = vocabulary.draw(uniform_R.astype(np.float32), weight_RV)
  assert np.all(weight_V[np.asarray(index_R)] > 0)


def test_a_draw_from_a_split_vocabulary_is_that_of_one_device():
  devices = sharding.make_mesh(SPLIT)
  weight_BV = weights(8, 16)

  def drawn(params, weight_BV, key):
    del params
    uniform_B = jax.random.uniform(key, weight_BV.shape[:1])
    index_B = vocabulary.draw(uniform_B, weight_BV)
    return (index_B, uniform_B), jnp.int32(0), {}

  run = jax.jit(sharding.per_shard(drawn, devices))
  rows = jax.device_put(weight_BV, sharding.over_prompts(devices))
  for seed in range(5):
    (index_B, uniform_B), _, _ = run({}, rows, jax.random.key(seed))
    check_draws(np.asarray(index_B), np.asarray(uniform_B), weight_BV)


def weights(rows, width):
  """Some weights, a third of them zero."""
  rng = np.random.default_rng(0)
  weight_RV = rng.random((rows, width)) * (rng.random((rows, width)) > 1 / 3)
  weight_RV[:, width // 2] = 1.0
  return weight_RV.astype(np.float32)


def check_draws(index_R, uniform_R, weight_RV):
  """The target lies in the interval of the index, up to rounding."""
  sum_RV = np.cumsum(weight_RV.astype(np.float64), axis=1)
  row_R = np.arange(len(index_R))
  assert np.all(weight_RV[row_R, index_R] > 0)
  target_R = uniform_R * sum_RV[:, -1]
  above_R = sum_RV[row_R, index_R]
  slack_R = 1e-5 * sum_RV[:, -1]
  assert np.all(target_R < above_R + slack_R)
  assert np.all(target_R >= above_R - weight_RV[row_R, index_R] - slack_R)


@pytest.mark.slow
def test_no_loop_brings_a_vocabulary_together():
  config = config_lib.override(
    small_experiment.get_config(), {"mesh.data": "2", "mesh.tensor": "2"}
  )
  train_loop, shapes = aot.arguments(config, sharding.make_mesh(config.mesh))
  program = hlo.Program(shipped.compiled(train_loop.lower(*shapes)).as_text())
  rows = config.rollout.prompts * config.learner_config().rollout.group // 2
  whole = 4 * rows * config.model.vocab_size
  gathers = [
    c for c in program.collectives
    if c.kind == "all-gather" and re.search("searching|sampling", c.scope)
  ]  # fmt: skip
  assert gathers and max(c.bytes for c in gathers) < whole / 8
