"""Losses against NumPy written from their papers, one position at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from tsd_jax.learning import losses

RNG = np.random.default_rng(0)
SHAPE, V = (4, 3, 6), 11
MASK = RNG.random(SHAPE) < 0.7


def log_probs(seed):
  logits = 2 * np.random.default_rng(seed).normal(size=(*SHAPE, V))
  return scipy.special.log_softmax(logits, axis=-1)


def positions(mask=MASK):
  return [tuple(i) for i in np.argwhere(mask)]


LOG_P, LOG_MU = (log_probs(s).max(-1) for s in (1, 2))
ADVANTAGE = RNG.normal(size=SHAPE)


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.1, 0.28)])
def test_ppo(low, high):
  terms, clipped = [], []
  for i in positions():
    ratio, a = np.exp(LOG_P[i] - LOG_MU[i]), ADVANTAGE[i]
    bound = min(max(ratio, 1 - low), 1 + high)
    terms.append(-min(ratio * a, bound * a))
    clipped.append(bound * a < ratio * a)
  loss, metrics = losses.ppo(
    LOG_P, LOG_MU, ADVANTAGE, MASK, clip_low=low, clip_high=high
  )
  assert float(loss) == pytest.approx(np.mean(terms), rel=1e-5)
  assert 0 < np.mean(clipped) < 1
  assert float(metrics["clip_fraction"]) == pytest.approx(np.mean(clipped))
  ratio = np.exp(LOG_P - LOG_MU)[MASK]
  assert float(metrics["ratio"]) == pytest.approx(ratio.mean(), rel=1e-5)
  assert float(metrics["approx_kl"]) == pytest.approx(
    (ratio - 1 - np.log(ratio)).mean(), rel=1e-5
  )


def test_ppo_gives_no_gradient_where_the_clip_acts():
  """The published attempt's clip never acted; ours must cut gradients."""

  def loss(log_p):
    return losses.ppo(
      log_p, LOG_MU, ADVANTAGE, MASK, clip_low=0.2, clip_high=0.2
    )[0]

  grad = np.asarray(jax.grad(loss)(jnp.asarray(LOG_P, jnp.float32)))
  ratio = np.exp(LOG_P - LOG_MU)
  acts = np.where(ADVANTAGE > 0, ratio > 1.2, ratio < 0.8)
  assert np.all(grad[acts | ~MASK] == 0)
  expected = -ratio * ADVANTAGE / MASK.sum()
  np.testing.assert_allclose(
    grad[~acts & MASK], expected[~acts & MASK], rtol=1e-4
  )


def test_on_policy_ppo_is_the_policy_gradient():
  def loss(log_p):
    return losses.ppo(
      log_p, LOG_MU, ADVANTAGE, MASK, clip_low=0.2, clip_high=0.2
    )[0]

  grad = jax.grad(loss)(jnp.asarray(LOG_MU, jnp.float32))
  np.testing.assert_allclose(
    grad, np.where(MASK, -ADVANTAGE, 0) / MASK.sum(), rtol=1e-5
  )


def test_cispo_clips_the_weight_and_keeps_every_gradient():
  loss, metrics = losses.cispo(LOG_P, LOG_MU, ADVANTAGE, MASK, clip_high=0.28)
  weight = np.minimum(np.exp(LOG_P - LOG_MU), 1.28)
  expected = np.mean(
    [-weight[i] * ADVANTAGE[i] * LOG_P[i] for i in positions()]
  )
  assert float(loss) == pytest.approx(expected, rel=1e-5)
  assert float(metrics["clip_fraction"]) == pytest.approx(
    (weight[MASK] == 1.28).mean()
  )
  grad = jax.grad(
    lambda p: losses.cispo(p, LOG_MU, ADVANTAGE, MASK, clip_high=0.28)[0]
  )(jnp.asarray(LOG_P, jnp.float32))
  np.testing.assert_allclose(
    grad, np.where(MASK, -weight * ADVANTAGE, 0) / MASK.sum(), rtol=1e-4
  )


def test_bucket_kl_is_a_kl_of_two_full_distributions():
  """Other tokens share what is left in the policy's own proportions."""
  A = 4
  log_p = log_probs(3)
  candidates = np.argsort(RNG.random((*SHAPE, V)))[..., :A]
  weight = scipy.special.softmax(RNG.normal(size=(*SHAPE, A)), axis=-1)
  mass = RNG.uniform(0.1, 0.95, SHAPE)
  terms = []
  for i in positions():
    p, inside = np.exp(log_p[i]), np.zeros(V, bool)
    inside[candidates[i]] = True
    target = np.where(inside, 0, p / p[~inside].sum() * (1 - mass[i]))
    target[candidates[i]] = mass[i] * weight[i]
    assert target.sum() == pytest.approx(1)
    terms.append(scipy.stats.entropy(target, p))
  log_p_A = np.take_along_axis(log_p, candidates, axis=-1)
  got = losses.bucket_kl(log_p_A, weight, mass, MASK)
  assert float(got) == pytest.approx(np.mean(terms), rel=1e-4)


