"""The compiled iteration: search, rollouts, minibatched updates.

`iteration` is one page: refresh the search model, search, choose what to distil
and where to sample, sample, update. `make_train_loop` returns one jitted
function that runs several: state in, state and stacked metrics out. Every
method is this loop with parts switched on or off (`config.searches`, loss
weights), so that compared methods differ in the algorithm alone. Randomness is
a function of (seed, iteration, place of a prompt in the iteration's batch);
Gumbel's noise also of the trees that grow beside it.

Axes: Q prompts of an iteration, `search.width` for each of the B that the
policy samples G rows on; M champions of a tree; C prompts whose champions are
distilled; T tokens of a response; W blocks of prompts that are searched one
after another.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tsd_jax.base.ledger import Tokens
from tsd_jax.base.types import Array, Prompts, Responses
from tsd_jax.learning import advantages, losses
from tsd_jax.learning.config import LearnerConfig
from tsd_jax.learning.update import (
  Batch,
  DistillationBatch,
  FixedParams,
  make_optimizer,
  merged_params,
  update,
)
from tsd_jax.models import lora
from tsd_jax.models.tokenizer import is_end, one_end
from tsd_jax.parallel import sharding
from tsd_jax.rewards.reward import Scorer
from tsd_jax.search import champions as champions_lib
from tsd_jax.search.metrics import search_metrics
from tsd_jax.search.search import search
from tsd_jax.tasks.task import Task, environment_tokens

_ADAPTERS = 2**31 - 1  # Folded into a run's key; iterations fold their number.


class TrainState(NamedTuple):
  """Everything that an iteration changes."""

  params: Any  # Of the whole model, or its adapters: see `merged_params`.
  opt_state: Any
  search_params: Any  # theta_s, the frozen search model: the policy's
  # parameters at the last refresh, or those of a model of its own.
  iteration: Array  # int32 scalar.


class Program(NamedTuple):
  """What an iteration is compiled for; hashable."""

  graphdef: Any  # Structure of the model.
  # Structure of a separate search model that is never refreshed; None: the
  # search model is a snapshot of the policy.
  search_graphdef: Any
  task: Task
  config: LearnerConfig
  mesh: jax.sharding.Mesh | None  # None leaves placement to the arguments.

  @property
  def layout(self) -> sharding.Layout:
    """Where prompts are searched and answered."""
    return sharding.Layout(self.mesh, self.config.mesh)

  def per_shard(self, fn):
    """`sharding.per_shard` on this mesh: a function of each device's prompts.

    Of (params, prompts, key) it gives results by prompt, which are joined,
    `Work`, which is summed, and metrics, which are averaged.
    """
    return self.layout.per_shard(fn)

  def served(self, params: Any, graphdef: Any) -> Any:
    """Parameters as search and rollouts read them."""
    return self.layout.served(graphdef, params)

  def scorer(self, params: Any) -> Scorer:
    """The task's reward with its parameters."""
    return Scorer(self.task.reward, self.task.end_ids, params)


class Found(NamedTuple):
  """What the trees of Q prompts teach; the first axis of each array is Q."""

  tokens_QMT: Array  # Champions, best first.
  used_QM: Array  # bool, whether they may be distilled.
  reward_QM: Array  # Theirs, from 0 to 1; 0 where there is no answer.
  # The search model's probability of the correct answers in the tree: 0 where
  # none was found.
  success_prob_Q: Array
  # At the states on the first champion's path, where the loss reads them
  # (`LossConfig.reads_paths`).
  targets: champions_lib.PathTargets | None


class Work(NamedTuple):
  """Compute that a phase has used; int32 scalars, summed over devices."""

  forwards: Array | int = 0  # Forwards of tokens that follow the prompts.
  scored: Array | int = 0  # Responses that the reward has scored.


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


