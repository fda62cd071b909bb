"""Losses as pure functions of arrays.

No function here knows a model or a config. Those with a `mask` return the mean
over the positions that it selects; an empty mask gives zero. Those over the
whole vocabulary return a number a token (`scoring.read_log_probs`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tsd_jax.base.types import Array
from tsd_jax.parallel import sharding


def masked_mean(x_X: Array, mask_X: Array) -> Array:
  """Mean of x where mask holds; zero where it never does.

  Inside `sharding.per_replica` it is what the replica's own prompts add to
  the mean.
  """
  weight_X = mask_X.astype(jnp.float32)
  total, count = jnp.sum(x_X * weight_X), jnp.sum(weight_X)
  return total / jnp.maximum(sharding.sum_replicas(count), 1.0)


def ppo(
  log_prob_X: Array,
  behaviour_X: Array,
  advantage_X: Array,
  mask_X: Array,
  *,
  clip_low: float | Array,
  clip_high: float | Array,
) -> tuple[Array, dict[str, Array]]:
  """PPO's clipped surrogate, -min(rho A, clip(rho, 1-l, 1+h) A).

  rho = exp(log pi - log mu) against the stored behaviour log-probability mu of
  the sampled token (arXiv:1707.06347). Only sampled tokens may be given.

  Args:
    log_prob_X: log pi of the sampled tokens now.
    behaviour_X: log mu when they were sampled, at the same temperature.
    advantage_X: advantages.
    mask_X: sampled tokens.
    clip_low: l.
    clip_high: h.

  Returns:
    Loss, and the ratio's mean, clip fraction and approximate KL(mu || pi).
  """
  log_ratio_X = jnp.where(mask_X, log_prob_X - behaviour_X, 0.0)
  ratio_X = jnp.exp(log_ratio_X)
  clipped_X = jnp.clip(ratio_X, 1.0 - clip_low, 1.0 + clip_high)
  loss_X = -jnp.minimum(ratio_X * advantage_X, clipped_X * advantage_X)
  acts_X = jnp.where(
    advantage_X > 0, ratio_X > 1.0 + clip_high, ratio_X < 1.0 - clip_low
  )
  return masked_mean(loss_X, mask_X), {
    "ratio": masked_mean(ratio_X, mask_X),
    "clip_fraction": masked_mean(acts_X & (advantage_X != 0), mask_X),
    "approx_kl": masked_mean(ratio_X - 1.0 - log_ratio_X, mask_X),
  }


def cispo(
  log_prob_X: Array,
  behaviour_X: Array,
  advantage_X: Array,
  mask_X: Array,
  *,
  clip_high: float | Array,
) -> tuple[Array, dict[str, Array]]:
  """CISPO: -sg(min(rho, 1+h)) A log pi (arXiv:2506.13585).

  The importance weight is clipped, not the update: every token keeps its
  gradient. Arguments and metrics as in `ppo`.
  """
  log_ratio_X = jnp.where(mask_X, log_prob_X - behaviour_X, 0.0)
  ratio_X = jnp.exp(log_ratio_X)
  weight_X = jax.lax.stop_gradient(jnp.minimum(ratio_X, 1.0 + clip_high))
  loss_X = -weight_X * advantage_X * log_prob_X
  return masked_mean(loss_X, mask_X), {
    "ratio": masked_mean(ratio_X, mask_X),
    "clip_fraction": masked_mean(ratio_X > 1.0 + clip_high, mask_X),
    "approx_kl": masked_mean(ratio_X - 1.0 - log_ratio_X, mask_X),
  }


def cross_entropy(log_prob_X: Array, mask_X: Array) -> Array:
  """-log pi of a champion's tokens."""
  return -masked_mean(log_prob_X, mask_X)


