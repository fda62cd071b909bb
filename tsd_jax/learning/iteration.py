"""The compiled iteration: search, rollouts, minibatched updates.

`make_train_loop` returns one jitted function that runs several iterations:
state in, state and stacked metrics out. Every method is this loop with parts
switched off (`config.search`, loss weights), so that a comparison differs in
the algorithm alone. Randomness is a function of (seed, iteration, prompt).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tsd_jax.base.ledger import Tokens
from tsd_jax.base.types import Array, Responses
from tsd_jax.inference import decode
from tsd_jax.inference.rollout import rollout
from tsd_jax.learning import advantages as advantages_lib
from tsd_jax.learning import losses
from tsd_jax.learning.methods import LearnerConfig
from tsd_jax.learning.objective import (
  Batch,
  DistillationBatch,
  make_optimizer,
  merged_params,
  update,
)
from tsd_jax.models import lora
from tsd_jax.parallel import sharding
from tsd_jax.search import champions as champions_lib
from tsd_jax.search import tree as tree_lib
from tsd_jax.search.metrics import search_metrics
from tsd_jax.tasks.task import Task, environment_tokens

_ADAPTERS = 2**31 - 1  # Folded into a run's key; iterations fold their number.


class TrainState(NamedTuple):
  """Everything that an iteration changes."""

  params: Any  # Of the whole model, or its adapters: see `merged_params`.
  opt_state: Any
  search_params: Any  # theta_s, the frozen search model; of its own shape, or
  # what `params` was.
  iteration: Array  # int32 scalar.


def init_state(
  config: LearnerConfig, params, seed: int = 0, search_params=None
) -> TrainState:
  """A state that starts from given parameters.

  Args:
    config: the run.
    params: of the whole model.
    seed: of adapters.
    search_params: of a search model of its own; the policy's by default.
  """
  if config.lora.rank:
    key = jax.random.fold_in(jax.random.key(seed), _ADAPTERS)
    params = lora.init(params, config.lora, key)
  return TrainState(
    params=params,
    opt_state=make_optimizer(config).init(params),
    search_params=jax.tree.map(
      jnp.copy, params if search_params is None else search_params
    ),
    iteration=jnp.int32(0),
  )


class Found(NamedTuple):
  """What the search brings home of S prompts; every leaf leads with S."""

  tokens_QMT: Array  # Champions, best first.
  used_QM: Array  # bool, whether they are distilled.
  success_prob_Q: (
    Array  # The search model's chance of success, as far as it is found.
  )
  targets: champions_lib.PathTargets | None  # At the first champion's states.


def search_phase(graphdef, params, task: Task, prompt_QP, key, config):
  """Searches with the frozen model, some trees at a time.

  Returns:
    What was found, token forwards below the prompts, metrics.
  """
  block = config.search.block(prompt_QP.shape[0])
  index_WB = sharding.prompt_indices(prompt_QP.shape[0]).reshape(-1, block)
  prompt_WBP = prompt_QP.reshape(-1, block, prompt_QP.shape[1])
  model = nnx.merge(graphdef, params)

  def search(inputs):
    prompt_BP, index_B = inputs
    prefix = decode.prefill(model, prompt_BP, *config.prompt_form)
    result = tree_lib.search(
      model, task, prompt_BP, prefix, key, config.search, index_B
    )
    best = champions_lib.champions(result.tree, config.loss.champions)
    greedy_B = champions_lib.greedy_reward(result.tree)
    used_BM = best.correct_BM
    if config.loss.champion_gate == "better":
      used_BM = best.valid_BM & (best.reward_BM > greedy_B[:, None])
    targets = None
    if config.loss.soft_weight > 0:
      targets = champions_lib.path_targets(
        result.tree,
        config.search.make_rule().improved(result.tree),
        best.node_BM[:, 0],
        min_visits=config.loss.soft_min_visits,
      )
    success_prob_B = champions_lib.success_prob(result.tree)
    reward = jnp.mean(best.reward_BM[:, 0])
    metrics = {
      "search_reward": reward,
      "search_gain": reward - jnp.mean(greedy_B),
      "search_correct": jnp.mean(best.correct_BM[:, 0].astype(jnp.float32)),
      "search_success_prob": jnp.mean(success_prob_B),
      "search_simulations": result.simulations,
      **search_metrics(result.tree, result.simulations),
    }
    found = Found(best.tokens_BMT, used_BM, success_prob_B, targets)
    return found, result.forwards, metrics

  found, forwards_W, metrics = jax.lax.map(search, (prompt_WBP, index_WB))
  found = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)
  return found, jnp.sum(forwards_W), jax.tree.map(jnp.mean, metrics)


def choose_distillation_batch(
  key, prompt_QP, found: Found, count: int
) -> DistillationBatch:
  """C of the Q searched prompts to distil: random ones that have a champion."""
  has_Q = jnp.any(found.used_QM, axis=1)
  rank_Q = has_Q + jax.random.uniform(key, has_Q.shape)
  _, row_C = jax.lax.top_k(rank_Q, count)
  return DistillationBatch(
    prompt_QP[row_C],
    found.tokens_QMT[row_C],
    found.used_QM[row_C],
    jax.tree.map(lambda a: a[row_C], found.targets),
  )


def choose_prompts(key, prompt_QP, found: Found, count: int) -> Array:
  """The B searched prompts on which a sample's outcome is least certain.

  Their chance of success p, as the tree found it, has the largest p (1 - p):
  there, samples differ in their reward and have something to teach.
  """
  spread_Q = found.success_prob_Q * (1.0 - found.success_prob_Q)
  ties_Q = 1e-6 * jax.random.uniform(key, spread_Q.shape)
  return prompt_QP[jax.lax.top_k(spread_Q + ties_Q, count)[1]]


def advantages(responses: Responses, config: LearnerConfig):
  """Advantages and value targets of sampled tokens."""
  r, c = responses, config.loss
  rewards_BGT = advantages_lib.terminal_reward(r.reward_BG, r.mask_BGT)
  gae_BGT, return_BGT = advantages_lib.gae(
    rewards_BGT,
    r.value_BGT,
    r.mask_BGT,
    discount=c.discount,
    lambda_=c.gae_lambda,
  )
  T = r.tokens_BGT.shape[-1]
  match c.advantage:
    case "tree":
      a_BGT = advantages_lib.tree_advantages(
        r.reward_BG, r.parent_BG, r.fork_BG, T, local_weight=c.local_weight
      )
    case "prefix":
      a_BGT = advantages_lib.prefix_advantages(
        r.reward_BG, r.tokens_BGT, local_weight=c.local_weight
      )
    case "group":
      a_BG = advantages_lib.group_advantages(r.reward_BG)
      a_BGT = jnp.broadcast_to(a_BG[..., None], r.mask_BGT.shape)
    case "gae":
      mean = losses.masked_mean(gae_BGT, r.chosen_BGT)
      variance = losses.masked_mean((gae_BGT - mean) ** 2, r.chosen_BGT)
      a_BGT = (gae_BGT - mean) / jnp.sqrt(variance + 1e-8)
  return jnp.where(r.chosen_BGT, a_BGT, 0.0), return_BGT


def best_samples(prompt_BP, responses: Responses, config: LearnerConfig):
  """What to distil of the policy's own samples, as rejection sampling does."""
  count = config.loss.champions
  reward_BM, row_BM = jax.lax.top_k(responses.reward_BG, count)
  tokens_BMT = jnp.take_along_axis(
    responses.tokens_BGT, row_BM[..., None], axis=1
  )
  same_BMM = jnp.all(tokens_BMT[:, :, None] == tokens_BMT[:, None], axis=-1)
  first_BM = ~jnp.any(jnp.tril(same_BMM, k=-1), axis=2)
  used_BM = jnp.take_along_axis(responses.correct_BG, row_BM, axis=1)
  if config.loss.champion_gate == "better":
    mean_B1 = jnp.mean(responses.reward_BG, axis=1, keepdims=True)
    used_BM = reward_BM > mean_B1
  return DistillationBatch(prompt_BP, tokens_BMT, first_BM & used_BM, None)


