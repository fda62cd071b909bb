"""An environment that writes into responses, against a replay in Python."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import search_test
from tests.flat_search import flat_search
from tests.noisy import add_noise
from tests.search_test import EOS, PAD, PROMPTS, B, Hash, next_log_prob, tried
from tsd_jax.base.types import LOG_ZERO, UNVISITED, Responses
from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.learning import iteration, losses, methods, update
from tsd_jax.learning.config import LossConfig, OptimizerConfig
from tsd_jax.rewards.reward import Score
from tsd_jax.run import evaluation
from tsd_jax.search import champions as champions_lib
from tsd_jax.search import search as search_lib
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.task import as_prompts, environment_tokens

T, CALL, BYE = 5, 3, 7
FULL = sum(3**depth for depth in range(1, T))  # Nodes of an exhausted tree.


@dataclasses.dataclass(frozen=True)
class Turns(Hash):
  """A token is answered with two others, and one with the end."""

  response_length, step_end_ids = T, (CALL,)
  observation_length = 1

  def observe(self, prompts, response_XT, length_X):
    """As `environment` says."""

    def back(n):
      at_X1 = jnp.maximum(length_X - n, 0)[..., None]
      token_X = jnp.take_along_axis(response_XT, at_X1, axis=-1)[..., 0]
      return jnp.where(length_X >= n, token_X, -1)

    before_XT = jnp.arange(T) < length_X[..., None]
    sum_X = jnp.sum(prompts.tokens_BP, axis=-1)
    sum_X += jnp.sum(jnp.where(before_XT, response_XT, 0), axis=-1)
    token_X = jnp.select(
      [back(1) == CALL, back(2) == CALL, back(1) == BYE],
      [sum_X % 3, 5, EOS],
      -1,
    )
    return token_X[..., None], (token_X >= 0).astype(jnp.int32)

  def score(self, prompt_XP, response_XT):
    """Reward in [0, 1] of finished responses; two thirds are correct."""
    mixed_X = jnp.sum(response_XT * jnp.array([7, 13, 29, 31, 5]), axis=-1)
    mixed_X += jnp.sum(prompt_XP * jnp.array([3, 5, 11]), axis=-1)
    finished_X = jnp.any(response_XT == EOS, axis=-1)
    reward_X = jnp.where(finished_X, (mixed_X * 37 % 97) / 96.0, 0.0)
    return Score(reward_X, finished_X & (reward_X > 1 / 3))


TASK = Turns()
ASKED = as_prompts(TASK, PROMPTS)


def environment(row, tokens):
  """What is written after some tokens of a response; None: nothing."""
  if tokens and tokens[-1] == CALL:
    return (int(PROMPTS[row].sum()) + sum(tokens)) % 3
  if len(tokens) > 1 and tokens[-2] == CALL:
    return 5
  return EOS if tokens and tokens[-1] == BYE else None


def listed(tokens):
  """Python integers up to the end token."""
  tokens = [int(token) for token in tokens]
  return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens


def replay(row, tokens):
  """Checks what the environment wrote; which tokens are the model's."""
  written = [environment(row, tokens[:t]) for t in range(len(tokens))]
  for token, expected in zip(tokens, written, strict=True):
    assert expected is None or token == expected
  return [expected is None for expected in written]


def log_probs(row, tokens, temperature=1.0):
  """Log pi of every token by plain full forwards, and the entropies."""
  found = []
  for t, token in enumerate(tokens):
    scaled_V = next_log_prob((*map(int, PROMPTS[row]), *tokens[:t]))[0]
    scaled_V = scaled_V / temperature
    log_prob_V = scaled_V - np.log(np.exp(scaled_V).sum())
    found.append((log_prob_V[token], -(np.exp(log_prob_V) * log_prob_V).sum()))
  return np.array(found).T


SAMPLES = RolloutConfig(prompts=B, samples=6, forks=3, temperature=1.5)


@functools.cache
def sampled():
  @jax.jit
  def draw(prompts):
    model, key = search_test.model(), jax.random.key(1)
    samples, _ = SAMPLES(model, TASK, prompts, key)
    score = iteration.Scorer(TASK.reward, (EOS,))(prompts, samples.tokens_BGT)
    return Responses(
      **samples._asdict(), reward_BG=score.reward_X, correct_BG=score.correct_X
    )

  return jax.device_get(draw(ASKED))


