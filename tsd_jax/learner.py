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
from flax import nnx

from tsd_jax import decode, losses, returns
from tsd_jax.ledger import Tokens
from tsd_jax.methods import LearnerConfig
from tsd_jax.objective import Batch, Lessons, make_optimizer, update
from tsd_jax.rollout import rollout
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


def init_state(config: LearnerConfig, params) -> TrainState:
  """A state that starts from given parameters, search model included."""
  return TrainState(
    params=params,
    opt_state=make_optimizer(config).init(params),
    search_params=jax.tree.map(jnp.copy, params),
    iteration=jnp.int32(0),
  )


def choose_lessons(key, prompt_SP, found, config: LearnerConfig):
  """C of the S searched prompts, those with a champion first."""
  best = found.champions
  used_SM = best.correct_BM
  rank_S = jnp.any(used_SM, axis=1) + jax.random.uniform(key, used_SM.shape[:1])
  _, row_C = jax.lax.top_k(rank_S, config.lessons)
  targets = jax.tree.map(lambda a: a[row_C], found.targets)
  return Lessons(
    prompt_SP[row_C],
    best.tokens_BMT[row_C],
    used_SM[row_C],
    best.valid_BM[row_C],
    found.success_SMT[row_C],
    targets,
  ), row_C


class Found(NamedTuple):
  """What the search brings home of S prompts; every leaf leads with S."""

  champions: champions_lib.Champions
  targets: champions_lib.PathTargets | None
  success_SMT: Array  # V_search's targets at the champions' states.
  mass_S: Array  # Policy's probability of all correct answers in the tree.


def search_phase(graphdef, params, task: Task, prompt_SP, key, config):
  """Searches with the frozen model, a block of prompts after the other.

  Returns:
    What was found, token forwards below the prompts, metrics.
  """
  block = config.rollout.prompts
  prompt_WBP = prompt_SP.reshape(-1, block, prompt_SP.shape[1])
  keys_W = jax.random.split(key, prompt_WBP.shape[0])

  def search(inputs):
    prompt_BP, key = inputs
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
    mass_B = champions_lib.success_mass(result.tree)
    success_BMT = champions_lib.success_below(result.tree, best.tokens_BMT)
    return Found(best, targets, success_BMT, mass_B), result.forwards, metrics

  found, forwards_W, metrics = jax.lax.map(search, (prompt_WBP, keys_W))
  found = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)
  return found, jnp.sum(forwards_W), jax.tree.map(jnp.mean, metrics)


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


def best_samples(responses: Responses, count: int):
  """The best distinct responses of a prompt, as rejection sampling keeps them.

  Args:
    responses: on-policy samples.
    count: M.

  Returns:
    tokens_BMT, reward_BM, correct_BM; a repetition is never correct and has
    reward 0.
  """
  reward_BM, row_BM = jax.lax.top_k(responses.reward_BG, count)
  tokens_BMT = jnp.take_along_axis(
    responses.tokens_BGT, row_BM[..., None], axis=1
  )
  same_BMM = jnp.all(tokens_BMT[:, :, None] == tokens_BMT[:, None], axis=-1)
  first_BM = ~jnp.any(jnp.tril(same_BMM, k=-1), axis=2)
  correct_BM = jnp.take_along_axis(responses.correct_BG, row_BM, axis=1)
  return tokens_BMT, first_BM * reward_BM, first_BM & correct_BM


def make_train_chunk(graphdef, task: Task, config: LearnerConfig):
  """Builds the compiled loop; equal programs are built and compiled once.

  Args:
    graphdef: structure of the model.
    task: prompts' rewards.
    config: sizes and switches; scalars that a sweep varies come in `hyper`.

  Returns:
    train_chunk(state, prompt_CBP, reference, hyper, key) -> (state, metrics),
    with the state donated; metrics lead with C and contain `tokens`. The key is
    the run's own, the same in every call: an iteration folds its number in.
  """
  return _train_chunk(graphdef, task, config.static)


@functools.lru_cache(maxsize=64)
def _train_chunk(graphdef, task: Task, config: LearnerConfig):
  B, G, T = config.rollout.prompts, config.rollout.group, task.response_length
  P, S, C = task.prompt_length, config.prompts, config.lessons

  def iteration(state: TrainState, prompt_SP, reference, hyper, key):
    key = jax.random.fold_in(key, state.iteration)
    search_key, lesson_key, where_key, rollout_key, order_key = (
      jax.random.split(key, 5)
    )
    metrics, search_forwards = {}, jnp.int32(0)
    prefill = jnp.int32(B * P)
    search_params = state.search_params
    if config.refresh_every:
      fresh = state.iteration % config.refresh_every == 0
      search_params = jax.tree.map(
        lambda new, old: jnp.where(fresh, new, old),
        state.params,
        search_params,
      )
    prompt_BP, lessons = prompt_SP[:B], None
    if config.searches:
      found, search_forwards, metrics = search_phase(
        graphdef, search_params, task, prompt_SP, search_key, config
      )
      prefill += S * P
      lessons, _ = choose_lessons(lesson_key, prompt_SP, found, config)
      if config.rollout.where == "learnable":
        value_S = found.mass_S * (1.0 - found.mass_S)
        value_S += 1e-6 * jax.random.uniform(where_key, (S,))
        prompt_BP = prompt_SP[jax.lax.top_k(value_S, B)[1]]
    model = nnx.merge(graphdef, state.params)
    responses, rollout_forwards = rollout(
      model,
      task,
      prompt_BP,
      decode.prefill(model, prompt_BP),
      rollout_key,
      config.rollout,
    )
    if config.loss.distils and not config.searches:
      tokens_BMT, _, correct_BM = best_samples(responses, config.loss.champions)
      lessons = Lessons(
        prompt_BP,
        tokens_BMT,
        correct_BM,
        correct_BM,
        jnp.zeros(tokens_BMT.shape),
        None,
      )
    policy_reward_B = jnp.mean(responses.reward_BG, axis=1)
    advantage_BGT, return_BGT = advantages(responses, config)
    batch = Batch(prompt_BP, responses, advantage_BGT, return_BGT, lessons)

    (params, opt_state), update_metrics = update(
      graphdef,
      (state.params, state.opt_state),
      reference,
      batch,
      order_key,
      hyper,
      config,
    )
    update_tokens = config.optimizer.epochs * config.update_tokens(P, T)
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
      metrics["champion_rate"] = jnp.mean(jnp.any(lessons.used_CM, axis=1))
    if config.searches:
      age = state.iteration
      if config.refresh_every:
        age %= config.refresh_every
      metrics["search_age"] = age.astype(jnp.float32)
      metrics["search_gain"] = metrics["search_reward"] - metrics["reward"]
    state = TrainState(params, opt_state, search_params, state.iteration + 1)
    return state, metrics

  def train_chunk(state, prompt_CSP, reference, hyper, key):
    return jax.lax.scan(
      lambda s, prompt_SP: iteration(s, prompt_SP, reference, hyper, key),
      state,
      prompt_CSP,
    )

  return jax.jit(train_chunk, donate_argnums=0)