def make_train_loop(
  graphdef,
  task: Task,
  config: LearnerConfig,
  mesh: jax.sharding.Mesh | None = None,
  together: bool = False,
  search_graphdef=None,
):
  """Builds the compiled loop; equal programs are built and compiled once.

  Args:
    graphdef: structure of the model.
    task: prompts' rewards.
    config: sizes and switches; scalars that a sweep varies come in `hyper`.
    mesh: devices; None, or a mesh of one, leaves placement to the arguments.
    together: several runs at a time; all arguments and results lead with them.
    search_graphdef: structure of a search model of its own, which stays as it
      is; by default the search model is a snapshot of the policy.

  Returns:
    train_loop(state, prompt_IBP, reference, hyper, key) -> (state, metrics),
    with the state donated; metrics lead with C and contain `tokens`. The key is
    the run's own, the same in every call: an iteration folds its number in.
  """
  if mesh is not None and mesh.size == 1:
    mesh = None
  return _train_loop(
    graphdef, task, config.static, mesh, together, search_graphdef
  )


@functools.lru_cache(maxsize=64)
def _train_loop(
  graphdef, task: Task, config: LearnerConfig, mesh, together, search_graphdef
):
  B, G, T = config.rollout.prompts, config.rollout.group, task.response_length
  S = config.prompts

  def serving(params, graphdef=graphdef):
    dtype = nnx.merge(graphdef, params).dtype
    return sharding.serving_copy(params, dtype, mesh, config.mesh.serving)

  def per_shard(fn):
    return sharding.per_shard(fn, mesh, config.mesh.serving)

  def search_serving(params, reference):
    if search_graphdef is not None:
      return serving(params, search_graphdef)
    return serving(merged_params(params, reference, config))

  def sampling(params, prompt_BP, key):
    model = nnx.merge(graphdef, params)
    prefix = decode.prefill(model, prompt_BP, *config.prompt_form)
    responses, forwards = rollout(
      model, task, prompt_BP, prefix, key, config.rollout
    )
    return responses, forwards, {}

  def searching(params, prompt_QP, key):
    structure = graphdef if search_graphdef is None else search_graphdef
    return search_phase(structure, params, task, prompt_QP, key, config)

  def iteration(state: TrainState, prompt_QP, reference, hyper, key):
    key = jax.random.fold_in(key, state.iteration)
    search_key, distillation_key, choice_key, rollout_key, order_key = (
      jax.random.split(key, 5)
    )
    if config.decay_over:
      left = jnp.maximum(1.0 - state.iteration / hyper["decay_over"], 0.0)
      hyper = hyper | {"learning_rate": left * hyper["learning_rate"]}
    metrics, search_forwards = {}, jnp.int32(0)
    prefill = config.prompt_tokens(task, B)
    search_params = state.search_params
    if config.refresh_every:
      fresh = state.iteration % config.refresh_every == 0
      search_params = jax.tree.map(
        lambda new, old: jnp.where(fresh, new, old),
        state.params,
        search_params,
      )
    prompt_BP, distillation = prompt_QP[:B], None
    if config.searches:
      found, search_forwards, metrics = per_shard(searching)(
        search_serving(search_params, reference), prompt_QP, search_key
      )
      prefill += config.prompt_tokens(task, S, config.search_calls)
      distillation = choose_distillation_batch(
        distillation_key, prompt_QP, found, config.distilled_prompts
      )
      if config.rollout.choose == "uncertain":
        prompt_BP = choose_prompts(choice_key, prompt_QP, found, B)
    policy = serving(merged_params(state.params, reference, config))
    responses, rollout_forwards, _ = per_shard(sampling)(
      policy, prompt_BP, rollout_key
    )
    if config.loss.distils:
      if not config.searches:
        distillation = best_samples(prompt_BP, responses, config)
      distillation = distillation._replace(
        environment_CMT=environment_tokens(
          task, distillation.prompt_CP, distillation.tokens_CMT
        )
      )
    policy_reward_B = jnp.mean(responses.reward_BG, axis=1)
    advantage_BGT, return_BGT = advantages(responses, config)
    batch = Batch(prompt_BP, responses, advantage_BGT, return_BGT, distillation)

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
    update_tokens = config.optimizer.epochs * config.update_tokens(task)
    rescored = config.optimizer.epochs * (
      config.prompt_tokens(task, B, config.optimizer.minibatches)
      + B * G * (T - 1)
    )
    metrics |= update_metrics
    metrics |= {
      "reward": jnp.mean(policy_reward_B),
      "correct": jnp.mean(responses.correct_BG.astype(jnp.float32)),
      "response_length": jnp.sum(responses.tokens_BGT != task.pad_id) / (B * G),
      "tokens": Tokens(
        prefill=jnp.int32(prefill),
        search=search_forwards,
        rollout=rollout_forwards,
        rescore=jnp.int32(rescored if config.loss.kl_weight > 0 else 0),
        update=jnp.int32(update_tokens),
      ),
    }
    if config.loss.distils:
      metrics["champion_rate"] = jnp.mean(jnp.any(distillation.used_CM, axis=1))
    if config.searches:
      age = state.iteration
      if config.refresh_every:
        age %= config.refresh_every
      metrics["search_age"] = age.astype(jnp.float32)
    state = TrainState(params, opt_state, search_params, state.iteration + 1)
    return sharding.constrain(state, metrics, mesh)

  def train_loop(state, prompt_IQP, reference, hyper, key):
    return jax.lax.scan(
      lambda s, prompt_QP: iteration(s, prompt_QP, reference, hyper, key),
      state,
      prompt_IQP,
    )

  if together:
    train_loop = jax.vmap(train_loop)
  return jax.jit(train_loop, donate_argnums=0)