def test_samples_hold_what_the_environment_writes_and_the_models_choices():
  r, lengths, both = sampled(), set(), np.zeros(2, int)
  assert r.environment_BGT.dtype == bool
  for b in range(B):
    for g in range(SAMPLES.group):
      tokens, shared = listed(r.tokens_BGT[b, g]), int(r.fork_BG[b, g])
      own = replay(b, tokens)
      n = len(tokens)
      lengths.add(n)
      assert np.all(r.tokens_BGT[b, g, n:] == PAD)
      np.testing.assert_array_equal(r.environment_BGT[b, g, :n], np.invert(own))
      inside = np.arange(T) < n
      np.testing.assert_array_equal(
        r.mask_BGT[b, g], inside & (np.arange(T) >= shared)
      )
      counts = np.flatnonzero(own)[np.flatnonzero(own) >= shared]
      both += len(counts), n - shared - len(counts)
      np.testing.assert_array_equal(np.flatnonzero(r.chosen_BGT[b, g]), counts)
      expected = np.zeros((2, T))
      expected[:, counts] = log_probs(b, tokens, 1.5)[:, counts]
      np.testing.assert_allclose(r.log_prob_BGT[b, g], expected[0], atol=1e-4)
      np.testing.assert_allclose(r.entropy_BGT[b, g], expected[1], atol=1e-4)
      if shared and shared < n:
        # A fork leaves its parent where the parent chose.
        assert own[shared] and r.chosen_BGT[b, r.parent_BG[b, g], shared]
  assert both.min() > 30 and len(lengths) > 3


def test_greedy_answers_are_an_argmax_loop_with_its_turns():
  model = nnx.split(search_test.model())
  tokens_B1T, reward_B1, *_ = evaluation.draw(
    *model, TASK, ASKED, jax.random.key(0), 1.0, samples=0
  )
  answered = 0
  for row in range(B):
    tokens = []
    while len(tokens) < T and EOS not in tokens:
      log_prob_V, _ = next_log_prob((*map(int, PROMPTS[row]), *tokens))
      written = environment(row, tokens)
      answered += written is not None
      tokens.append(int(log_prob_V.argmax()) if written is None else written)
    assert listed(tokens_B1T[row, 0]) == tokens
    score = TASK.score(PROMPTS[row], tokens_B1T[row, 0])
    assert reward_B1[row, 0] == pytest.approx(float(score.reward_X))
  assert answered


TOKENS, STEPS = dict(step_tokens=1), dict(step_tokens=3)
SEARCHES = [
  dict(rule="best_first", num_simulations=FULL, **TOKENS),
  *(
    pytest.param(settings, marks=pytest.mark.slow)
    for settings in (
      dict(rule="best_first", leaf="mix", **STEPS),
      dict(rule="gumbel", leaf="value", **TOKENS),
      dict(rule="puct", leaf="rollout", **TOKENS),
      dict(rule="best_first", **STEPS),
      dict(rule="puct", leaf="rollout", **STEPS),
      dict(rule="gumbel", leaf="value", **STEPS),
    )
  ),
]


@functools.partial(jax.jit, static_argnums=1)
def _search(prompts, config):
  model, key = search_test.model(), jax.random.key(0)
  tree = search_lib.search(model, TASK, prompts, key, config).tree
  return tree, champions_lib.success_prob(tree)


@functools.cache
def _searched(settings):
  config = flat_search(
    **{"num_simulations": 30, "num_candidates": 3, "stop_when_solved": False}
    | dict(settings)
  )
  return jax.device_get(_search(ASKED, config))


def searched(**settings):
  return _searched(tuple(settings.items()))


@pytest.mark.parametrize("settings", SEARCHES, ids=lambda s: f"{s}")
def test_trees_replay_and_branch_only_where_the_model_chooses(settings):
  tree, _ = searched(**settings)
  nodes, certain = tree.embeddings, 0
  for row in range(B):
    for parent, action, child in tried(tree, row):
      if nodes.finished[row, parent] or nodes.cut_off[row, parent]:
        continue
      depth = nodes.depth[row, parent]
      path = listed(nodes.path_tokens[row, child][: nodes.depth[row, child]])
      own = replay(row, path)
      log_prob_T = np.where(own, log_probs(row, path)[0], 0.0)
      assert nodes.log_prob_A[row, parent, action] == pytest.approx(
        log_prob_T[depth:].sum(), abs=1e-4
      )
      assert nodes.path_log_prob[row, child] == pytest.approx(
        log_prob_T.sum(), abs=1e-4
      )
      if not any(own[depth:]):
        certain += 1
        assert action == 0 and nodes.log_prob_A[row, parent, 0] == 0
        assert np.all(tree.children_index[row, parent, 1:] == UNVISITED)
        assert np.all(nodes.prior_A[row, parent, 1:] <= LOG_ZERO)
        assert nodes.log_prob_gap[row, child] == nodes.log_prob_gap[row, parent]
  assert certain


