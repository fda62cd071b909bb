"""The compiled iteration: search, rollouts, minibatched updates.

`make_train_chunk` returns one jitted function that runs several iterations:
state in, state and stacked metrics out. Every method is this loop with parts
switched off (`config.search`, loss weights), so that a comparison differs in
the algorithm alone. Randomness is a function of (seed, iteration, prompt).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from tsd_jax import decode, losses, returns, sharding
from tsd_jax.ledger import Tokens
from tsd_jax.methods import LearnerConfig
from tsd_jax.models.transformer import Segment
from tsd_jax.rollout import best_samples, rollout
from tsd_jax.search import champions as champions_lib
from tsd_jax.search import health
from tsd_jax.search import tree as tree_lib
from tsd_jax.tasks.task import Task
from tsd_jax.types import Array, Responses


class TrainState(NamedTuple):
  """Everything that an iteration changes."""

  params: Any
  opt_state: Any
  search_params: Any  # theta_s, the frozen search model.
  iteration: Array  # int32 scalar.


class Batch(NamedTuple):
  """What the loss sees of B prompts; every leaf leads with B."""

  prompt_BP: Array
  responses: Responses
  advantage_BGT: Array
  return_BGT: Array
  champion_BMT: Array | None  # None where nothing is distilled.
  champion_used_BM: Array | None  # bool, whether it is distilled.
  targets: champions_lib.PathTargets | None


def make_optimizer(config: LearnerConfig) -> optax.GradientTransformation:
  """Adam without a learning rate: that is an argument of the compiled loop."""
  o = config.optimizer
  return optax.chain(
    optax.clip_by_global_norm(o.max_grad_norm),
    optax.scale_by_adam(b1=o.b1, b2=o.b2, eps=o.eps),
  )


def init_state(config: LearnerConfig, params) -> TrainState:
  """A state that starts from given parameters, search model included."""
  return TrainState(
    params=params,
    opt_state=make_optimizer(config).init(params),
    search_params=jax.tree.map(jnp.copy, params),
    iteration=jnp.int32(0),
  )


def search_phase(graphdef, params, task: Task, prompt_BP, key, config):
  """Searches with the frozen model; returns champions, targets, metrics."""
  model = nnx.merge(graphdef, params)
  prefix = decode.prefill(model, prompt_BP)
  result = tree_lib.search(model, task, prompt_BP, prefix, key, config.search)
  best = champions_lib.champions(result.tree, config.loss.champions)
  targets = None
  if config.loss.soft_weight > 0:
    targets = champions_lib.path_targets(
      result.tree,
      config.search.make_rule().improved(result.tree),
      best.node_BM[:, 0],
      min_visits=config.loss.soft_min_visits,
    )
  metrics = {
    "search_reward": jnp.mean(best.reward_BM[:, 0]),
    "search_correct": jnp.mean(best.correct_BM[:, 0].astype(jnp.float32)),
    "search_simulations": result.simulations,
    **health.health(result.tree, result.simulations),
  }
  return best, targets, result.forwards, metrics


def advantages(responses: Responses, config: LearnerConfig):
  """Advantages and value targets of sampled tokens."""
  r, c = responses, config.loss
  rewards_BGT = returns.terminal_reward(r.reward_BG, r.mask_BGT)
  gae_BGT, return_BGT = returns.gae(
    rewards_BGT,
    r.value_BGT,
    r.mask_BGT,
    discount=c.discount,
    lambda_=c.gae_lambda,
  )
  T = r.tokens_BGT.shape[-1]
  match c.advantage:
    case "tree":
      a_BGT = returns.tree_advantages(
        r.reward_BG, r.parent_BG, r.fork_BG, T, local_weight=c.local_weight
      )
    case "group":
      a_BG = returns.group_advantages(r.reward_BG)
      a_BGT = jnp.broadcast_to(a_BG[..., None], r.mask_BGT.shape)
    case "gae":
      mean = losses.masked_mean(gae_BGT, r.mask_BGT)
      variance = losses.masked_mean((gae_BGT - mean) ** 2, r.mask_BGT)
      a_BGT = (gae_BGT - mean) / jnp.sqrt(variance + 1e-8)
  return jnp.where(r.mask_BGT, a_BGT, 0.0), return_BGT


def score_rows(model, prompt_BP, tokens_BGT, temperature):
  """Log pi, V_pi and V_search's logit before every token of given responses.

  The prompt is run once and shared by its rows, with gradients through it.
  """
  B, G, T = tokens_BGT.shape
  prefix = decode.prefill(model, prompt_BP)
  rows = decode.repeat_rows(prefix, G)
  positions_RT = rows.length_B[:, None] + jnp.arange(T - 1)[None]
  hidden = model.trunk(
    tokens_BGT.reshape(B * G, T)[:, :-1],
    positions_RT,
    segments=[Segment(rows.segment.kv, rows.segment.mask_RTS)],
  )
  x_RTD = jnp.concatenate([rows.x_BD[:, None], hidden.x_RTD], axis=1)
  x_BGTD = x_RTD.reshape(B, G, T, -1)
  log_prob_BGTV = jax.nn.log_softmax(model.logits(x_BGTD) / temperature)
  return log_prob_BGTV, *model.values(x_BGTD)


def loss_fn(params, reference, graphdef, batch: Batch, hyper, config):
  """The loss of one minibatch, with metrics.

  L = L_policy + l_hard CE(champion) + l_soft KL(target || pi)
      + c_v L_value + c_s L_success + beta KL(pi || ref) - c_e H
  """
  model = nnx.merge(graphdef, params)
  r, c = batch.responses, config.loss
  read = [r.tokens_BGT] if c.trains_on_samples else []
  read += [batch.champion_BMT] if c.distils else []
  tokens_BGT = jnp.concatenate(read, axis=1)
  scored = score_rows(
    model, batch.prompt_BP, tokens_BGT, config.rollout.temperature
  )
  chosen_BGT = jnp.take_along_axis(scored[0], tokens_BGT[..., None], axis=-1)[
    ..., 0
  ]
  G = r.tokens_BGT.shape[1] if c.trains_on_samples else 0
  total, metrics = jnp.float32(0.0), {}
  log_prob_BGTV, value_BGT, logit_BGT = (a[:, :G] for a in scored)
  if c.policy_weight > 0:
    clip = dict(clip_high=hyper["clip_high"])
    if c.policy == "ppo":
      policy_loss, clip["clip_low"] = losses.ppo, hyper["clip_low"]
    else:
      policy_loss = losses.cispo
    policy, metrics = policy_loss(
      chosen_BGT[:, :G], r.log_prob_BGT, batch.advantage_BGT, r.mask_BGT, **clip
    )
    metrics["policy_loss"] = policy
    total += hyper["policy_weight"] * policy
  if c.trains_on_samples:
    metrics["entropy"] = losses.entropy(log_prob_BGTV, r.mask_BGT)
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
  if c.distils:
    # A champion ends with its end token; nothing after it is learned.
    end_BMT = batch.champion_BMT == config.eos_id
    inside_BMT = jnp.cumsum(end_BMT, axis=2) - end_BMT == 0
    use_BMT = inside_BMT & batch.champion_used_BM[..., None]
    metrics["champion_ce"] = losses.cross_entropy(chosen_BGT[:, G:], use_BMT)
    total += hyper["champion_weight"] * metrics["champion_ce"]
  if c.soft_weight > 0:
    t = batch.targets
    metrics["soft_kl"] = losses.bucket_kl(
      scored[0][:, G],
      t.candidate_BTA,
      t.weight_BTA,
      t.mass_BT,
      t.mask_BT & use_BMT[:, 0],
    )
    total += hyper["soft_weight"] * metrics["soft_kl"]
  if c.kl_weight > 0:
    reference_BGTV = score_rows(
      nnx.merge(graphdef, reference),
      batch.prompt_BP,
      r.tokens_BGT,
      config.rollout.temperature,
    )[0]
    metrics["kl_reference"] = losses.kl_to_reference(
      log_prob_BGTV, jax.lax.stop_gradient(reference_BGTV), r.mask_BGT
    )
    total += hyper["kl_weight"] * metrics["kl_reference"]
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
    reference: parameters that the KL leash is tied to.
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

  def step(carry, minibatch):
    params, opt_state = carry
    grads, metrics = jax.grad(loss_fn, has_aux=True)(
      params, reference, graphdef, minibatch, hyper, config
    )
    metrics["grad_norm"] = optax.tree.norm(grads)
    change, opt_state = optimizer.update(grads, opt_state, params)
    change = jax.tree.map(lambda u: -hyper["learning_rate"] * u, change)
    return (optax.apply_updates(params, change), opt_state), metrics

  def epoch(carry, epoch_key):
    order_B = jax.random.permutation(epoch_key, batch.prompt_BP.shape[0])
    minibatches = jax.tree.map(
      lambda a: a[order_B].reshape(steps, -1, *a.shape[1:]), batch
    )
    minibatches = sharding.split_minibatches(minibatches, mesh)
    return jax.lax.scan(step, carry, minibatches)

  carry, metrics_EM = jax.lax.scan(
    epoch, carry, jax.random.split(key, config.optimizer.epochs)
  )
  return carry, jax.tree.map(jnp.mean, metrics_EM)


def make_train_chunk(
  graphdef,
  task: Task,
  config: LearnerConfig,
  mesh: jax.sharding.Mesh | None = None,
):
  """Builds the compiled loop; equal programs are built and compiled once.

  Args:
    graphdef: structure of the model.
    task: prompts' rewards.
    config: sizes and switches; scalars that a sweep varies come in `hyper`.
    mesh: devices; None, or a mesh of one, leaves placement to the arguments.

  Returns:
    train_chunk(state, prompt_CBP, reference, hyper, key) -> (state, metrics),
    with the state donated; metrics lead with C and contain `tokens`. The key is
    the run's own, the same in every call: an iteration folds its number in.
  """
  if mesh is not None and mesh.size == 1:
    mesh = None
  return _train_chunk(graphdef, task, config.static, mesh)


@functools.lru_cache(maxsize=64)
def _train_chunk(graphdef, task: Task, config: LearnerConfig, mesh):
  B, G, T = config.rollout.prompts, config.rollout.group, task.response_length
  P = task.prompt_length

  def serving(params):
    dtype = nnx.merge(graphdef, params).dtype
    return sharding.serving_copy(params, dtype, mesh)

  def sampling(params, prompt_BP, key):
    model = nnx.merge(graphdef, params)
    prefix = decode.prefill(model, prompt_BP)
    responses, forwards = rollout(
      model, task, prompt_BP, prefix, key, config.rollout
    )
    return responses, forwards, {}

  def searching(params, prompt_BP, key):
    best, targets, forwards, metrics = search_phase(
      graphdef, params, task, prompt_BP, key, config
    )
    return (best, targets), forwards, metrics

  def iteration(state: TrainState, prompt_BP, reference, hyper, key):
    key = jax.random.fold_in(key, state.iteration)
    search_key, rollout_key, order_key = jax.random.split(key, 3)
    metrics, targets, search_forwards = {}, None, jnp.int32(0)
    champion_BMT = use_BM = None
    prefill = jnp.int32(B * P)
    search_params = state.search_params
    if config.refresh_every:
      fresh = state.iteration % config.refresh_every == 0
      search_params = jax.tree.map(
        lambda new, old: jnp.where(fresh, new, old),
        state.params,
        search_params,
      )
    responses, rollout_forwards, _ = sharding.per_part(sampling, mesh)(
      serving(state.params), prompt_BP, rollout_key
    )
    if config.searches:
      (best, targets), search_forwards, metrics = sharding.per_part(
        searching, mesh
      )(serving(search_params), prompt_BP, search_key)
      prefill += B * P
      champion_BMT, champion_reward_BM, use_BM = best[:3]
    elif config.loss.distils:
      champion_BMT, champion_reward_BM, use_BM = best_samples(
        responses, config.loss.champions
      )
    policy_reward_B = jnp.mean(responses.reward_BG, axis=1)
    if config.loss.distils and config.loss.champion_gate == "better":
      use_BM = champion_reward_BM > policy_reward_B[:, None]
    advantage_BGT, return_BGT = advantages(responses, config)
    batch = Batch(
      prompt_BP,
      responses,
      advantage_BGT,
      return_BGT,
      champion_BMT,
      use_BM,
      targets,
    )

    (params, opt_state), update_metrics = update(
      graphdef,
      (state.params, state.opt_state),
      reference,
      batch,
      order_key,
      hyper,
      config,
      mesh,
    )
    update_tokens = (
      config.optimizer.epochs * B * (P + config.update_rows * (T - 1))
    )
    rescored = config.optimizer.epochs * B * (P + G * (T - 1))
    metrics |= update_metrics
    metrics |= {
      "reward": jnp.mean(policy_reward_B),
      "correct": jnp.mean(responses.correct_BG.astype(jnp.float32)),
      "response_length": jnp.sum(responses.tokens_BGT != task.pad_id) / (B * G),
      "tokens": Tokens(
        prefill=prefill,
        search=search_forwards,
        rollout=rollout_forwards,
        rescore=jnp.int32(rescored if config.loss.kl_weight > 0 else 0),
        update=jnp.int32(update_tokens),
      ),
    }
    if config.loss.distils:
      metrics["champion_rate"] = jnp.mean(jnp.any(use_BM, axis=1))
    if config.searches:
      age = state.iteration
      if config.refresh_every:
        age %= config.refresh_every
      metrics["search_age"] = age.astype(jnp.float32)
      metrics["search_gain"] = metrics["search_reward"] - metrics["reward"]
    state = TrainState(params, opt_state, search_params, state.iteration + 1)
    return sharding.constrain(state, metrics, mesh)

  def train_chunk(state, prompt_CBP, reference, hyper, key):
    return jax.lax.scan(
      lambda s, prompt_BP: iteration(s, prompt_BP, reference, hyper, key),
      state,
      prompt_CBP,
    )

  return jax.jit(train_chunk, donate_argnums=0)
