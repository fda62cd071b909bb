"""What an iteration teaches and how: the batch, the loss, the optimiser steps.

Rows come from two places. Samples of the policy carry advantages; champions are
answers to distil, of prompts that need not be those the policy sampled on, for
a search can afford to look at many more prompts than an update.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from tsd_jax.base.types import Array, Responses
from tsd_jax.inference import scoring
from tsd_jax.learning import losses
from tsd_jax.learning.methods import LearnerConfig
from tsd_jax.models import lora
from tsd_jax.parallel import sharding
from tsd_jax.search.champions import PathTargets


class DistillationBatch(NamedTuple):
  """Answers to distil: M of each of C prompts; every leaf leads with C."""

  prompt_CP: Array
  tokens_CMT: Array
  used_CM: Array  # bool, whether it is distilled.
  targets: PathTargets | None  # At the states of the first answer.
  # bool, tokens that the environment wrote; None where it never does.
  environment_CMT: Array | None = None


class Batch(NamedTuple):
  """What the loss sees; leaves lead with B, those of `distillation` with C."""

  prompt_BP: Array
  responses: Responses
  advantage_BGT: Array
  return_BGT: Array
  distillation: DistillationBatch | None  # None where nothing is distilled.


def make_optimizer(config: LearnerConfig) -> optax.GradientTransformation:
  """Adam without a learning rate: that is an argument of the compiled loop."""
  o = config.optimizer
  return optax.chain(
    optax.clip_by_global_norm(o.max_grad_norm),
    optax.scale_by_adam(b1=o.b1, b2=o.b2, eps=o.eps),
  )


def merged_params(params, reference, config: LearnerConfig):
  """What a model reads: the trained parameters, or adapters merged.

  Args:
    params: what is trained.
    reference: the run's first parameters, which adapters change.
    config: says which of the two.
  """
  if not config.lora.rank:
    return params
  return lora.merge(reference, params, config.lora)


def champion_loss(
  read, model, distillation: DistillationBatch, hyper, config: LearnerConfig
):
  """l_hard CE(champion) + l_soft KL(target || pi), with metrics."""
  c, tokens_CMT = config.loss, distillation.tokens_CMT
  x_CMTD = scoring.hidden_states(
    model, distillation.prompt_CP, tokens_CMT, *config.prompt_form
  )
  chosen_CMT = read(scoring.log_prob_of, x_CMTD, tokens_CMT)
  # A champion ends with its end token; nothing after it is learned.
  end_CMT = tokens_CMT == config.eos_id
  inside_CMT = jnp.cumsum(end_CMT, axis=2) - end_CMT == 0
  use_CMT = inside_CMT & distillation.used_CM[..., None]
  if distillation.environment_CMT is not None:
    use_CMT &= ~distillation.environment_CMT
  metrics = {"champion_ce": losses.cross_entropy(chosen_CMT, use_CMT)}
  total = hyper["champion_weight"] * metrics["champion_ce"]
  if c.soft_weight > 0:
    t = distillation.targets
    log_prob_C1TA = read(
      functools.partial(jnp.take_along_axis, axis=-1),
      x_CMTD[:, :1],
      t.candidate_BTA[:, None],
    )
    metrics["soft_kl"] = losses.bucket_kl(
      log_prob_C1TA[:, 0], t.weight_BTA, t.mass_BT, t.mask_BT & use_CMT[:, 0]
    )
    total += hyper["soft_weight"] * metrics["soft_kl"]
  return total, metrics


def sample_loss(
  read, model, reference_model, batch: Batch, hyper, config: LearnerConfig
):
  """The terms that read the policy's own samples, with metrics."""
  r, c = batch.responses, config.loss
  inputs = batch.prompt_BP, r.tokens_BGT, *config.prompt_form
  x_BGTD = scoring.hidden_states(model, *inputs)
  log_prob_BGT, entropy_BGT = read(
    lambda log_prob_XV, token_X: (
      scoring.log_prob_of(log_prob_XV, token_X),
      losses.entropy(log_prob_XV),
    ),
    x_BGTD,
    r.tokens_BGT,
  )
  value_BGT, logit_BGT = model.values(x_BGTD)
  total, metrics = jnp.float32(0.0), {}
  if c.policy_weight > 0:
    clip = dict(clip_high=hyper["clip_high"])
    if c.policy == "ppo":
      policy_loss, clip["clip_low"] = losses.ppo, hyper["clip_low"]
    else:
      policy_loss = losses.cispo
    policy, metrics = policy_loss(
      log_prob_BGT, r.log_prob_BGT, batch.advantage_BGT, r.chosen_BGT, **clip
    )
    metrics["policy_loss"] = policy
    total += hyper["policy_weight"] * policy
  metrics["entropy"] = losses.masked_mean(entropy_BGT, r.chosen_BGT)
  if c.entropy_weight > 0:
    total -= hyper["entropy_weight"] * metrics["entropy"]
  if c.value_weight > 0:
    metrics["value_loss"] = losses.value(
      value_BGT, batch.return_BGT, r.mask_BGT
    )
    total += hyper["value_weight"] * metrics["value_loss"]
  if c.success_weight > 0:
    success_BGT = jnp.broadcast_to(
      r.correct_BG[..., None].astype(jnp.float32), r.mask_BGT.shape
    )
    metrics["success_loss"] = losses.success(logit_BGT, success_BGT, r.mask_BGT)
    total += hyper["success_weight"] * metrics["success_loss"]
  if c.kl_weight > 0:
    reference_BGTD = jax.lax.stop_gradient(
      scoring.hidden_states(reference_model, *inputs)
    )

    def kl(log_prob_XV, reference_XD):
      logits_XV = (
        reference_model.logits(reference_XD) / config.rollout.temperature
      )
      return losses.kl_to_reference(log_prob_XV, jax.nn.log_softmax(logits_XV))

    kl_BGT = read(kl, x_BGTD, reference_BGTD)
    metrics["kl_reference"] = losses.masked_mean(kl_BGT, r.chosen_BGT)
    total += hyper["kl_weight"] * metrics["kl_reference"]
  return total, metrics


