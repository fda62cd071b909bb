"""When to say "I don't know": what it is worth, and how that is learned."""

import dataclasses
import functools
import itertools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.benchmarks import abstention as benchmark
from experiments.recipes import abstaining_start
from tests.iteration_test import EOS, PAD, Copy, P, T, V, start
from tsd_jax.base.types import Responses
from tsd_jax.inference import prefill, sampling
from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.learning import iteration, losses, methods, update
from tsd_jax.learning.config import LossConfig, OptimizerConfig
from tsd_jax.learning.update import FixedParams
from tsd_jax.models import symbols
from tsd_jax.rewards.abstention import Abstention
from tsd_jax.rewards.algebra import Sum, TaskReward
from tsd_jax.rewards.reward import Score, Scorer
from tsd_jax.rewards.terms import Length
from tsd_jax.run import evaluation, samples
from tsd_jax.search.config import SearchConfig
from tsd_jax.search.search import search
from tsd_jax.tasks.task import OwnReward, as_prompts, rewarded

MARK = 5
Q, B = 64, 32


@dataclasses.dataclass(frozen=True)
class Riddles(Copy):
  """Begin with the prompt's last token; after 3 or 4 nothing is right."""

  name = "riddles"

  def score(self, prompt_XP, response_XT):
    """Counts what is right."""
    right_X = super().score(prompt_XP, response_XT).correct_X
    right_X &= prompt_XP[..., 0] < 3
    return Score(right_X.astype(jnp.float32), right_X)


OWN = Riddles()
REWARD = Abstention(OwnReward(OWN), mark=MARK)
TASK = rewarded(OWN, REWARD)


def configure(algorithm="tsd", task=TASK, **parts):
  options = dict(
    rollout=RolloutConfig(
      prompts=B, samples=4, forks=0, choose="first", baseline_prompts=Q
    ),
    search=SearchConfig(
      num_simulations=12, num_candidates=4, width=Q // B, trees=16
    ),
    loss=LossConfig(distilled_prompts=B, champion_weight=1.0),
    optimizer=OptimizerConfig(learning_rate=3e-3, minibatches=4),
    refresh_every=1,
    iterations=4,
  )
  return methods.resolve(algorithm, task, **options | parts)


def test_an_abstention_is_no_champion_of_own_samples():
  """What pays a half beats a wrong answer; it is no answer all the same."""
  loss = LossConfig(
    champions=2, champion_source="samples", champion_gate="better",
    abstention_weight=0.0,
  )  # fmt: skip
  rollout = RolloutConfig(prompts=2, samples=3, forks=0, choose="first")
  optimizer = OptimizerConfig(minibatches=2)
  config = configure(loss=loss, rollout=rollout, optimizer=optimizer)
  end = TASK.eos_id
  tokens_BGT = jnp.array(
    [
      [[1, end, 0], [MARK, end, 0], [2, end, 0]],
      [[1, end, 0], [3, MARK, end], [MARK, end, 0]],
    ]
  )
  fields = dict.fromkeys(Responses._fields) | dict(
    tokens_BGT=tokens_BGT,
    reward_BG=jnp.array([[0.0, 0.5, 1.0], [0.0, 0.5, 0.5]]),
    correct_BG=jnp.array([[False, False, True], [False, False, False]]),
  )
  program = iteration.Program(None, None, TASK, config, None)
  found = iteration.best_samples(program, Responses(**fields))
  np.testing.assert_array_equal(found.used_QM, [[True, False], [False, False]])
  assert found.tokens_QMT[0, 0].tolist() == [2, end, 0]


def test_it_is_asked_of_hopeless_prompts_too():
  """Dynamic sampling would leave them out."""
  rollout = RolloutConfig(
    prompts=B, samples=4, forks=0, choose="first", trained_prompts=B // 2
  )
  with pytest.raises(ValueError, match="set rollout.trained_prompts=0"):
    configure(rollout=rollout)


def test_trees_that_are_shown_and_measured_answer_as_those_that_teach():
  """They know no mark, however little else the policy says."""
  graphdef, params = start()
  search_config = SearchConfig(num_simulations=12, num_candidates=4)
  tokens_QT, *_ = evaluation.search_best(
    graphdef, params, TASK, prompts(32), jax.random.key(0), REWARD.load(),
    config=search_config,
  )  # fmt: skip
  shown = samples.trees(
    graphdef, params, TASK, prompts(32), search_config, seed=0,
    reward_params=REWARD.load(),
  )  # fmt: skip
  assert REWARD.never == (MARK,)
  assert not (np.asarray(tokens_QT) == MARK).any()
  has_Q = shown.embeddings.has_answer
  assert has_Q.any()
  assert not (shown.embeddings.answer_tokens[has_Q] == MARK).any()