@pytest.mark.parametrize("settings", SEARCHES, ids=lambda s: f"{s}")
def test_answers_of_trees_replay_and_cost_what_the_model_chose(settings):
  nodes = searched(**settings)[0].embeddings
  written = 0
  found = np.argwhere(nodes.has_answer)
  assert len(found) > B
  for row, n in found:
    answer = listed(nodes.answer_tokens[row, n])
    own = replay(row, answer)
    written += len(own) - sum(own)
    assert answer[-1] == EOS
    score = TASK.score(PROMPTS[row], nodes.answer_tokens[row, n])
    assert nodes.reward[row, n] == pytest.approx(float(score.reward_X))
    assert nodes.answer_log_prob[row, n] == pytest.approx(
      np.where(own, log_probs(row, answer)[0], 0.0).sum(), abs=1e-4
    )
  assert written


def reachable(row, prefix=(), chance=1.0):
  """Every answer through the three likeliest choices, and its probability."""
  written = environment(row, list(prefix))
  p_V = np.exp(next_log_prob((*map(int, PROMPTS[row]), *prefix))[0])
  offered = np.argsort(-p_V)[:3] if written is None else [written]
  for token in map(int, offered):
    path, p = (*prefix, token), chance * (p_V[token] if written is None else 1)
    if token == EOS:
      yield path, p
    elif len(path) < T:
      yield from reachable(row, path, p)


def test_an_exhausted_tree_holds_every_answer_once():
  tree, success_prob_B = searched(**SEARCHES[0])
  nodes = tree.embeddings
  for row in range(B):
    expected = dict(reachable(row))
    held = [
      tuple(listed(nodes.answer_tokens[row, n]))
      for n in np.flatnonzero(nodes.has_answer[row])
    ]
    assert len(held) == len(set(held)) and set(held) == set(expected)
    solved = [
      p
      for path, p in expected.items()
      if TASK.score(
        PROMPTS[row], jnp.array([*path, *[PAD] * (T - len(path))])
      ).correct_X
    ]
    assert success_prob_B[row] == pytest.approx(sum(solved), abs=1e-5)


def test_given_responses_are_told_apart_without_sampling_them_again():
  r = sampled()
  again_BGT = jax.jit(functools.partial(environment_tokens, TASK))(
    ASKED, r.tokens_BGT
  )
  inside_BGT = r.tokens_BGT != PAD
  np.testing.assert_array_equal(
    again_BGT & inside_BGT, r.environment_BGT & inside_BGT
  )
  assert environment_tokens(Hash(), ASKED, r.tokens_BGT) is None


LOSS = LossConfig(
  distilled_prompts=B, champions=2, value_weight=0.5,
  success_weight=0.3, kl_weight=0.2,
  entropy_weight=0.1, soft_weight=0.7, champion_weight=2.0,
)  # fmt: skip


def configure():
  return methods.resolve(
    "tsd", TASK, rollout=SAMPLES, loss=LOSS, refresh_every=1, iterations=1,
    search=SearchConfig(num_simulations=30, num_candidates=3, width=1),
    optimizer=OptimizerConfig(minibatches=1),
  )  # fmt: skip


def batch(config):
  """Samples and the champions of a tree, as an iteration puts them together."""
  tree = jax.tree.map(jnp.asarray, searched(**SEARCHES[0])[0])
  improved_BNA = config.search.rule.improved(tree)
  best = search_test.best_answers(tree, 2)
  targets = search_test.targets_of(tree, improved_BNA, best.node_BM[:, 0])
  distillation = update.DistillationBatch(
    ASKED, best.tokens_BMT, best.valid_BM, targets,
    environment_tokens(TASK, ASKED, best.tokens_BMT),
  )  # fmt: skip
  r = sampled()
  advantages = iteration.token_advantages(r, config)
  success_BG = jnp.asarray(r.correct_BG, jnp.float32)
  return update.Batch(ASKED, r, *advantages, success_BG, distillation)