def loss_fn(params, reference, graphdef, batch: Batch, hyper, config):
  """The loss of one minibatch, with metrics.

  L = L_policy + l_hard CE(champion) + l_soft KL(target || pi)
      + c_v L_value + c_s L_success + beta KL(pi || ref) - c_e H
  """
  model = nnx.merge(graphdef, merged_params(params, reference, config))
  read = functools.partial(
    scoring.read_log_probs, model, temperature=config.rollout.temperature
  )
  total, metrics = jnp.float32(0.0), {}
  if config.loss.trains_on_samples:
    reference_model = nnx.merge(graphdef, reference)
    total, metrics = sample_loss(
      read, model, reference_model, batch, hyper, config
    )
  if config.loss.distils:
    distilled, found = champion_loss(
      read, model, batch.distillation, hyper, config
    )
    total, metrics = total + distilled, metrics | found
  return total, {"loss": total, **metrics}


def update(
  graphdef,
  carry,
  reference,
  batch: Batch,
  key,
  hyper,
  config: LearnerConfig,
  mesh: jax.sharding.Mesh | None = None,
):
  """Takes all optimiser steps of one iteration.

  Args:
    graphdef: structure of the model.
    carry: parameters and optimiser state.
    reference: parameters that the KL reference_model is tied to.
    batch: what was sampled and searched.
    key: random key of the prompts' order, consumed.
    hyper: scalars, `LearnerConfig.hyper`.
    config: epochs, minibatches, terms of the loss.
    mesh: devices that every minibatch is split over.

  Returns:
    The new carry, and the metrics' means over the steps.
  """
  optimizer = make_optimizer(config)
  steps = config.optimizer.minibatches

  def gradients(shared, minibatch):
    params, reference, hyper = shared
    return jax.grad(loss_fn, has_aux=True)(
      params, reference, graphdef, minibatch, hyper, config
    )

  def step(carry, minibatch):
    params, opt_state = carry
    grads, metrics = sharding.per_replica(gradients, mesh, config.mesh.gather)(
      (params, reference, hyper), minibatch
    )
    metrics["grad_norm"] = optax.tree.norm(grads)
    change, opt_state = optimizer.update(grads, opt_state, params)
    change = jax.tree.map(lambda u: -hyper["learning_rate"] * u, change)
    return (optax.apply_updates(params, change), opt_state), metrics

  def shuffled(key, leaves):
    """Minibatches of whole prompts, in random order."""
    count = {a.shape[0] for a in jax.tree.leaves(leaves)}
    if not count:
      return leaves
    order_X = jax.random.permutation(key, *count)
    leaves = jax.tree.map(
      lambda a: a[order_X].reshape(steps, -1, *a.shape[1:]), leaves
    )
    return sharding.split_minibatches(leaves, mesh)

  def epoch(carry, epoch_key):
    sample_key, distillation_key = jax.random.split(epoch_key)
    distillation = shuffled(distillation_key, batch.distillation)
    samples = shuffled(sample_key, batch._replace(distillation=None))
    return jax.lax.scan(
      step, carry, samples._replace(distillation=distillation)
    )

  carry, metrics_X = jax.lax.scan(
    epoch, carry, jax.random.split(key, config.optimizer.epochs)
  )
  return carry, jax.tree.map(jnp.mean, metrics_X)
