"""The terms of the loss, one line each.

A term reads the policy's own samples or the champions, and returns a number and
metrics. Its weight is `LossConfig.NAME_weight`, or for a term of your own
`LossTerm.weight`, and the loop multiplies by it: a term sees no weight, neither
the traced one nor the 0 or 1 that a program is compiled for. Which terms are
left out, what must be searched or sampled, and what a sweep may change follow
from this list.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from tsd_jax.base.types import Array, Responses, chosen_tokens
from tsd_jax.inference import scoring
from tsd_jax.learning import losses
from tsd_jax.rewards.reward import response_mask
from tsd_jax.search.champions import PathTargets

Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class SampleInputs:
  """What a term may read of the policy's samples, G of each of B prompts."""

  responses: Responses
  advantage_BGT: Array
  return_BGT: Array
  success_BG: Array  # float32, whether, or how far, each solves its problem.
  # Of the policy as it is now, at the samples' temperature.
  log_prob_BGT: Array  # Of the sampled tokens.
  entropy_BGT: Array  # Nats.
  value_BGT: Array  # V_pi.
  success_logit_BGT: Array  # V_search before the sigmoid.
  # read(fn, *inputs_BGT): what fn(log_prob_XV, *inputs_X) makes of the policy's
  # log-probabilities over the vocabulary; see `scoring.read_log_probs`.
  read: Callable[..., Any]
  # () -> exact KL of the policy to the reference model, nats, BGT, for terms
  # with `LossTerm.reads_reference`.
  kl_to_reference: Callable[[], Array]
  policy: Literal["ppo", "cispo"]  # Form of the surrogate.
  clips: Mapping[str, Array]  # clip_low, clip_high.
  # Of the policy as it ships, the log-probability that it abstains next, and
  # what that is weighed with; all else is given that it does not. None where
  # samples may abstain themselves, or nothing can.
  log_abstain_BGT: Array | None
  stopping: losses.Stopping | None


@dataclasses.dataclass(frozen=True)
class ChampionInputs:
  """What a term may read of the champions, M of each of C prompts."""

  tokens_CMT: Array
  log_prob_CMT: Array  # Of their tokens, under the policy.
  use_CMT: Array  # bool, tokens to be learned.
  targets: PathTargets | None  # At the states of the first champions.
  # As in `SampleInputs`; fn's inputs lead with C1T: of the first champions.
  read_first: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class LossTerm:
  """A term: its name, what it reads, and a function of that."""

  name: str
  reads: Literal["samples", "champions"]
  fn: Callable[[Any], tuple[Array, Metrics]]
  weight: float = 1.0  # Of a term of your own (`LossConfig.terms`).
  # Whether it asks for `SampleInputs.kl_to_reference`: the ledger counts it.
  reads_reference: bool = False

  @property
  def weight_name(self) -> str:
    """Name of the scalar that multiplies the term."""
    return f"{self.name}_weight"


def policy(x: SampleInputs) -> tuple[Array, Metrics]:
  """The clipped surrogate of PPO or CISPO on sampled tokens."""
  clips = dict(x.clips)
  surrogate = losses.ppo
  if x.policy == "cispo":
    surrogate = losses.cispo
    del clips["clip_low"]
  r = x.responses
  loss, metrics = surrogate(
    x.log_prob_BGT, r.log_prob_BGT, x.advantage_BGT, r.chosen_BGT, **clips
  )
  return loss, metrics | {"policy_loss": loss}


def entropy(x: SampleInputs) -> tuple[Array, Metrics]:
  """Minus the policy's entropy: the term is a bonus."""
  return -losses.masked_mean(x.entropy_BGT, x.responses.chosen_BGT), {}


def value(x: SampleInputs) -> tuple[Array, Metrics]:
  """Squared error of V_pi."""
  loss = losses.value(x.value_BGT, x.return_BGT, x.responses.mask_BGT)
  return loss, {"value_loss": loss}


def success(x: SampleInputs) -> tuple[Array, Metrics]:
  """Cross-entropy of V_search with success, at every state of a sample."""
  mask_BGT = x.responses.mask_BGT
  success_BGT = jnp.broadcast_to(x.success_BG[..., None], mask_BGT.shape)
  loss = losses.success(x.success_logit_BGT, success_BGT, mask_BGT)
  return loss, {"success_loss": loss}


def kl(x: SampleInputs) -> tuple[Array, Metrics]:
  """KL(policy || reference model), exact at every sampled state."""
  loss = losses.masked_mean(x.kl_to_reference(), x.responses.chosen_BGT)
  return loss, {"kl_reference": loss}


def abstention(x: SampleInputs) -> tuple[Array, Metrics]:
  """Minus what is earned by abstaining in time; samples answer."""
  r = x.responses
  # `methods.resolve` leaves it out where there are none.
  assert x.log_abstain_BGT is not None and x.stopping is not None
  return losses.abstention(
    x.log_abstain_BGT, r.reward_BG, r.chosen_BGT, x.stopping
  )


