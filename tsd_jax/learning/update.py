"""What an iteration teaches and how: the batch, the loss, the optimiser steps.

Rows come from two places. Samples of the policy carry advantages; champions are
answers to distil, of prompts that need not be those the policy sampled on, for
a search can afford to look at many more prompts than an update.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from tsd_jax.base.types import Array, Prompts, Responses
from tsd_jax.inference import scoring
from tsd_jax.learning import loss_terms, losses
from tsd_jax.learning.config import LearnerConfig
from tsd_jax.models import lora
from tsd_jax.parallel import sharding
from tsd_jax.search.champions import PathTargets


class DistillationBatch(NamedTuple):
  """Answers to distil: M of each of C prompts; every leaf leads with C."""

  prompts: Prompts  # C of them.
  tokens_CMT: Array
  used_CM: Array  # bool, whether it is distilled.
  targets: PathTargets | None  # At the states of the first answer.
  # bool, tokens that the environment wrote; None where it never does.
  environment_CMT: Array | None = None


class FixedParams(NamedTuple):
  """Parameters that no iteration changes; never donated."""

  reference: Any  # The run's first model.
  reward: Any = ()  # The reward's, see `Reward.load`.


class Batch(NamedTuple):
  """What the loss sees; leaves lead with B, those of `distillation` with C."""

  prompts: Prompts
  responses: Responses
  advantage_BGT: Array
  return_BGT: Array
  success_BG: Array  # float32, how far each sample solves its problem.
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


def loss_fn(params, fixed, graphdef, batch: Batch, hyper, config):
  """The loss of one minibatch, with metrics: the weighted sum of its terms.

  Args:
    params: what is trained.
    fixed: the parameters that no update changes.
    graphdef: structure of the model.
    batch: samples and champions.
    hyper: scalars, `LearnerConfig.hyper`.
    config: which terms there are, and their forms.
  """
  model = nnx.merge(graphdef, merged_params(params, fixed.reference, config))
  total, metrics = jnp.float32(0.0), {}
  if config.loss.trains_on_samples:
    inputs = sample_inputs(model, fixed, graphdef, batch, hyper, config)
    total, metrics = loss_terms.add_up(
      config.loss.active("samples"), inputs, hyper
    )
    metrics["entropy"] = losses.masked_mean(
      inputs.entropy_BGT, batch.responses.chosen_BGT
    )
  if config.loss.distils:
    d = batch.distillation
    assert d is not None
    # What a champion teaches is how to answer, given that one does.
    read = reader(model.without(config.never), config)
    inputs = loss_terms.read_champions(
      read,
      scoring.hidden_states(model, d.prompts, d.tokens_CMT, config.prompt_form),
      d.tokens_CMT,
      d.used_CM,
      config.end_ids,
      d.environment_CMT,
      d.targets,
    )
    distilled, found = loss_terms.add_up(
      config.loss.active("champions"), inputs, hyper
    )
    total, metrics = total + distilled, metrics | found
  return total, {"loss": total, **metrics}


def reader(model, config: LearnerConfig):
  """`scoring.read_log_probs` of a model, at the samples' temperature."""
  return functools.partial(
    scoring.read_log_probs, model, temperature=config.rollout.temperature
  )


def sample_inputs(
  model, fixed, graphdef, batch: Batch, hyper, config: LearnerConfig
) -> loss_terms.SampleInputs:
  """What terms read of a minibatch's samples."""
  reference_model = nnx.merge(graphdef, fixed.reference)
  inputs = batch.prompts, batch.responses.tokens_BGT, config.prompt_form
  x_BGTD = scoring.hidden_states(model, *inputs)
  log_abstain_BGT, stopping, offered = None, None, config.abstention
  if config.answers and offered is not None:  # As they were sampled.
    log_abstain_BGT = reader(model, config)(
      lambda log_prob_XV: log_prob_XV[..., offered.mark], x_BGTD
    )
    stopping = losses.Stopping(
      offered.worth,
      config.loss.abstention_entropy,
      config.loss.abstention_patience,
    )
    model = model.without(config.never)
    reference_model = reference_model.without(config.never)

  def reference_states():
    if not config.loss.reads_reference:
      raise ValueError(
        "a term of the loss asks for kl_to_reference, whose forwards the "
        "ledger counts: make it a LossTerm(..., reads_reference=True)"
      )
    return scoring.hidden_states(reference_model, *inputs)

  return loss_terms.read_samples(
    reader(model, config),
    model,
    reference_model,
    x_BGTD,
    reference_states,
    config.rollout.temperature,
    log_abstain_BGT=log_abstain_BGT,
    stopping=stopping,
    responses=batch.responses,
    advantage_BGT=batch.advantage_BGT,
    return_BGT=batch.return_BGT,
    success_BG=batch.success_BG,
    policy=config.loss.policy,
    clips={name: hyper[name] for name in ("clip_low", "clip_high")},
  )


def update(
  graphdef,
  carry,
  fixed: FixedParams,
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
    fixed: the reference model among them.
    batch: what was sampled and searched.
    key: random key of the prompts' order, consumed.
    hyper: scalars, `LearnerConfig.hyper`.
    config: epochs, minibatches, terms of the loss.
    mesh: devices that every minibatch is split over.

  Returns:
    The new carry, and the metrics' means over the steps.
  """
  optimizer = make_optimizer(config)
  fixed = FixedParams(fixed.reference)  # The reward has done its part.
  steps = config.optimizer.minibatches

  def gradients(shared, minibatch):
    params, fixed, hyper = shared
    return jax.grad(loss_fn, has_aux=True)(
      params, fixed, graphdef, minibatch, hyper, config
    )

  def step(carry, minibatch):
    params, opt_state = carry
    grads, metrics = sharding.per_replica(gradients, mesh, config.mesh.gather)(
      (params, fixed, hyper), minibatch
    )
    metrics["grad_norm"] = optax.tree.norm(grads)
    change, opt_state = optimizer.update(grads, opt_state, params)
    change = jax.tree.map(lambda u: -hyper["learning_rate"] * u, change)
    return (optax.apply_updates(params, change), opt_state), metrics

  def shuffled(key, leaves):
    """Minibatches of whole prompts, all rows of one in one, at random."""
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