def iteration(
  program: Program, state: TrainState, prompts: Prompts, fixed: FixedParams,
  hyper, key: Array,
):  # fmt: skip
  """One iteration.

  Args:
    program: structure, task, config, devices.
    state: before it.
    prompts: Q of them, B of which the policy samples on.
    fixed: parameters that stay: the reference model's, the reward's.
    hyper: scalars, `LearnerConfig.hyper`.
    key: the run's random key; the iteration folds its number in.

  Returns:
    The state after it, and metrics, `tokens` among them.
  """
  config, B = program.config, program.config.rollout.prompts
  key = jax.random.fold_in(key, state.iteration)
  search_key, distillation_key, choice_key, rollout_key, order_key = (
    jax.random.split(key, 5)
  )
  search_params = refreshed(config, state)
  rollout_prompts, distillation = prompts[:B], None
  searched, metrics = Work(), {}
  if config.searches:
    found, searched, metrics = search_phase(
      program, search_params, prompts, fixed, search_key
    )
    distillation = choose_distillation_batch(
      distillation_key, prompts, found, config
    )
    if config.rollout.choose == "uncertain":
      rollout_prompts = prompts[choose_prompts(choice_key, found, B)]
  responses, sampled, sample_metrics = sample_phase(
    program, state, rollout_prompts, fixed, rollout_key
  )
  metrics |= response_metrics(program, responses)
  if config.loss.distils and not config.searches:  # Rejection sampling.
    found = best_samples(program, responses)
    distillation = choose_distillation_batch(
      distillation_key, rollout_prompts, found, config
    )
  if config.trained_prompts < B:  # DAPO's dynamic sampling.
    group_key = jax.random.fold_in(choice_key, 1)
    rows_B = choose_groups(group_key, responses, config.trained_prompts)
    rollout_prompts = rollout_prompts[rows_B]
    responses = jax.tree.map(lambda a: a[rows_B], responses)
  batch = make_batch(program, rollout_prompts, responses, distillation)
  (params, opt_state), update_metrics = update(
    program.graphdef, (state.params, state.opt_state), fixed, batch, order_key,
    decayed(config, state, hyper), config, program.mesh,
  )  # fmt: skip
  metrics |= update_metrics | sample_metrics
  metrics |= iteration_metrics(config, state, batch)
  metrics["tokens"] = count_tokens(program, searched, sampled)
  state = TrainState(params, opt_state, search_params, state.iteration + 1)
  return sharding.constrain(state, metrics, program.mesh)


def refreshed(config: LearnerConfig, state: TrainState) -> Any:
  """theta_s: the policy's parameters every `refresh_every` iterations."""
  if not config.refresh_every:
    return state.search_params
  fresh = state.iteration % config.refresh_every == 0
  return jax.tree.map(
    lambda new, old: jnp.where(fresh, new, old),
    state.params,
    state.search_params,
  )


def decayed(config: LearnerConfig, state: TrainState, hyper):
  """The scalars, with the learning rate of this iteration."""
  if not config.decay_over:
    return hyper
  left = jnp.maximum(1.0 - state.iteration / hyper["decay_over"], 0.0)
  return hyper | {"learning_rate": left * hyper["learning_rate"]}


def search_phase(
  program: Program,
  search_params,
  prompts: Prompts,
  fixed: FixedParams,
  key: Array,
) -> tuple[Found, Work, dict[str, Array]]:
  """Searches all prompts with the search model, each device its own."""
  config, graphdef = program.config, program.search_graphdef
  if graphdef is None:
    graphdef = program.graphdef
    search_params = merged_params(search_params, fixed.reference, config)

  def searching(params, prompts, key):
    return search_shard(program, graphdef, params, prompts, key)

  params = program.served(search_params, graphdef), fixed.reward
  found, work, metrics = program.per_shard(searching)(params, prompts, key)
  means = metrics.pop("champions")  # Over all prompts, until here.
  rate = jnp.maximum(means.pop("used"), 1e-9)
  metrics |= {f"champion_{name}": mean / rate for name, mean in means.items()}
  return found, work, metrics


