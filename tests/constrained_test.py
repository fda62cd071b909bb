"""What may not be said: rewards, trees, lessons, and how it is learned."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.benchmarks import safety
from tests.fake_task import Fake, Numbers
from tests.flat_search import flat_search
from tests.iteration_test import EOS, PAD, Copy, P, T, start
from tests.noisy import add_noise
from tsd_jax.base.errors import UserError
from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.learning import iteration, losses, methods, update
from tsd_jax.learning.config import LossConfig, OptimizerConfig
from tsd_jax.learning.update import FixedParams
from tsd_jax.models import transformer
from tsd_jax.models.phrases import Phrases
from tsd_jax.rewards.abstention import Abstention
from tsd_jax.rewards.algebra import TaskReward
from tsd_jax.rewards.constrained import Constrained
from tsd_jax.rewards.reward import Score, Scorer
from tsd_jax.run import evaluation
from tsd_jax.search import champions as champions_lib
from tsd_jax.search.champions import PathTargets
from tsd_jax.search.config import SearchConfig
from tsd_jax.search.search import search
from tsd_jax.tasks.task import OwnReward, as_prompts, rewarded

OWN = Copy()
# To write 4, or 1 and then 2.
REWARD = Constrained(
  TaskReward(), Phrases(("4", "1 2"), whole_words=True), worth=-1.0
)


def bound(reward, task):
  return rewarded(task, reward.bind(task.reward, task.tokenizer))


TASK = bound(REWARD, OWN)


def violates(tokens, end=EOS):
  """Token by token, up to the end."""
  said = list(itertools.takewhile(lambda t: t != end, map(int, tokens)))
  said = [t for t in said if t != PAD]
  return 4 in said or (1, 2) in zip(said, said[1:], strict=False)


@pytest.mark.parametrize(
  "tokens, reward, correct",
  [
    ([3, EOS, PAD, PAD], 1.0, True),
    ([0, EOS, PAD, PAD], 0.0, False),
    ([3, 4, EOS, PAD], -1.0, False),  # Right, but it says it.
    ([1, 2, EOS, PAD], -1.0, False),
    ([1, 2, 0, 0], -1.0, False),  # Not finished either.
    ([3, 1, EOS, 2], 1.0, True),  # Nothing stands behind the end.
    ([1, 0, 2, EOS], 0.0, False),
  ],
)
def test_what_responses_are_worth(tokens, reward, correct):
  """Below everything else where it says what it may not, and never right."""
  paid = TASK.reward
  score = Scorer(paid, (EOS,), paid.load())(
    as_prompts(OWN, np.array([[0, 3]], np.int32)), jnp.array([[tokens]])
  )
  assert (paid.low, paid.high) == (-1.0, 1.0)
  assert float(score.reward_X[0, 0]) == reward
  assert bool(score.correct_X[0, 0]) == correct
  assert float(score.parts["violation"][0, 0]) == violates(tokens)


def test_rewards_that_forbid_and_pay_for_it_are_refused():
  with pytest.raises(ValueError, match=r"worth=0.5 must be finite and at most"):
    dataclasses.replace(TASK.reward, worth=0.5)
  with pytest.raises(UserError, match=r"call reward\.bind"):
    Constrained(OwnReward(OWN), REWARD.forbidden).load()
  both = bound(Constrained(Abstention(TaskReward(), 5), REWARD.forbidden), OWN)
  assert both.reward.abstention == (5, 0.5) and both.reward.low == 0.0
  with pytest.raises(ValueError, match="Copy|OwnReward forbids nothing"):
    configure(task=OWN, loss=LossConfig(distilled_prompts=B, **AVERSE))
  with pytest.raises(ValueError, match="likeliest tokens as its moves"):
    configure(
      loss=LossConfig(distilled_prompts=B, **AVERSE),
      search=SearchConfig(step_tokens=2, width=Q // B, trees=16),
    )


# A tree small enough to be listed: 3 digits, an end, a token that is no text.
@dataclasses.dataclass(frozen=True)
class Small(Fake):
  """A reward with no structure."""

  name = "small"
  vocab_size, prompt_length, response_length = 5, 2, 4
  eos_id, pad_id = 3, 4

  @property
  def tokenizer(self):
    return Numbers(5, 3, 4)

  def score(self, prompt_XP, response_XT):
    """A hash of prompt and response; one half is correct."""
    mixed_X = jnp.sum(response_XT * jnp.array([7, 13, 29, 31]), axis=-1)
    mixed_X += jnp.sum(prompt_XP * jnp.array([3, 5]), axis=-1)
    finished_X = jnp.any(response_XT == 3, axis=-1)
    reward_X = jnp.where(finished_X, (mixed_X * 37 % 97) / 96.0, 0.0)
    return Score(reward_X, finished_X & (reward_X > 0.5))


SMALL_TASK = bound(
  Constrained(TaskReward(), Phrases(("0 1", "2 2"), whole_words=True)), Small()
)
SMALL_PROMPTS = np.array([[0, 1], [2, 0], [1, 1], [2, 2]], np.int32)


def small_violates(path):
  said = [t for t in path if t < 3]
  return bool({(0, 1), (2, 2)} & set(zip(said, said[1:], strict=False)))


PREFIXES = [
  path
  for depth in range(4)
  for path in itertools.product((0, 1, 2, 4), repeat=depth)
  if not small_violates(path)
]


@functools.cache
def small_model():
  config = transformer.ModelConfig(
    vocab_size=5, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1,
    head_dim=8, d_mlp=16,
  )  # fmt: skip
  with jax.ensure_compile_time_eval():
    graphdef, params = transformer.create(config, 3)
    noisy = add_noise(params, scale=0.3, seed=5)
  return nnx.merge(graphdef, noisy)


@functools.partial(jax.jit, static_argnums=2)
def small_search(prompt_BP, reward_params, config):
  return search(
    small_model(), SMALL_TASK, as_prompts(SMALL_TASK, prompt_BP),
    jax.random.key(0), config,
    scorer=Scorer(SMALL_TASK.reward, (3,), reward_params),
  )  # fmt: skip


def searched(rows=SMALL_PROMPTS, **settings):
  config = flat_search(
    **dict(num_candidates=5, stop_when_solved=False) | settings
  )
  params = SMALL_TASK.reward.load()
  return jax.device_get(small_search(rows, params, config))


best_answers = jax.jit(champions_lib.champions, static_argnums=1)


def best_allowed(prompt):
  """Of all responses, by their reward."""
  ended = [(*path, 3, *[4] * (3 - len(path))) for path in PREFIXES]
  rewards = Small().score(np.tile(prompt, (len(ended), 1)), np.array(ended))
  return float(np.max(rewards.reward_X))


def test_a_whole_tree_holds_what_may_be_said_and_nothing_else():
  """Every allowed prefix is a node, once, and no simulation goes elsewhere."""
  result = searched(
    rule="best_first", num_simulations=80, slot_reuse=True, trees=1
  )
  nodes, visits = result.tree.embeddings, result.tree.node_visits
  for row, prompt in enumerate(SMALL_PROMPTS):
    made = np.flatnonzero(visits[row])
    paths = [
      tuple(nodes.path_tokens[row, n][: nodes.depth[row, n]].tolist())
      for n in made
    ]
    assert sorted(paths) == sorted(PREFIXES)
    # Of each of them the end is an answer.
    answers = {tuple(nodes.answer_tokens[row, n].tolist()) for n in made
               if nodes.has_answer[row, n]}  # fmt: skip
    assert len(answers) == len(PREFIXES)
    for n, path in zip(made, paths, strict=True):
      barred = nodes.candidate_A[row, n][nodes.forbidden_A[row, n]]
      assert set(barred.tolist()) == {
        t for t in range(3) if small_violates((*path, t))
      }
    found = best_answers(result.tree, 1)
    champion = tuple(np.asarray(found.tokens_BMT)[row, 0].tolist())
    assert champion in answers
    assert found.reward_BM[row, 0] == pytest.approx(best_allowed(prompt))
  # The ledger: a forward, and a response to score, for each node but the root.
  made = len(SMALL_PROMPTS) * (len(PREFIXES) - 1)
  assert int(result.forwards) == made
  assert int(result.scored) == made + len(SMALL_PROMPTS)


kinds_of_search = pytest.mark.parametrize(
  "settings",
  [
    dict(rule="puct", leaf="rollout"),
    dict(rule="gumbel", leaf="rollout"),
    dict(rule="best_first", step_tokens=2),
    dict(rule="best_first", step_tokens=2, lazy=True),
  ],
  ids=lambda s: "-".join(map(str, s.values())),
)


@kinds_of_search
def test_no_search_goes_below_what_may_not_be_said(settings):
  """Nodes, rollouts and drawn steps: no answer says it, nothing leads on."""
  result = searched(num_simulations=24, **settings)
  tree, nodes = result.tree, result.tree.embeddings
  said, answers = 0, 0
  for row, n in np.argwhere(tree.node_visits > 0):
    path = nodes.path_tokens[row, n][: nodes.depth[row, n]].tolist()
    if nodes.has_answer[row, n]:
      answers += 1
      answer = nodes.answer_tokens[row, n].tolist()
      assert not small_violates(answer[: answer.index(3)])
    else:
      assert nodes.reward[row, n] == 0.0
    if small_violates(path):
      said += 1
      assert nodes.cut_off[row, n] and not nodes.has_answer[row, n]
      above = nodes.path_tokens[row, tree.parents[row, n]]
      depth = nodes.depth[row, tree.parents[row, n]]
      # It is seen at once: what stands above it may be said, or it is that
      # node again.
      assert not small_violates(above[:depth].tolist()) or (depth == len(path))
  assert answers > 4
  # Only a step that is drawn when it is tried can say it before it is known.
  assert (said > 0) == ("lazy" in settings)


def test_the_unlikelihood_of_moves_and_its_gradient():
  """Against NumPy, and its derivative by the logits: pi, at most 1."""
  rng = np.random.default_rng(0)
  logit_XV = rng.normal(size=(6, 5)) * 3
  forbidden_XV = rng.random((6, 5)) < 0.4

  def numpy_loss(logit_XV):
    p_XV = np.exp(logit_XV) / np.exp(logit_XV).sum(-1, keepdims=True)
    return -np.mean(np.log(1 - p_XV[forbidden_XV]))

  @jax.jit
  @jax.value_and_grad
  def ours(logit_XV):
    token_XA = jnp.broadcast_to(jnp.arange(5), (6, 5))
    log_rest_XA = losses.log_rest(jax.nn.log_softmax(logit_XV), token_XA)
    return losses.unlikelihood(log_rest_XA, forbidden_XV)

  loss, grad_XV = ours(jnp.float32(logit_XV))
  assert float(loss) == pytest.approx(numpy_loss(logit_XV), rel=1e-5)
  step = 1e-5
  for at in np.ndindex(logit_XV.shape):
    change_XV = np.zeros_like(logit_XV)
    change_XV[at] = step
    slope = numpy_loss(logit_XV + change_XV) - numpy_loss(logit_XV - change_XV)
    assert float(grad_XV[at]) == pytest.approx(slope / (2 * step), abs=1e-5)
  certain, grad_V = ours(jnp.full((6, 5), -40.0).at[:, 0].set(40.0))
  assert np.isfinite(certain) and np.all(np.abs(grad_V) <= 1)


@pytest.mark.parametrize("ahead", [0.0, 5.0, 13.0, 15.0, 17.0, 40.0])
def test_a_move_that_is_all_but_certain_is_unlearned_too(ahead):
  """In float32 its probability is 1 from 17 nats on; NumPy knows the rest."""
  logit_V = np.array([ahead, 0.0, -1.0, 0.5])

  @jax.value_and_grad
  def ours(logit_V):
    log_prob_1V = jax.nn.log_softmax(logit_V)[None]
    return -losses.log_rest(log_prob_1V, jnp.array([[0]]))[0, 0]

  loss, grad_V = ours(jnp.float32(logit_V))
  p_V = np.exp(logit_V - ahead) / np.exp(logit_V - ahead).sum()
  assert float(loss) == pytest.approx(-np.log(p_V[1:].sum()), rel=1e-5)
  assert float(grad_V[0]) == pytest.approx(p_V[0], rel=1e-5)
  others_V = -p_V[0] * p_V[1:] / p_V[1:].sum()
  np.testing.assert_allclose(grad_V[1:], others_V, rtol=1e-4)


Q, B = 64, 32
AVERSE = dict(aversion_weight=1.0)


def configure(algorithm="tsd", task=TASK, **parts):
  options = dict(
    rollout=RolloutConfig(prompts=B, samples=4, forks=0, baseline_prompts=Q),
    search=SearchConfig(
      num_simulations=12, num_candidates=6, width=Q // B, trees=16
    ),
    loss=LossConfig(distilled_prompts=B, champion_weight=1.0, **AVERSE),
    optimizer=OptimizerConfig(learning_rate=3e-3, minibatches=4),
    refresh_every=1,
    iterations=4,
  )
  return methods.resolve(algorithm, task, **options | parts)


def test_a_lesson_is_taught_where_the_tree_closed_a_move():
  """The loss over a champion's path against full forwards."""
  config = configure(
    loss=LossConfig(
      policy_weight=0.0,
      success_weight=0.0,
      champion_weight=0.0,
      distilled_prompts=B,
      **AVERSE,
    )
  )
  graphdef, params = start()
  asked = as_prompts(TASK, np.array([[0, 3], [2, 1]], np.int32))
  answer_CT = np.array([[3, 1, EOS, PAD], [1, EOS, PAD, PAD]], np.int32)
  candidate_CTA = np.tile(np.array([4, 2, 1], np.int32), (2, T, 1))
  forbidden_CTA = np.zeros(candidate_CTA.shape, bool)
  # 4 is closed everywhere, 2 after 1; the last is behind the end.
  for c, t, a in ((0, 0, 0), (0, 2, 0), (0, 2, 1), (1, 1, 1), (1, 3, 0)):
    forbidden_CTA[c, t, a] = True
  nothing_CT = np.zeros((2, T))
  targets = PathTargets(
    candidate_CTA, np.zeros(candidate_CTA.shape), nothing_CT,
    nothing_CT > 0, forbidden_CTA,
  )  # fmt: skip
  batch = update.Batch(
    *[None] * 5,
    update.DistillationBatch(
      asked, jnp.asarray(answer_CT)[:, None], jnp.ones((2, 1), bool), targets
    ),
  )
  loss, metrics = jax.jit(update.loss_fn, static_argnums=(2, 5))(
    params, FixedParams(params), graphdef, batch, config.hyper, config
  )
  row_CX = np.concatenate([np.asarray(asked.tokens_BP), answer_CT], axis=1)
  model = nnx.merge(graphdef, params)
  log_p = np.asarray(jax.nn.log_softmax(jax.jit(model)(jnp.asarray(row_CX))))
  p = np.exp(log_p.astype(np.float64))
  expected = -np.mean([
    np.log1p(-p[c, P - 1 + t, candidate_CTA[c, t, a]])
    for c, t, a in ((0, 0, 0), (0, 2, 0), (0, 2, 1), (1, 1, 1))
  ])  # fmt: skip
  assert float(loss) == pytest.approx(expected, abs=1e-5)
  assert float(metrics["aversion_loss"]) == pytest.approx(expected, abs=1e-5)