def bucket_kl(
  log_prob_XA: Array,
  weight_XA: Array,
  mass_X: Array,
  mask_X: Array,
) -> Array:
  """KL(target || pi) over A candidates and one bucket for all other tokens.

  The target gives candidate a the probability m * w_a and the rest 1 - m, with
  m the search model's own probability of the candidate set: search moves
  probability between the moves it tried and says nothing of the others.

  Args:
    log_prob_XA: log pi of the candidates, which are distinct tokens.
    weight_XA: improved distribution over them, sums to one.
    mass_X: m in [0, 1].
    mask_X: states that count.

  Returns:
    Mean KL in nats.
  """
  tiny = 1e-6
  inside_X = jnp.clip(jnp.sum(jnp.exp(log_prob_XA), axis=-1), tiny, 1.0 - tiny)
  mass_X = jnp.clip(mass_X, tiny, 1.0 - tiny)
  target_XA = mass_X[..., None] * weight_XA
  log_target_XA = jnp.log(jnp.maximum(target_XA, 1e-30))
  kl_X = jnp.sum(target_XA * (log_target_XA - log_prob_XA), axis=-1)
  rest_X = 1.0 - mass_X
  kl_X += rest_X * (jnp.log(rest_X) - jnp.log1p(-inside_X))
  return masked_mean(kl_X, mask_X)


def unlikelihood(log_rest_X: Array, mask_X: Array) -> Array:
  """-log(1 - pi) of moves that are not to be made (arXiv:1908.04319).

  Its derivative by the logit of a move is pi: at most 1, and nothing where the
  move is as good as forgotten.

  Args:
    log_rest_X: log(1 - pi), as `log_rest` has it.
    mask_X: moves that count.
  """
  return -masked_mean(log_rest_X, mask_X)


def log_rest(log_prob_XV: Array, token_XA: Array) -> Array:
  """log(1 - pi) of tokens, XA, exact where pi is 1 but for rounding.

  Only the likeliest token can have more than a half: of that the others'
  probabilities are added up.

  Args:
    log_prob_XV: log pi.
    token_XA: tokens.
  """
  top_X1 = jnp.argmax(log_prob_XV, axis=-1, keepdims=True)
  others_XV = jnp.where(
    jnp.arange(log_prob_XV.shape[-1]) == top_X1, -jnp.inf, log_prob_XV
  )
  rest_X1 = jax.nn.logsumexp(others_XV, axis=-1, keepdims=True)
  is_top_XA = token_XA == top_X1
  log_prob_XA = jnp.take_along_axis(log_prob_XV, token_XA, axis=-1)
  # No gradient goes through the branch that is not taken, nor a NaN.
  log_prob_XA = jnp.where(is_top_XA, -1.0, log_prob_XA)
  return jnp.where(is_top_XA, rest_X1, jnp.log1p(-jnp.exp(log_prob_XA)))


def kl_to_reference(log_prob_XV: Array, reference_XV: Array) -> Array:
  """Exact KL(pi || pi_ref) over the vocabulary, in nats, of every token."""
  return jnp.sum(jnp.exp(log_prob_XV) * (log_prob_XV - reference_XV), axis=-1)


def entropy(log_prob_XV: Array) -> Array:
  """Entropy of the policy in nats, of every token."""
  return -jnp.sum(jnp.exp(log_prob_XV) * log_prob_XV, axis=-1)


class Stopping(NamedTuple):
  """What abstaining is weighed with, in units of the reward."""

  worth: float  # Of abstaining.
  entropy: float  # Weight of the entropy of stopping.
  patience: float  # What going on is worth beside what comes of it.