def champion(x: ChampionInputs) -> tuple[Array, Metrics]:
  """Cross-entropy of the champions."""
  loss = losses.cross_entropy(x.log_prob_CMT, x.use_CMT)
  return loss, {"champion_ce": loss}


def soft(x: ChampionInputs) -> tuple[Array, Metrics]:
  """KL of the improved move distributions on the way to the first champion."""
  t = x.targets
  assert t is not None  # `LearnerConfig` wants a search for them.
  log_prob_C1TA = x.read_first(
    functools.partial(jnp.take_along_axis, axis=-1), t.candidate_BTA[:, None]
  )
  loss = losses.bucket_kl(
    log_prob_C1TA[:, 0], t.weight_BTA, t.mass_BT, t.mask_BT & x.use_CMT[:, 0]
  )
  return loss, {"soft_kl": loss}


def aversion(x: ChampionInputs) -> tuple[Array, Metrics]:
  """Unlikelihood of forbidden moves on the way to the first champion."""
  t = x.targets
  assert t is not None and t.forbidden_BTA is not None  # `methods.resolve`.
  log_rest_C1TA = x.read_first(losses.log_rest, t.candidate_BTA[:, None])
  forbidden_CTA = t.forbidden_BTA & x.use_CMT[:, 0, :, None]
  loss = losses.unlikelihood(log_rest_C1TA[:, 0], forbidden_CTA)
  return loss, {"aversion_loss": loss}


# In the order in which they are added.
TERMS = (
  LossTerm("policy", "samples", policy),
  LossTerm("entropy", "samples", entropy),
  LossTerm("value", "samples", value),
  LossTerm("success", "samples", success),
  LossTerm("kl", "samples", kl, reads_reference=True),
  LossTerm("abstention", "samples", abstention),
  LossTerm("champion", "champions", champion),
  LossTerm("soft", "champions", soft),
  LossTerm("aversion", "champions", aversion),
)


def add_up(
  terms: tuple[LossTerm, ...],
  inputs: SampleInputs | ChampionInputs,
  hyper: Mapping[str, Array],
) -> tuple[Array, Metrics]:
  """The weighted sum of some terms that read the same inputs, with metrics."""
  total, metrics = jnp.float32(0.0), {}
  for term in terms:
    loss, found = term.fn(inputs)
    total += hyper[term.weight_name] * loss
    metrics |= found
  return total, metrics


def read_champions(
  read, x_CMTD: Array, tokens_CMT: Array, used_CM: Array,
  end_ids: tuple[int, ...], environment_CMT: Array | None,
  targets: PathTargets | None,
) -> ChampionInputs:  # fmt: skip
  """What the terms read of champions.

  Args:
    read: `scoring.read_log_probs` of the policy.
    x_CMTD: hidden states before the champions' tokens.
    tokens_CMT: the champions.
    used_CM: bool, those that are distilled.
    end_ids: the end tokens; nothing after it is learned.
    environment_CMT: tokens that the environment wrote, or None.
    targets: of the first champions, or None.
  """
  use_CMT = response_mask(tokens_CMT, end_ids) & used_CM[..., None]
  use_CMT = chosen_tokens(use_CMT, environment_CMT)
  return ChampionInputs(
    tokens_CMT=tokens_CMT,
    log_prob_CMT=read(scoring.log_prob_of, x_CMTD, tokens_CMT),
    use_CMT=use_CMT,
    targets=targets,
    read_first=lambda fn, *inputs: read(fn, x_CMTD[:, :1], *inputs),
  )


def read_samples(
  read,
  model,
  reference_model,
  x_BGTD: Array,
  reference_states: Callable[[], Array],
  temperature: float,
  **fields,
) -> SampleInputs:
  """What the terms read of samples.

  Args:
    read: `scoring.read_log_probs` of the policy, at the samples' temperature.
    model: the policy.
    reference_model: the run's first model.
    x_BGTD: the policy's hidden states before the samples' tokens.
    reference_states: () -> the reference model's.
    temperature: of the samples.
    **fields: the other fields of `SampleInputs`.
  """
  tokens_BGT = fields["responses"].tokens_BGT
  log_prob_BGT, entropy_BGT = read(
    lambda log_prob_XV, token_X: (
      scoring.log_prob_of(log_prob_XV, token_X),
      losses.entropy(log_prob_XV),
    ),
    x_BGTD,
    tokens_BGT,
  )
  value_BGT, logit_BGT = model.values(x_BGTD)

  @functools.cache  # Terms share it.
  def kl_to_reference():
    def of_states(log_prob_XV, reference_XD):
      logits_XV = reference_model.logits(reference_XD) / temperature
      return losses.kl_to_reference(log_prob_XV, jax.nn.log_softmax(logits_XV))

    reference_BGTD = jax.lax.stop_gradient(reference_states())
    return read(of_states, x_BGTD, reference_BGTD)

  return SampleInputs(
    log_prob_BGT=log_prob_BGT,
    entropy_BGT=entropy_BGT,
    value_BGT=value_BGT,
    success_logit_BGT=logit_BGT,
    read=lambda fn, *inputs: read(fn, x_BGTD, *inputs),
    kl_to_reference=kl_to_reference,
    **fields,
  )