def prompts(count, seed=0):
  rng = np.random.default_rng(seed)
  return as_prompts(TASK, rng.integers(0, 5, (count, P)).astype(np.int32))


def trained(config, iterations=150):
  """A model and its last metrics."""
  loop = iteration.make_train_loop(start()[0], TASK, config)
  params = jax.tree.map(jnp.copy, start()[1])
  state = iteration.init_state(config, params)
  batches = [prompts(Q, seed) for seed in range(iterations)]
  state, metrics = loop(
    state,
    jax.tree.map(lambda *a: np.stack(a), *batches),
    FixedParams(jax.tree.map(jnp.copy, start()[1]), REWARD.load()),
    {k: jnp.float32(v) for k, v in config.hyper.items()},
    jax.random.key(0),
  )
  return state.params, jax.tree.map(lambda a: a[-1], metrics)


@jax.jit
def full_forward(tokens_RT):
  return nnx.merge(*start())(tokens_RT)


def measured(params, modes):
  return evaluation.evaluate(
    start()[0], params, TASK, prompts(256, seed=99), modes, seed=0,
    reward_params=REWARD.load(),
  )  # fmt: skip


@pytest.mark.parametrize(
  "tokens, reward, correct",
  [
    ([2, EOS, PAD, PAD], 1.0, True),
    ([1, EOS, PAD, PAD], -1.0, False),
    ([MARK, EOS, PAD, PAD], 0.0, False),
    ([2, MARK, EOS, PAD], 0.0, False),  # Takes back what was right.
    ([2, EOS, MARK, PAD], 1.0, True),  # Nothing stands behind the end.
    ([2, 2, 2, 2], -1.0, False),  # Not finished.
  ],
)
def test_what_answers_are_worth(tokens, reward, correct):
  """Right, abstained and wrong; never right and abstained."""
  paid = dataclasses.replace(REWARD, worth=0.0, wrong=-1.0)
  score = Scorer(paid, (EOS,), paid.load())(
    as_prompts(OWN, np.array([[0, 2]], np.int32)), jnp.array([[tokens]])
  )
  assert (paid.low, paid.high, paid.abstention) == (-1.0, 1.0, (MARK, 0.0))
  assert float(score.reward_X[0, 0]) == reward
  assert bool(score.correct_X[0, 0]) == correct
  assert float(score.parts["abstains"][0, 0]) == (reward == 0.0)


@pytest.mark.parametrize(
  "change, words",
  [
    (dict(worth=2.0), "in this order"),
    (dict(worth=-1.0), "in this order"),
    (dict(right=0.0, worth=0.0), "right above wrong"),
    (dict(worth=float("nan")), "finite"),
    (dict(mark=-1), "token's id"),
    (dict(reward=Length()), "knows no correct answers"),
  ],
)
def test_rewards_that_teach_something_else_are_refused(change, words):
  """An order of values that nobody means."""
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(REWARD, **change)


def test_a_model_without_a_token_has_the_distribution_given_another():
  """Logits, samples and trees: renormalised, and the token nowhere."""
  model = nnx.merge(*start())
  barred = model.without((MARK,))
  tokens = jnp.array([[1, 2, 3]])
  p = np.array(jax.nn.softmax(full_forward(tokens)), np.float64)
  p[..., MARK] = 0.0
  np.testing.assert_allclose(
    jax.nn.softmax(jax.jit(barred)(tokens)),
    p / p.sum(-1, keepdims=True),
    atol=1e-6,
  )
  assert model.without(()) is model
  asked = prompts(8)

  @jax.jit
  def written(asked):
    rows = prefill.repeat_rows(prefill.prefill(barred, asked), 64)
    drawn = sampling.sample(
      barred, rows, sampling.row_keys(jax.random.key(0), 8, 64), length=T,
      end_ids=(EOS,), pad_id=PAD,
    )  # fmt: skip
    tree = search(
      barred, TASK, asked, jax.random.key(0),
      SearchConfig(num_simulations=12, num_candidates=V - 1),
      scorer=Scorer(REWARD, (EOS,), REWARD.load()),
    ).tree  # fmt: skip
    nodes = tree.embeddings
    return drawn.tokens_RT, nodes.answer_tokens, nodes.step_AU

  for tokens in written(asked):
    assert MARK not in np.asarray(tokens)