def abstention(
  log_stop_XT: Array, reward_X: Array, mask_XT: Array, stopping: Stopping
) -> tuple[Array, dict[str, Array]]:
  """Minus the reward of a policy that may abstain before any token.

    J_T = r,  J_t = p_t a + (1 - p_t) J_{t+1}
    loss = -mean of p_t a + (1 - p_t) (sg J_{t+1} + patience) + tau H(p_t)

  J_0 is the exact expectation over where it stops, of an answer that was
  sampled without stopping; nothing of that is sampled. Each decision is taken
  as if the policy had come there: what going on is worth counts the abstentions
  to come, so that stopping early, which can never be better, has no hold before
  the later decisions are learned. Patience settles the tie. This is backward
  induction of optimal stopping, on policy.

  Args:
    log_stop_XT: log p_t.
    reward_X: r, of the answers.
    mask_XT: tokens that were sampled, before which it may stop.
    stopping: a, tau and the patience.

  Returns:
    Loss, and metrics: J_0, how often it abstains, and how often before an
    answer that earns more.
  """
  log_stop_XT = jnp.minimum(log_stop_XT, -1e-6)
  p_XT = jnp.exp(log_stop_XT)
  log_go_XT = jnp.log1p(-p_XT)
  entropy_XT = -(p_XT * log_stop_XT + (1.0 - p_XT) * log_go_XT)

  def back(j_X, at):
    p_X, mask_X = at
    before_X = p_X * stopping.worth + (1.0 - p_X) * j_X
    return jnp.where(mask_X, before_X, j_X), j_X

  decisions = jnp.moveaxis(p_XT, -1, 0), jnp.moveaxis(mask_XT, -1, 0)
  first_X, later_TX = jax.lax.scan(back, reward_X, decisions, reverse=True)
  later_XT = jax.lax.stop_gradient(jnp.moveaxis(later_TX, 0, -1))
  worth_XT = p_XT * stopping.worth
  worth_XT += (1.0 - p_XT) * (later_XT + stopping.patience)
  worth_XT += stopping.entropy * entropy_XT
  go_X = jnp.exp(jnp.sum(jnp.where(mask_XT, log_go_XT, 0.0), axis=-1))
  better_X = reward_X > stopping.worth
  any_X = jnp.ones_like(better_X)
  return -masked_mean(worth_XT, mask_XT), {
    "abstention_reward": masked_mean(first_X, any_X),
    "abstains": masked_mean(1.0 - go_X, any_X),
    "abstains_needlessly": masked_mean(1.0 - go_X, better_X),
  }


def value(value_X: Array, return_X: Array, mask_X: Array) -> Array:
  """Half the squared error of V_pi."""
  return 0.5 * masked_mean((value_X - return_X) ** 2, mask_X)


def success(logit_X: Array, target_X: Array, mask_X: Array) -> Array:
  """Binary cross-entropy of V_search against success in [0, 1]."""
  loss_X = jax.nn.softplus(logit_X) - target_X * logit_X
  return masked_mean(loss_X, mask_X)


def bradley_terry(
  reward_X2: Array, margin_X: Array, weight_X: Array
) -> tuple[Array, dict[str, Array]]:
  """-log sigma(r_chosen - r_rejected - margin) (doi:10.2307/2334029).

  Bradley and Terry's (1952) chance that the chosen one wins, as reward models
  are fitted (arXiv:1706.03741). A margin asks for as much more of a pair that
  is clear (arXiv:2307.09288).

  Args:
    reward_X2: of the chosen and the rejected response.
    margin_X: in units of the reward; 0 for none.
    weight_X: how often a pair counts.

  Returns:
    Loss, and how often the chosen one has the higher reward.
  """
  ahead_X = reward_X2[..., 0] - reward_X2[..., 1]
  total = jnp.maximum(jnp.sum(weight_X), 1.0)
  loss_X = jax.nn.softplus(margin_X - ahead_X)
  return jnp.sum(weight_X * loss_X) / total, {
    "accuracy": jnp.sum(weight_X * (ahead_X > 0)) / total,
  }


def dpo(
  log_prob_X2: Array,
  reference_X2: Array,
  margin_X: Array,
  weight_X: Array,
  *,
  beta: float | Array,
) -> tuple[Array, dict[str, Array]]:
  """Direct preference optimisation (arXiv:2305.18290).

    -log sigma(beta (log pi / pi_ref (chosen) - log pi / pi_ref (rejected)))

  Bradley and Terry's loss of the reward that the policy is optimal for, up to
  a number a prompt: beta log pi / pi_ref. What two responses begin with alike
  is in both, and so in neither's favour: branches of one node are compared by
  what follows it (arXiv:2406.18629).

  Args:
    log_prob_X2: log pi of the whole chosen and rejected response.
    reference_X2: the same of the reference model.
    margin_X: as in `bradley_terry`.
    weight_X: how often a pair counts.
    beta: weight of the KL to the reference that the reward is weighed against.

  Returns:
    Loss, and how often the chosen one has the higher reward.
  """
  reward_X2 = beta * (log_prob_X2 - reference_X2)
  return bradley_terry(reward_X2, margin_X, weight_X)