def search_shard(
  program: Program, graphdef, params, prompts: Prompts, key: Array
) -> tuple[Found, Work, dict[str, Array]]:
  """Searches a device's prompts, some trees at a time.

  Args:
    program: the search is that of its config.
    graphdef: structure of the search model.
    params: of the search model, and of the reward.
    prompts: of this device.
    key: random key, consumed.

  Returns:
    What was found, what it took, metrics.
  """
  config, (params, reward_params) = program.config, params
  scorer = program.scorer(reward_params)
  block = config.search.block(len(prompts))
  index_WB = sharding.prompt_indices(len(prompts)).reshape(-1, block)
  blocks = jax.tree.map(lambda a: a.reshape(-1, block, *a.shape[1:]), prompts)
  model = nnx.merge(graphdef, params).without(config.never)

  def search_block(inputs):
    prompts, index_B = inputs
    result = search(
      model, program.task, prompts, key, config.search, scorer=scorer,
      index_B=index_B,
    )  # fmt: skip
    found, metrics = read_trees(config, scorer, result.tree)
    metrics["search_simulations"] = result.simulations
    metrics |= search_metrics(result.tree, result.simulations)
    means, scored = champion_means(scorer, prompts, found)
    work = Work(result.forwards, result.scored + scored)
    return found, work, {**metrics, "champions": means}

  found, work_W, metrics = jax.lax.map(search_block, (blocks, index_WB))
  found = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)
  return (
    found,
    jax.tree.map(jnp.sum, work_W),
    jax.tree.map(jnp.mean, metrics),
  )


def read_trees(
  config: LearnerConfig, scorer: Scorer, tree
) -> tuple[Found, dict[str, Array]]:
  """What finished trees teach, with metrics."""
  best = champions_lib.champions(tree, config.loss.champions, config.end_ids)
  greedy_B = champions_lib.greedy_reward(tree)
  used_BM = best.valid_BM
  match config.loss.champion_gate:
    case "correct":
      used_BM = best.correct_BM
    case "better":
      margin = config.loss.champion_margin / scorer.span
      bar_B1 = greedy_B[:, None] + margin
      used_BM = best.valid_BM & (best.reward_BM > bar_B1)
  targets = None
  if config.loss.reads_paths:
    targets = champions_lib.path_targets(
      tree,
      config.search.rule.improved(tree),
      best.node_BM[:, 0],
      min_visits=config.loss.soft_min_visits,
    )
  success_prob_B = champions_lib.success_prob(
    tree, by_reward=not scorer.reward.knows_correct
  )
  reward = jnp.mean(best.reward_BM[:, 0])
  metrics = {
    "search_reward": scorer.from_unit(reward),
    "search_gain": (reward - jnp.mean(greedy_B)) * scorer.span,
    "search_correct": jnp.mean(best.correct_BM[:, 0].astype(jnp.float32)),
    "search_success_prob": jnp.mean(success_prob_B),
  }
  found = Found(
    best.tokens_BMT, used_BM, best.reward_BM, success_prob_B, targets
  )
  return found, metrics


def champion_means(
  scorer: Scorer, prompts: Prompts, found: Found
) -> tuple[dict[str, Array], int]:
  """What rewards made of parts, and a second verifier, say of champions.

  Args:
    scorer: of the task's reward.
    prompts: that were searched.
    found: their champions; the best of each is asked about.

  Returns:
    Means over all prompts, 0 where no champion may be distilled, and `used`,
    the share of those where one may; how many responses were scored for it,
    none where the reward has no parts.
  """
  used_Q = found.used_QM[:, 0]
  first_Q1T = found.tokens_QMT[:, :1]
  said, scored = {}, 0
  if jax.eval_shape(scorer, prompts, first_Q1T).parts:
    scored = len(prompts)
    parts = scorer(prompts, first_Q1T).parts
    said = {f"reward_{name}": x_Q1[:, 0] for name, x_Q1 in parts.items()}
  if (accepted_Q1 := scorer.accepted(prompts, first_Q1T)) is not None:
    said["accepted"] = accepted_Q1[:, 0]
  means = {
    name: jnp.mean(jnp.where(used_Q, x_Q, 0.0)) for name, x_Q in said.items()
  }
  return means | {"used": jnp.mean(used_Q.astype(jnp.float32))}, scored