def prompts(count, seed=0):
  rng = np.random.default_rng(seed)
  return as_prompts(TASK, rng.integers(0, 5, (count, P)).astype(np.int32))


def measured(params):
  found = evaluation.evaluate(
    start()[0], params, TASK, prompts(256, seed=99), "mean@8", seed=0,
    reward_params=TASK.reward.load(),
  )  # fmt: skip
  assert "violation" in evaluation.table(found)
  return found["mean@8"]


def test_the_loop_learns_what_not_to_say():
  """It solves what can be solved, and says what is forbidden nowhere."""
  config = configure()
  loop = iteration.make_train_loop(start()[0], TASK, config)
  batches = [prompts(Q, seed) for seed in range(150)]
  state, metrics = loop(
    iteration.init_state(config, jax.tree.map(jnp.copy, start()[1])),
    jax.tree.map(lambda *a: np.stack(a), *batches),
    FixedParams(jax.tree.map(jnp.copy, start()[1]), TASK.reward.load()),
    {k: jnp.float32(v) for k, v in config.hyper.items()},
    jax.random.key(0),
  )
  before, after = measured(start()[1]), measured(state.params)
  assert before["violation"] > 0.2
  assert after["violation"] < 0.03
  asked = np.asarray(prompts(256, seed=99).tokens_BP[:, -1])
  assert after["accuracy"] > 0.7 * np.mean(asked != 4)
  assert metrics["reward_violation"][0] > 0.2
  assert metrics["aversion_loss"][-1] < 0.3 * metrics["aversion_loss"][0]


def test_baselines_know_no_closed_moves():
  """They are punished for what they say, and that is all."""
  assert configure("ppo").loss.aversion_weight == 0
  assert configure("expert_iteration").loss.aversion_weight == 0
  assert configure().loss.reads_paths


def test_the_first_allowed_sample_is_what_filtering_answers():
  """And beginnings are what they say."""
  right = np.array([[True, False, False], [False, False, False]])
  said = np.array([[False, True, False], [True, True, True]])
  np.testing.assert_allclose(safety.filtered(right, said), [0.5, 0.0])
  begun = safety.beginnings(
    np.array([[3, 12, 5, 204, 20], [11, 12, 13, 204, 9], [7, 7, 7, 204, 1]])
  )
  np.testing.assert_array_equal(begun.prompt_QP, [[3, 12, 5, 204, 20]])
  np.testing.assert_array_equal(begun.half_Q2, [[12, 201]])
  np.testing.assert_array_equal(begun.whole_Q4, [[12, 201, 3, 9]])
