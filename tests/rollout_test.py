"""Samples and their forks against plain full forwards, row by row."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.search_test import EOS, PAD, PROMPTS, TASK, B, Hash, T, model
from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.tasks.task import as_prompts

SAMPLES = RolloutConfig(
  prompts=B, samples=6, forks=3, fork_width=2, temperature=1.5
)


def draw(config, task):
  prompts = as_prompts(task, PROMPTS)
  run = jax.jit(lambda key: config(model(), task, prompts, key))
  return jax.device_get(run(jax.random.key(2)))


@functools.cache
def sampled():
  return draw(SAMPLES, TASK)


@jax.jit
def _plain(tokens_RS):
  positions_RS = jnp.broadcast_to(
    jnp.arange(tokens_RS.shape[1])[None], tokens_RS.shape
  )
  x_RSD = model().trunk(tokens_RS, positions_RS).x_RTD
  z_RSV = model().logits(x_RSD) / SAMPLES.temperature
  return jax.nn.log_softmax(z_RSV), model().values(x_RSD)[0]


@functools.cache
def plain():
  """Log pi of every token, entropies and values before it, BGT each."""
  tokens_BGT = sampled()[0].tokens_BGT
  prompt_RP = np.repeat(PROMPTS, SAMPLES.group, axis=0)
  token_RT = tokens_BGT.reshape(-1, T)
  whole_RS = np.concatenate([prompt_RP, token_RT], axis=1)
  before = slice(PROMPTS.shape[1] - 1, -1)
  log_prob_RTV, value_RT = (
    np.asarray(a)[:, before] for a in _plain(jnp.asarray(whole_RS))
  )
  entropy_RT = -(np.exp(log_prob_RTV) * log_prob_RTV).sum(-1)
  own_RT = np.take_along_axis(log_prob_RTV, token_RT[..., None], -1)[..., 0]
  return (a.reshape(tokens_BGT.shape) for a in (own_RT, entropy_RT, value_RT))


def length(row_T):
  """Tokens of a row, its end included."""
  tokens = row_T.tolist()
  return tokens.index(EOS) + 1 if EOS in tokens else T


def test_rows_store_what_a_plain_forward_says():
  r, _ = sampled()
  log_prob_BGT, entropy_BGT, value_BGT = plain()
  assert r.tokens_BGT.shape == (B, SAMPLES.group, T) == (B, 12, T)
  assert r.environment_BGT is None
  seen = set()
  for b, g in np.ndindex(B, SAMPLES.group):
    n, shared = length(r.tokens_BGT[b, g]), r.fork_BG[b, g]
    seen.add((n, int(shared)))
    assert np.all(r.tokens_BGT[b, g, n:] == PAD)
    own = (np.arange(T) >= shared) & (np.arange(T) < n)
    if r.mask_BGT[b, r.parent_BG[b, g]].sum() < 2:
      own &= g < SAMPLES.samples  # An empty copy of a row of one token.
    np.testing.assert_array_equal(r.mask_BGT[b, g], own)
    for got_BGT, expected_BGT in (
      (r.log_prob_BGT, log_prob_BGT),
      (r.entropy_BGT, entropy_BGT),
      (r.value_BGT, value_BGT),
    ):
      np.testing.assert_allclose(
        got_BGT[b, g], np.where(own, expected_BGT[b, g], 0.0), atol=1e-4
      )
  assert len(seen) > 6


def test_forks_share_what_they_say_and_differ_after_it():
  r, _ = sampled()
  G, W = SAMPLES.samples, SAMPLES.fork_width
  for b in range(B):
    assert r.parent_BG[b, :G].tolist() == list(range(G))
    assert not np.any(r.fork_BG[b, :G]) and np.all(r.parent_BG[b, G:] < G)
    # Of rows, those are forked whose least certain token is least certain.
    later_GT = r.mask_BGT[b, :G] & (np.arange(T) > 0)
    entropy_GT = np.where(later_GT, r.entropy_BGT[b, :G], -1)
    most = np.argsort(-entropy_GT.max(axis=1), kind="stable")[: SAMPLES.forks]
    assert r.parent_BG[b, G:].tolist() == np.repeat(most, W).tolist()
    for g in range(G, SAMPLES.group):
      p, n = r.parent_BG[b, g], r.fork_BG[b, g]
      np.testing.assert_array_equal(
        r.tokens_BGT[b, g, :n], r.tokens_BGT[b, p, :n]
      )
      assert not r.mask_BGT[b, g, :n].any()
      if later_GT[p].any():
        assert n == entropy_GT[p].argmax() and r.mask_BGT[b, g, n]
  pairs_BX2T = r.tokens_BGT[:, G:].reshape(B, -1, W, T)
  assert np.any(pairs_BX2T[:, :, 0] != pairs_BX2T[:, :, 1])


def test_forwards_by_counting():
  r, forwards = sampled()
  G = SAMPLES.samples
  lengths_BG = r.mask_BGT.sum(-1)
  # All rows run until the longest one's last token, which is not run; forks
  # run the last token that they keep again.
  plain = B * G * (lengths_BG[:, :G].max() - 1)
  assert forwards == plain + B * 6 * lengths_BG[:, G:].max()


@dataclasses.dataclass(frozen=True)
class Short(Hash):
  """Responses of one token."""

  response_length = 1


def test_a_row_of_one_token_is_copied_and_no_token_counts_twice():
  r, _ = draw(SAMPLES, Short())
  G = SAMPLES.samples
  for b, g in np.ndindex(B, SAMPLES.group):
    assert r.tokens_BGT[b, g] == r.tokens_BGT[b, r.parent_BG[b, g]]
    assert bool(r.mask_BGT[b, g, 0]) == (g < G)
    assert r.fork_BG[b, g] == (g >= G)
  assert not np.any(r.log_prob_BGT[:, G:]) and np.all(r.log_prob_BGT[:, :G])


def test_without_forks_the_plain_rows_are_the_same():
  config = SAMPLES.without_forks()
  assert config.group == 6 and SAMPLES.forked and not config.forked
  r, _ = draw(config, TASK)
  whole, _ = sampled()
  np.testing.assert_array_equal(r.tokens_BGT, whole.tokens_BGT[:, :6])
  assert not np.any(r.fork_BG)


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    (dict(samples=0), "rollout.samples=0 must be at least 1"),
    (dict(prompts=0), "rollout.prompts=0 must be at least 1"),
    (dict(temperature=0.0), "rollout.temperature=0.0 must be 1e-06"),
    (dict(forks=5), "rollout.forks=5 must lie between 0 and"),
    (dict(fork_width=0), "rollout.fork_width=0 must be at least 1 with forks"),
  ],
)
def test_impossible_settings_are_refused(settings, words):
  with pytest.raises(ValueError, match=words):
    RolloutConfig(**settings)