def choose_distillation_batch(
  key: Array, prompts: Prompts, found: Found, config: LearnerConfig
) -> DistillationBatch:
  """C of the Q prompts to distil, at random of those that pass the gate.

  A prompt passes if one of its champions does. If fewer than C pass, the others
  are there and masked.
  """
  used_QM = found.used_QM
  if config.loss.champion_gate == "quantile":
    reward_QM = jnp.where(used_QM, found.reward_QM, jnp.nan)
    bar = jnp.nanquantile(reward_QM, config.loss.champion_quantile)
    above_QM = used_QM & (found.reward_QM > bar)
    # Where so many have the highest reward that none is above: those, unless
    # it is the least that there is.
    used_QM = jnp.where(
      jnp.any(above_QM),
      above_QM,
      used_QM & (found.reward_QM >= bar) & (found.reward_QM > 0.0),
    )
  has_Q = jnp.any(used_QM, axis=1)
  rank_Q = has_Q + jax.random.uniform(key, has_Q.shape)
  _, row_C = jax.lax.top_k(rank_Q, config.distilled_prompts)
  return DistillationBatch(
    prompts[row_C],
    found.tokens_QMT[row_C],
    used_QM[row_C],
    jax.tree.map(lambda a: a[row_C], found.targets),
  )


def choose_prompts(key: Array, found: Found, count: int) -> Array:
  """Indices of B searched prompts whose samples' outcome is least certain.

  Their success probability p, as the tree found it, has the largest p (1 - p):
  there, samples differ in their reward and have something to teach. Trees
  without a correct answer (p = 0) are among the last.
  """
  spread_Q = found.success_prob_Q * (1.0 - found.success_prob_Q)
  ties_Q = 1e-6 * jax.random.uniform(key, spread_Q.shape)
  return jax.lax.top_k(spread_Q + ties_Q, count)[1]


def sample_phase(
  program: Program, state: TrainState, prompts: Prompts, fixed: FixedParams,
  key: Array,
) -> tuple[Responses, Work, dict[str, Array]]:  # fmt: skip
  """The policy's responses, scored, each device its own prompts."""
  config, graphdef = program.config, program.graphdef

  def sampling(params, prompts, key):
    params, reward_params = params
    model = nnx.merge(graphdef, params)
    if config.answers:
      model = model.without(config.never)
    samples, forwards = config.rollout(model, program.task, prompts, key)
    scorer = program.scorer(reward_params)
    score = scorer(prompts, samples.tokens_BGT)
    responses = Responses(
      **samples._asdict(),
      reward_BG=score.reward_X,
      correct_BG=score.correct_X,
    )
    parts = {f"reward_{n}": jnp.mean(x) for n, x in score.parts.items()}
    accepted_BG = scorer.accepted(prompts, samples.tokens_BGT)
    if accepted_BG is not None:
      parts["accepted"] = jnp.mean(accepted_BG)
    scored = jnp.int32(score.reward_X.size)
    return responses, Work(forwards, scored), parts

  policy = merged_params(state.params, fixed.reference, config)
  params = program.served(policy, graphdef), fixed.reward
  return program.per_shard(sampling)(params, prompts, key)


def best_samples(program: Program, responses: Responses) -> Found:
  """What the policy's own samples teach, as rejection sampling has it."""
  config = program.config
  count, tokens_BGT = config.loss.champions, responses.tokens_BGT
  alike_BGT = one_end(tokens_BGT, config.end_ids)
  same_BGG = jnp.all(alike_BGT[:, :, None] == alike_BGT[:, None], axis=-1)
  # As in a tree: what has no end is no answer, whatever the reward says of it.
  ended_BG = jnp.any(is_end(tokens_BGT, config.end_ids), axis=2)
  left_out_BG = jnp.any(jnp.tril(same_BGG, k=-1), axis=2) | ~ended_BG
  if config.abstention is not None:  # A champion answers.
    left_out_BG |= config.abstention.said(tokens_BGT)
  ranked_BG = jnp.where(left_out_BG, -jnp.inf, responses.reward_BG)
  _, row_BM = jax.lax.top_k(ranked_BG, count)
  tokens_BMT = jnp.take_along_axis(tokens_BGT, row_BM[..., None], axis=1)
  reward_BM = jnp.take_along_axis(responses.reward_BG, row_BM, axis=1)
  used_BM = ~jnp.take_along_axis(left_out_BG, row_BM, axis=1)
  success_BG = successes(program, responses)
  match config.loss.champion_gate:
    case "correct":  # Which is known: `methods.resolve` sees to it.
      used_BM &= jnp.take_along_axis(success_BG, row_BM, axis=1) > 0
    case "better":
      # By how much, so that no rounding error makes equal ones better.
      ahead_BG = advantages.centred_advantages(responses.reward_BG)
      ahead_BM = jnp.take_along_axis(ahead_BG, row_BM, axis=1)
      used_BM &= ahead_BM > config.loss.champion_margin
  unit_BM = program.scorer(()).unit(reward_BM)
  return Found(tokens_BMT, used_BM, unit_BM, jnp.mean(success_BG, axis=1), None)


