"""Rewards of the host inside compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsd_jax.base.errors import UserError
from tsd_jax.rewards import callback


def total(example_Q, response_QT):
  """A host reward with a closed form."""
  return (example_Q + response_QT[:, 0]) / 100


def test_a_callback_sees_the_rows_under_jit_vmap_and_loops():
  rng = np.random.default_rng(0)
  example = rng.integers(0, 20, (3, 4))
  response = rng.integers(0, 9, (3, 4, 5))
  expected = ((example + response[..., 0]) / 100).astype(np.float32)

  def graded(example, response):
    return callback.graded(total, example, response)

  for fn in (
    graded,
    jax.vmap(graded),
    jax.vmap(jax.vmap(graded)),
    lambda e, r: jax.lax.map(lambda er: graded(*er), (e, r)),
  ):
    got = jax.jit(fn)(example, response)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, expected)
  callback.raise_errors()


@pytest.mark.parametrize(
  ("grade", "words"),
  [
    (lambda p, r: np.ones(3), r"shape \[3\] for 2 responses"),
    (lambda p, r: np.array([0.5, np.nan]), r"outside \[0, 1\]"),
    (lambda p, r: 1 / 0, "ZeroDivisionError"),
  ],
)
@pytest.mark.parametrize("low", [0.0, -2.0])
def test_a_broken_callback_is_told_to_the_host(grade, words, low):
  tokens = jnp.zeros((2, 3), jnp.int32)
  got = jax.jit(lambda t: callback.graded(grade, t[:, 0], t, low))(tokens)
  np.testing.assert_array_equal(got, [low] * 2)
  with pytest.raises(UserError, match=words.replace("0,", f"{low:g},")):
    callback.raise_errors()
  callback.raise_errors()  # It is told once.


def test_rewards_lie_in_the_range_that_is_declared():
  tokens = jnp.array([[-1], [3], [0]])

  @jax.jit
  def got(tokens):
    return callback.graded(lambda _, r: r[:, 0], tokens[:, 0], tokens, -1, 3)

  np.testing.assert_array_equal(got(tokens), [-1, 3, 0])
  callback.raise_errors()
  np.testing.assert_array_equal(got(tokens + 1), [-1, -1, -1])
  with pytest.raises(UserError, match=r"lies outside \[-1, 3\]: \[0, 4, 1\]"):
    callback.raise_errors()


def test_large_batches_do_not_block_the_program():
  """On one thread, a callback must not wait for what runs it."""
  tokens = jnp.ones((20_000, 64), jnp.int32)

  @jax.jit
  def run(tokens):
    def step(_, total):
      reward = callback.graded(
        lambda e, r: np.full(len(r), 0.5),
        tokens[:, 0],
        tokens + total.astype(int),
      )
      return total + jnp.sum(reward) / len(tokens)

    return jax.lax.fori_loop(0, 3, step, jnp.float32(0))

  assert float(run(tokens)) == 1.5