def expected_reward(p_T, reward, worth):
  """Over every place to stop, one after the other."""
  total, going = 0.0, 1.0
  for p in p_T:
    total, going = total + going * p * worth, going * (1 - p)
  return total + going * reward, 1 - going


@jax.jit
@functools.partial(jax.grad, has_aux=True)
def _gradient(logit_XT, reward_X, mask_XT, worth):
  """Of the loss with respect to the logits of stopping, and metrics."""
  stopping = losses.Stopping(worth, entropy=0.02, patience=0.05)
  log_stop_XT = jax.nn.log_sigmoid(logit_XT)
  return losses.abstention(log_stop_XT, reward_X, mask_XT, stopping)


@hypothesis.given(
  hnp.arrays(np.float64, (3, 5), elements=st.floats(0.01, 0.99)),
  hnp.arrays(np.float64, 3, elements=st.floats(-1, 1)),
  hnp.arrays(bool, (3, 5)),
  st.floats(-1, 1),
)
@hypothesis.settings(deadline=None)
def test_backward_induction_is_the_sum_over_all_stops(p_XT, r_X, mask_XT, a):
  """The value, and what every decision is moved by."""
  logit_XT = jnp.float32(np.log(p_XT / (1 - p_XT)))
  grad_XT, metrics = _gradient(logit_XT, jnp.float32(r_X), mask_XT, a)
  own = [
    expected_reward(p_T[mask_T], r, a)
    for p_T, mask_T, r in zip(p_XT, mask_XT, r_X, strict=True)
  ]
  reward, abstains = np.mean(own, axis=0)
  assert metrics["abstention_reward"] == pytest.approx(reward, abs=1e-4)
  assert metrics["abstains"] == pytest.approx(abstains, abs=1e-4)
  expected_XT = np.zeros_like(p_XT)
  for x, t in itertools.product(range(3), range(5)):
    if mask_XT[x, t]:
      later = mask_XT[x].copy()
      later[: t + 1] = False
      on, _ = expected_reward(p_XT[x][later], r_X[x], a)
      # d p / d logit = p (1 - p); d H / d logit = -logit p (1 - p).
      gain = a - on - 0.05 - 0.02 * float(logit_XT[x, t])
      expected_XT[x, t] = -gain * p_XT[x, t] * (1 - p_XT[x, t])
  expected_XT /= max(mask_XT.sum(), 1)
  np.testing.assert_allclose(grad_XT, expected_XT, atol=2e-5)


def test_it_stops_where_the_answer_shows_and_not_before():
  """Worthless and good answers differ at their last token alone."""
  reward_X = jnp.array([0.0, 0.0, 0.0, 1.0])
  stopping = losses.Stopping(worth=0.5, entropy=0.0, patience=0.05)
  # One decision for all before the token that tells, then one each.
  logit = {"before": jnp.full(2, -2.0), "after": jnp.full(4, -2.0)}

  @jax.jit
  def step(logit):
    def loss(logit):
      before_XT = jnp.broadcast_to(logit["before"], (4, 2))
      logit_XT = jnp.concatenate([before_XT, logit["after"][:, None]], axis=1)
      mask_XT = jnp.ones((4, 3), bool)
      return losses.abstention(
        jax.nn.log_sigmoid(logit_XT), reward_X, mask_XT, stopping
      )[0]

    return jax.tree.map(lambda x, g: x - 20 * g, logit, jax.grad(loss)(logit))

  for _ in range(400):
    logit = step(logit)
  p = jax.tree.map(jax.nn.sigmoid, logit)
  # At first most answers are worthless: stopping at once would have paid.
  assert np.all(p["before"] < 0.1)
  np.testing.assert_array_equal(p["after"] > 0.5, [True, True, True, False])


def test_a_champion_teaches_given_that_one_answers():
  """Its cross-entropy is -log (pi / (1 - pi of the mark)), token by token."""
  config = configure("expert_iteration")
  graphdef, params = start()
  asked = prompts(2)
  answer_CT = np.array([[1, 2, EOS, PAD], [4, EOS, PAD, PAD]], np.int32)
  batch = update.Batch(
    *[None] * 5,
    update.DistillationBatch(
      asked, jnp.asarray(answer_CT)[:, None], jnp.ones((2, 1), bool), None
    ),
  )
  loss, _ = jax.jit(update.loss_fn, static_argnums=(2, 5))(
    params, FixedParams(params), graphdef, batch, config.hyper, config
  )
  row_CX = np.concatenate([np.asarray(asked.tokens_BP), answer_CT], axis=1)
  log_p = np.asarray(
    jax.nn.log_softmax(full_forward(jnp.asarray(row_CX))),
    np.float64,
  )
  given = [
    log_p[c, P - 1 + t, answer_CT[c, t]]
    - np.log1p(-np.exp(log_p[c, P - 1 + t, MARK]))
    for c, length in ((0, 3), (1, 2))
    for t in range(length)
  ]
  assert float(loss) == pytest.approx(-np.mean(given), abs=1e-5)