def choose_groups(key: Array, responses: Responses, count: int) -> Array:
  """Indices of sampled prompts, those whose samples' rewards differ first."""
  reward_BG = responses.reward_BG
  differ_B = jnp.max(reward_BG, axis=1) > jnp.min(reward_BG, axis=1)
  rank_B = differ_B + jax.random.uniform(key, differ_B.shape)
  return jax.lax.top_k(rank_B, count)[1]


def make_batch(
  program: Program,
  prompts: Prompts,
  responses: Responses,
  distillation: DistillationBatch | None,
) -> Batch:
  """What the loss reads: samples with advantages, champions with masks."""
  if distillation is not None:
    distillation = mark_environment(program, distillation)
  advantage_BGT, return_BGT = token_advantages(responses, program.config)
  return Batch(
    prompts=prompts,
    responses=responses,
    advantage_BGT=advantage_BGT,
    return_BGT=return_BGT,  # Targets of a value head: `loss.value_weight`.
    success_BG=successes(program, responses),  # Of V_search.
    distillation=distillation,
  )


def successes(program: Program, responses: Responses) -> Array:
  """What is correct, BG as 0 and 1; the reward where nobody knows."""
  if responses.correct_BG is not None:
    return responses.correct_BG.astype(jnp.float32)
  return program.scorer(()).unit(responses.reward_BG)


def mark_environment(
  program: Program, distillation: DistillationBatch
) -> DistillationBatch:
  """Champions with the tokens that the environment wrote in them.

  Each device asks for its own, for the environment may be on the host.
  """
  if program.task.observe is None:
    return distillation

  def asking(params, champions, key):
    del params, key
    prompts, tokens_CMT = champions
    return environment_tokens(program.task, prompts, tokens_CMT), (), ()

  champions = distillation.prompts, distillation.tokens_CMT
  environment_CMT, *_ = program.per_shard(asking)((), champions, ())
  return distillation._replace(environment_CMT=environment_CMT)


def token_advantages(
  responses: Responses, config: LearnerConfig
) -> tuple[Array, Array]:
  """Advantages and value targets of sampled tokens, BGT each."""
  r, c = responses, config.loss
  rewards_BGT = advantages.terminal_reward(r.reward_BG, r.mask_BGT)
  gae_BGT, return_BGT = advantages.gae(
    rewards_BGT,
    r.value_BGT,
    r.mask_BGT,
    discount=c.discount,
    lambda_=c.gae_lambda,
  )
  T, spread = r.tokens_BGT.shape[-1], {"epsilon": c.advantage_epsilon}
  local = spread | {"local_weight": c.local_weight}
  match c.advantage:
    case "tree":
      a_BGT = advantages.tree_advantages(
        r.reward_BG, r.parent_BG, r.fork_BG, T, **local
      )
    case "prefix":
      a_BGT = advantages.prefix_advantages(r.reward_BG, r.tokens_BGT, **local)
    case "group" | "centred":
      a_BG = advantages.centred_advantages(r.reward_BG)
      if c.advantage == "group":
        a_BG = advantages.group_advantages(r.reward_BG, **spread)
      a_BGT = jnp.broadcast_to(a_BG[..., None], r.mask_BGT.shape)
    case "gae":
      mean = losses.masked_mean(gae_BGT, r.chosen_BGT)
      variance = losses.masked_mean((gae_BGT - mean) ** 2, r.chosen_BGT)
      a_BGT = (gae_BGT - mean) / jnp.sqrt(variance + 1e-8)
  if c.advantage_clip:
    a_BGT = jnp.clip(a_BGT, -c.advantage_clip, c.advantage_clip)
  return jnp.where(r.chosen_BGT, a_BGT, 0.0), return_BGT