def test_bucket_kl_is_zero_at_its_target_and_its_gradient_leads_there():
  candidates, weight = np.array([[0, 3]]), np.array([[0.9, 0.1]])
  mass, mask = np.array([0.8]), np.array([True])

  def loss(logits):
    log_p = jax.nn.log_softmax(logits)
    return losses.bucket_kl(log_p[:, candidates[0]], weight, mass, mask)

  step = jax.jit(lambda x: x - jax.grad(loss)(x))
  logits = jnp.zeros((1, V))
  for _ in range(600):
    logits = step(logits)
  assert float(loss(logits)) == pytest.approx(0, abs=1e-5)
  p = jax.nn.softmax(logits)[0]
  np.testing.assert_allclose(p[candidates[0]], [0.72, 0.08], atol=1e-3)


def test_kl_and_entropy_are_scipys():
  log_p, log_q = log_probs(4), log_probs(5)
  p, q = np.exp(log_p), np.exp(log_q)
  kl = scipy.stats.entropy(p, q, axis=-1)
  np.testing.assert_allclose(
    losses.kl_to_reference(log_p, log_q), kl, rtol=1e-5
  )
  entropy = scipy.stats.entropy(p, axis=-1)
  np.testing.assert_allclose(losses.entropy(log_p), entropy, rtol=1e-5)


def test_value_success_and_cross_entropy():
  x, y = RNG.normal(size=SHAPE), RNG.random(SHAPE)
  sigmoid = 1 / (1 + np.exp(-x))
  bce = -(y * np.log(sigmoid) + (1 - y) * np.log(1 - sigmoid))
  assert float(losses.value(x, y, MASK)) == pytest.approx(
    0.5 * ((x - y)[MASK] ** 2).mean(), rel=1e-5
  )
  assert float(losses.success(x, y, MASK)) == pytest.approx(
    bce[MASK].mean(), rel=1e-5
  )
  assert float(losses.cross_entropy(LOG_P, MASK)) == pytest.approx(
    -LOG_P[MASK].mean(), rel=1e-5
  )


def test_bradley_terry_is_a_logistic_regression_on_differences():
  reward, margin = RNG.normal(size=(9, 2)), RNG.random(9)
  weight = RNG.integers(0, 3, 9)
  terms = [
    -w * np.log(1 / (1 + np.exp(-(chosen - rejected - m))))
    for (chosen, rejected), m, w in zip(reward, margin, weight, strict=True)
  ]
  loss, metrics = losses.bradley_terry(reward, margin, weight)
  assert float(loss) == pytest.approx(sum(terms) / weight.sum(), rel=1e-5)
  hits = sum(weight[reward[:, 0] > reward[:, 1]])
  assert float(metrics["accuracy"]) == pytest.approx(hits / weight.sum())
  # Where rewards are far apart nothing overflows; no pairs are worth nothing.
  far = np.array([[-1e5, 1e5]])
  one = np.ones(1)
  assert float(losses.bradley_terry(far, 0 * one, one)[0]) == 2e5
  assert float(losses.bradley_terry(far, 0 * one, 0 * one)[0]) == 0


def test_dpo_by_hand():
  """pi(chosen) doubles, pi(rejected) halves: a reward of beta log 4."""
  log_prob, reference = np.log([[0.4, 0.1]]), np.log([[0.2, 0.2]])
  loss, metrics = losses.dpo(log_prob, reference, 0.0, np.ones(1), beta=0.5)
  assert float(loss) == pytest.approx(np.log(1.5), rel=1e-5)  # 4**-.5 = 1/2.
  assert float(metrics["accuracy"]) == 1
  at_start, _ = losses.dpo(reference, reference, 0.0, np.ones(1), beta=0.5)
  assert float(at_start) == pytest.approx(np.log(2))


def test_dpo_gradient_is_the_papers():
  """Equation 7: -beta sigma(-reward ahead) (grad chosen - grad rejected)."""
  log_prob, reference = RNG.normal(size=(2, 5, 2)) - 3
  beta, weight = 0.3, np.array([1, 0, 1, 1, 2.0])
  grad = jax.grad(
    lambda x: losses.dpo(x, reference, np.zeros(5), weight, beta=beta)[0]
  )(jnp.asarray(log_prob, jnp.float32))
  gained = log_prob - reference
  ahead = beta * (gained[:, 0] - gained[:, 1])
  expected = -beta * scipy.special.expit(-ahead) * weight / weight.sum()
  np.testing.assert_allclose(grad, np.stack([expected, -expected], 1), 1e-4)


def test_what_two_branches_begin_with_has_no_part_in_dpo():
  log_p, reference = (RNG.normal(size=(2, 7)) for _ in range(2))
  log_p[1, :4], reference[1, :4] = log_p[0, :4], reference[0, :4]

  def loss(first):
    return losses.dpo(
      log_p[None, :, first:].sum(-1),
      reference[None, :, first:].sum(-1),
      0.0, np.ones(1), beta=0.7,
    )[0]  # fmt: skip

  assert float(loss(0)) == pytest.approx(float(loss(4)), rel=1e-5)


def test_an_empty_mask_gives_zero_and_no_nan():
  none = np.zeros(SHAPE, bool)
  wild = np.full(SHAPE, 1e6)  # exp overflows.
  loss, metrics = losses.ppo(
    wild, -wild, ADVANTAGE, none, clip_low=0.2, clip_high=0.2
  )
  assert float(loss) == 0
  assert all(np.isfinite(float(v)) for v in metrics.values())