def test_the_loop_learns_to_answer_and_when_not_to():
  """It solves what can be solved, and abstains from the rest.

  Who samples the mark like any other token says nothing else in the end.
  """

  def after(algorithm):
    params, metrics = trained(configure(algorithm))
    found = measured(params, "mean@8")
    assert "abstains" in evaluation.table(found)
    return found["mean@8"], metrics

  ours, metrics = after("tsd")
  grpo, _ = after("grpo")
  solvable = np.mean(np.asarray(prompts(256, seed=99).tokens_BP[:, 0]) < 3)
  assert ours["accuracy"] > 0.75 * solvable
  assert ours["abstains"] == pytest.approx(1 - solvable, abs=0.1)
  assert metrics["abstains_needlessly"] < 0.2
  assert grpo["abstains"] > 0.95
  assert ours["reward"] > grpo["reward"] + 0.1


def test_where_nothing_abstains_the_term_is_left_out():
  """And baselines sample the mark like any other token."""
  plain = configure(task=OWN)
  assert plain.never == () and plain.loss.abstention_weight == 0
  assert not plain.answers
  ours, grpo = configure(), configure("grpo")
  assert ours.never == grpo.never == (MARK,)
  assert ours.answers and not grpo.answers
  # A recipe without the term leaves them with it: it is all that they have.
  alone = LossConfig(distilled_prompts=B, policy_weight=0.0)
  assert configure("ppo", loss=alone).loss.policy_weight == 1
  # Within a sum its worth is not what the sum is; around one it is.
  with pytest.raises(ValueError, match="put it outermost, around Sum"):
    Sum((REWARD, Length()), (1.0, 0.1))
  around = dataclasses.replace(
    REWARD, reward=Sum((REWARD.reward, Length()), (1.0, 0.1))
  )
  assert configure(task=rewarded(OWN, around)).never == (MARK,)
  with pytest.raises(ValueError, match=r"set rollout\.choose=first"):
    configure(rollout=RolloutConfig(prompts=B, choose="uncertain"))
  assert TaskReward().abstention is None


def test_a_start_that_says_it_at_random():
  """A share of the examples stops short, each in its room."""
  rng = np.random.default_rng(0)
  whole = np.tile(np.r_[np.arange(8), symbols.EOS].astype(np.int32), (4000, 1))
  short = abstaining_start.stopped(whole, 0.25, rng)
  stops = np.any(short == symbols.UNSURE, axis=1)
  assert 0.22 < stops.mean() < 0.28
  np.testing.assert_array_equal(short[~stops], whole[~stops])
  for row in short[stops]:
    at = int(np.argmax(row == symbols.UNSURE))
    np.testing.assert_array_equal(row[:at], np.arange(at))
    assert row[at + 1] == symbols.EOS and np.all(row[at + 2 :] == symbols.PAD)


def test_the_area_of_risk_over_coverage():
  """By hand, and between the best and the worst order; ties are one step."""
  right = np.array([1.0, 0.0, 1.0, 0.0])
  area = benchmark.risk_over_coverage
  best = np.mean([0, 0, 1 / 3, 2 / 4])
  worst = np.mean([1, 1, 2 / 3, 2 / 4])
  assert area(np.array([4, 1, 3, 2]), right) == pytest.approx(best)
  assert area(np.array([1, 4, 2, 3]), right) == pytest.approx(worst)
  assert area(np.ones(4), right) == pytest.approx(0.5)


def test_answers_are_ranked_by_who_abstains_and_who_agrees():
  """The commonest answer counts; one that is never given has no confidence."""
  mark, other = [MARK, EOS], [1, EOS]
  tokens = np.array([[other, other, [2, EOS]], [other, mark, mark]])
  correct = np.array([[True, True, False], [False, False, False]])
  answers = benchmark.Answers(
    correct * 1.0, correct, np.any(tokens == MARK, axis=-1), tokens
  )
  assert benchmark.ranked(answers) == {
    "answers": pytest.approx(0.25), "agreement": pytest.approx(0.25)
  }  # fmt: skip