def response_metrics(
  program: Program, responses: Responses
) -> dict[str, Array]:
  """Metrics of an iteration's samples.

  Means over all rows, forks included, of the prompts that were chosen: with
  `rollout.choose=uncertain` they do not compare with a baseline's.
  """
  B, G = responses.reward_BG.shape
  tokens = jnp.sum(responses.tokens_BGT != program.task.pad_id)
  return {
    "reward": jnp.mean(jnp.mean(responses.reward_BG, axis=1)),
    "correct": jnp.mean(successes(program, responses)),
    "response_length": tokens / (B * G),
  }


def iteration_metrics(
  config: LearnerConfig, state: TrainState, batch: Batch
) -> dict[str, Array]:
  """Metrics of what an update reads, and of the search model's age."""
  metrics = {}
  if batch.distillation is not None:
    used_CM = batch.distillation.used_CM
    metrics["champion_rate"] = jnp.mean(jnp.any(used_CM, axis=1))
  if config.searches:
    age = state.iteration
    if config.refresh_every:
      age %= config.refresh_every
    metrics["search_age"] = age.astype(jnp.float32)
  return metrics


def count_tokens(program: Program, searched: Work, sampled: Work) -> Tokens:
  """Unweighted counts of an iteration.

  Of an update and of the reference model's forwards every position counts,
  padding and masked rows too. `Ledger` weights update tokens by 3, and adds the
  tokens that a reward model reads, from how often responses were judged.
  """
  config, task = program.config, program.task
  epochs = config.optimizer.epochs
  prefill = config.prompt_tokens(task, config.rollout.prompts)
  if config.searches:
    prefill += config.prompt_tokens(task, config.prompts, config.search_calls)
  return Tokens(
    prefill=jnp.int32(prefill),
    search=jnp.int32(searched.forwards),
    rollout=jnp.int32(sampled.forwards),
    rescore=jnp.int32(config.reference_tokens(task)),
    update=jnp.int32(epochs * config.update_tokens(task)),
    scored=jnp.int32(
      task.reward.judgements * (searched.scored + sampled.scored)
    ),
  )


def make_train_loop(
  graphdef,
  task: Task,
  config: LearnerConfig,
  mesh: jax.sharding.Mesh | None = None,
  vmapped: bool = False,
  search_graphdef=None,
):
  """Builds the compiled loop; equal programs are built and compiled once.

  Args:
    graphdef: structure of the model.
    task: prompts' rewards.
    config: sizes and switches; scalars that a sweep varies come in `hyper`.
    mesh: devices; None, or a mesh of one, leaves placement to the arguments.
    vmapped: several runs at a time; all arguments and results lead with them.
    search_graphdef: structure of a search model of its own, which stays as it
      is; by default the search model is a snapshot of the policy.

  Returns:
    train_loop(state, prompts, fixed, hyper, key) -> (state, metrics), with the
    state donated; leaves of the prompts lead with I and Q, metrics with I, and
    contain `tokens`. The key is the run's own, the same in every call.
  """
  mesh = sharding.Layout.of(mesh, config.mesh).mesh
  program = Program(graphdef, search_graphdef, task, config.static, mesh)
  return _train_loop(program, vmapped)


@functools.lru_cache(maxsize=64)
def _train_loop(program: Program, vmapped: bool):
  def train_loop(state, prompts, fixed, hyper, key):
    return jax.lax.scan(
      lambda s, batch: iteration(program, s, batch, fixed, hyper, key),
      state,
      prompts,
    )

  if vmapped:
    train_loop = jax.vmap(train_loop)
  return jax.jit(train_loop, donate_argnums=0)