def by_hand(params, reference, graphdef, batch, hyper):
  """The loss as sums over lists of tokens that a replay in Python makes."""
  r, model = batch.responses, nnx.merge(graphdef, params)

  def rows(tokens_RT, model, temperature):
    """Log pi over the vocabulary, V_pi and V_search's logit, before a token."""
    prompt_RP = np.repeat(PROMPTS, len(tokens_RT) // B, axis=0)
    whole_RS = jnp.concatenate([prompt_RP, tokens_RT], axis=1)[:, :-1]
    positions_1S = jnp.arange(whole_RS.shape[1])[None]
    x_RSD = model.trunk(whole_RS, positions_1S).x_RTD
    x_RTD = x_RSD[:, PROMPTS.shape[1] - 1 :]
    logits_RTV = model.logits(x_RTD) / temperature
    return jax.nn.log_softmax(logits_RTV), *model.values(x_RTD)

  tokens_RT = np.asarray(r.tokens_BGT).reshape(-1, T)
  choices, states = [], []
  for i, tokens in enumerate(map(listed, tokens_RT)):
    own = replay(i // SAMPLES.group, tokens)
    start = r.fork_BG.reshape(-1)[i]
    states += [(i, t) for t in range(start, len(own))]
    choices += [(i, t) for t in range(start, len(own)) if own[t]]
  chosen, state = (tuple(np.array(a).T) for a in (choices, states))
  flat = {
    name: a.reshape(-1, T)[chosen]
    for name, a in dict(
      mu=r.log_prob_BGT, advantage=batch.advantage_BGT, token=tokens_RT
    ).items()
  }
  log_prob_RTV, value_RT, logit_RT = rows(tokens_RT, model, 1.5)
  log_prob_NV = log_prob_RTV[chosen]
  p_NV = jnp.exp(log_prob_NV)
  reference_NV = rows(tokens_RT, nnx.merge(graphdef, reference), 1.5)[0][chosen]
  index_N = jnp.arange(len(choices))
  ratio_N = jnp.exp(log_prob_NV[index_N, flat["token"]] - flat["mu"])
  clipped_N = jnp.clip(ratio_N, 0.8, 1.2)
  gain_N = jnp.minimum(
    ratio_N * flat["advantage"], clipped_N * flat["advantage"]
  )
  entropy = -(p_NV * log_prob_NV).sum(-1).mean()
  kl = (p_NV * (log_prob_NV - reference_NV)).sum(-1).mean()
  error_S = value_RT[state] - batch.return_BGT.reshape(-1, T)[state]
  success_S = jnp.asarray(r.correct_BG.reshape(-1)[state[0]], jnp.float32)
  bce_S = jnp.logaddexp(0.0, logit_RT[state]) - success_S * logit_RT[state]

  distillation = batch.distillation
  taught_RT = np.asarray(distillation.tokens_CMT).reshape(-1, T)
  picked, soft = [], []
  for i, tokens in enumerate(map(listed, taught_RT)):
    if distillation.used_CM.reshape(-1)[i]:
      for t, own in enumerate(replay(i // 2, tokens)):
        picked += [(i, t, tokens[t])] * own
        if own and i % 2 == 0 and distillation.targets.mask_BT[i // 2, t]:
          soft.append((i, t))
  taught_RTV = rows(taught_RT, model, 1.5)[0]
  ce = -taught_RTV[tuple(np.array(picked).T)].mean()
  i_S, t_S = np.array(soft).T
  target = jax.tree.map(lambda a: a[i_S // 2, t_S], distillation.targets)
  soft_kl = losses.bucket_kl(
    jnp.take_along_axis(taught_RTV[i_S, t_S], target.candidate_BTA, axis=-1),
    target.weight_BTA, target.mass_BT, jnp.ones(len(soft), bool),
  )  # fmt: skip
  return (
    hyper["policy_weight"] * -gain_N.mean()
    + hyper["champion_weight"] * ce
    + hyper["soft_weight"] * soft_kl
    + hyper["value_weight"] * 0.5 * (error_S**2).mean()
    + hyper["success_weight"] * bce_S.mean()
    + hyper["kl_weight"] * kl
    - hyper["entropy_weight"] * entropy
  )


def test_losses_and_their_gradients_leave_out_what_the_environment_wrote():
  config = configure()
  made = jax.device_get(batch(config))
  r, distillation = made.responses, made.distillation
  assert np.any(distillation.environment_CMT & (distillation.tokens_CMT != PAD))
  graphdef, reference = nnx.split(search_test.model())
  params = add_noise(reference, scale=0.05, seed=6)  # No longer on policy.
  hyper = {name: jnp.float32(x) for name, x in config.hyper.items()}

  @jax.jit
  def theirs(params, made):
    return jax.value_and_grad(
      lambda p: update.loss_fn(
        p, update.FixedParams(reference), graphdef, made, hyper, config
      )[0]
    )(params)

  got, got_grads = theirs(params, made)
  expected, grads = jax.jit(
    jax.value_and_grad(lambda p: by_hand(p, reference, graphdef, made, hyper))
  )(params)
  assert float(got) == pytest.approx(float(expected), rel=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-3),
    got_grads, grads,
  )  # fmt: skip
  # The test can tell: the same batch as if the model had chosen everything.
  blind = made._replace(
    responses=r._replace(environment_BGT=np.zeros_like(r.environment_BGT)),
    distillation=distillation._replace(
      environment_CMT=np.zeros_like(distillation.environment_CMT)
    ),
  )
  assert abs(float(theirs(params, blind)[0]) - float(expected)) > 0.01


def test_advantages_are_those_of_choices():
  r = sampled()
  config = dataclasses.replace(
    configure(),
    rollout=dataclasses.replace(SAMPLES, samples=SAMPLES.group, forks=0),
    loss=dataclasses.replace(LOSS, advantage="gae"),
  )
  advantage_BGT, return_BGT = iteration.token_advantages(r, config)
  expected = np.zeros(r.mask_BGT.shape)
  for b, g in np.ndindex(B, SAMPLES.group):
    n, start = len(listed(r.tokens_BGT[b, g])), r.fork_BG[b, g]
    value_T, carry = np.append(r.value_BGT[b, g, start:n], 0.0), 0.0
    for t in reversed(range(start, n)):  # Through all states, discount 1.
      reward = r.reward_BG[b, g] if t == n - 1 else 0.0
      delta = reward + value_T[t - start + 1] - value_T[t - start]
      carry = delta + 0.95 * carry
      assert return_BGT[b, g, t] == pytest.approx(
        carry + value_T[t - start], abs=1e-5
      )
      expected[b, g, t] = carry
  values = expected[r.chosen_BGT]
  expected = (expected - values.mean()) / values.std()
  np.testing.assert_allclose(
    advantage_BGT, np.where(r.chosen_BGT, expected, 0.0), atol=1e-4
  )


@pytest.mark.parametrize(
  "source", ["samples", pytest.param("search", marks=pytest.mark.slow)]
)
def test_an_iteration_tells_its_champions_apart(source, monkeypatch):
  """Champions of both sources reach the update with their observations."""

  def caught(graphdef, carry, fixed, batch, *rest):
    del graphdef, fixed, rest
    fields = dict(
      answer=batch.distillation.tokens_CMT,
      observed=batch.distillation.environment_CMT,
      prompt=batch.distillation.prompts.tokens_BP,
    )  # fmt: skip
    return carry, fields

  monkeypatch.setattr(iteration, "update", caught)
  config = configure()
  loss = dataclasses.replace(LOSS, champion_source=source, soft_weight=0.0)
  config = dataclasses.replace(config, loss=loss, searches=source == "search")
  graphdef, params = nnx.split(search_test.model())
  params = jax.tree.map(jnp.copy, params)
  program = iteration.Program(graphdef, None, TASK, config.static, None)
  train_loop = iteration._train_loop.__wrapped__(program, False)
  _, metrics = train_loop(
    iteration.init_state(config, params),
    jax.tree.map(lambda a: a[None], ASKED),
    update.FixedParams(jax.tree.map(jnp.copy, params)),
    {name: jnp.float32(x) for name, x in config.hyper.items()},
    jax.random.key(0),
  )  # fmt: skip
  written, rows = 0, [tuple(map(int, prompt)) for prompt in PROMPTS]
  for prompt, tokens_MT, observed_MT in zip(
    *(
      np.asarray(metrics[name][0]) for name in ("prompt", "answer", "observed")
    ),
    strict=True,
  ):
    for tokens_T, observed_T in zip(tokens_MT, observed_MT, strict=True):
      tokens = listed(tokens_T)
      if tokens[-1] != EOS:
        continue
      own = replay(rows.index(tuple(map(int, prompt))), tokens)
      np.testing.assert_array_equal(observed_T[: len(own)], np.invert(own))
      written += len(own) - sum(own)
  assert written
