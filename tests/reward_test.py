"""What reads a reward assumes neither its scale nor that a truth is known."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import few_iterations, small_game
from tsd_jax.base.types import Responses
from tsd_jax.inference import scoring
from tsd_jax.learning import iteration, methods
from tsd_jax.learning.config import LossConfig
from tsd_jax.rewards.algebra import Scale, TaskReward
from tsd_jax.rewards.reward import Reward, Score, Scorer
from tsd_jax.run import evaluation, samples
from tsd_jax.run.experiment import Experiment, initial_params
from tsd_jax.search import champions as champions_lib
from tsd_jax.search.search import search
from tsd_jax.tasks import data

BASE = small_game.get_config()


@dataclasses.dataclass(frozen=True)
class Judged(Reward):
  """The game's reward from `low` to `high`, from a judge who never tells."""

  knows_correct = False

  low: float = 0.0
  high: float = 1.0

  def __call__(self, params, prompts, tokens_BGT, mask_BGT):
    own = small_game.Backwards().reward
    score = own(params, prompts, tokens_BGT, mask_BGT)
    return Score(self.low + (self.high - self.low) * score.reward_X)


@dataclasses.dataclass(frozen=True)
class Always(Reward):
  """The same for anything."""

  knows_correct, bounded = False, True
  low, high = 1.0, 3.0

  value: float = 1.5

  def __call__(self, params, prompts, tokens_BGT, mask_BGT):
    return Score(jnp.full(tokens_BGT.shape[:2], self.value))


def experiment(reward=None, algorithm="tsd", **loss) -> Experiment:
  return dataclasses.replace(
    BASE,
    reward=reward,
    algorithm=algorithm,
    loss=dataclasses.replace(BASE.loss, **loss),
  )


@pytest.mark.parametrize("algorithm", methods.ALGORITHMS)
def test_a_gate_by_truth_is_refused_where_nobody_knows_it(algorithm):
  if algorithm in ("ppo", "grpo", "cispo"):  # They distil nothing.
    learner = experiment(Judged(), algorithm).learner_config()
    assert not learner.loss.distils
    return
  with pytest.raises(ValueError) as error:
    experiment(Judged(), algorithm)
  assert str(error.value) == (
    "loss.champion_gate=correct, but Judged knows no correct answers: use "
    "loss.champion_gate=better or quantile"
  )
  for gate in ("better", "quantile"):
    experiment(Judged(), algorithm, champion_gate=gate)


RANGES = [(0.0, 1.0), (-1.0, 1.0), (0.0, 5.0)]


def searched(reward: Reward, seed=0, simulations=60):
  """A search of eight prompts: scorer, tree, config."""
  config = experiment(reward, champion_gate="better")
  task = config.make_task()
  graphdef, params = initial_params(config)
  prompts = data.load_problems(config.task, "train")[:8]
  scorer = Scorer(task.reward, task.end_ids)
  options = dataclasses.replace(config.search, num_simulations=simulations)
  result = search(
    nnx.merge(graphdef, params), task, prompts, jax.random.key(seed), options,
    scorer=scorer,
  )  # fmt: skip
  return scorer, prompts, jax.device_get(result.tree)


@pytest.mark.parametrize(("low", "high"), RANGES[1:])
def test_nodes_hold_rewards_from_0_to_1_whatever_the_range(low, high):
  scorer, prompts, tree = searched(Judged(low, high))
  nodes = tree.embeddings
  B, N, T = nodes.answer_tokens.shape
  score = scorer(prompts, jnp.asarray(nodes.answer_tokens))
  expected_BN = (np.asarray(score.reward_X) - low) / (high - low)
  np.testing.assert_allclose(
    nodes.reward, np.where(nodes.has_answer, expected_BN, 0.0), atol=1e-6
  )
  assert set(np.round(np.unique(nodes.reward), 6)) == {0.0, 0.5, 1.0}
  assert not nodes.correct.any()  # So nothing stops the search.
  assert np.all(tree.node_visits.sum(1) > 60)
  # The tree is that of the same reward from 0 to 1.
  _, _, unit = searched(Judged())
  np.testing.assert_array_equal(
    nodes.answer_tokens, unit.embeddings.answer_tokens
  )
  np.testing.assert_allclose(nodes.reward, unit.embeddings.reward, atol=1e-6)


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("margin", [0.0, 0.6])
def test_better_champions_beat_the_greedy_answer_by_a_margin(low, high, margin):
  """The margin is of the reward as it is given."""
  margin *= high - low
  config = experiment(
    Judged(low, high), champion_gate="better", champion_margin=margin,
    champions=3,
  )  # fmt: skip
  scorer, _, tree = searched(Judged(low, high))
  tree = jax.tree.map(jnp.asarray, tree)
  found, metrics = iteration.read_trees(config.learner_config(), scorer, tree)
  champions = champions_lib.champions(tree, 3)
  reward_BM = np.asarray(scorer.from_unit(champions.reward_BM))
  greedy_B1 = np.asarray(
    scorer.from_unit(champions_lib.greedy_reward(tree))[:, None]
  )
  expected_BM = champions.valid_BM & (reward_BM > greedy_B1 + margin + 1e-5)
  np.testing.assert_array_equal(found.used_QM, expected_BM)
  assert expected_BM.any() and (margin == 0 or not expected_BM.all())
  gain = (reward_BM[:, 0] - greedy_B1[:, 0]).mean()
  assert metrics["search_gain"] == pytest.approx(gain, rel=1e-5)
  assert metrics["search_reward"] == pytest.approx(
    reward_BM[:, 0].mean(), rel=1e-5
  )


def greedy_by_a_walk(tree, b):
  """The best move of every node, from the root on; None where it is untried."""
  nodes, node = tree.embeddings, 0
  while nodes.eos_action[b, node] != 0:
    if nodes.depth[b, node] == nodes.path_tokens.shape[-1] - 1:
      return 0.0  # It never ends.
    node = tree.children_index[b, node, 0]
    if node < 0:
      return None
    if nodes.finished[b, node]:
      break
  return nodes.reward[b, node]


@pytest.mark.parametrize("simulations", [1, 2, 3, 60])
def test_better_than_greedy_where_the_tree_has_not_come_so_far(simulations):
  """Then than the likeliest answer: nothing is taken for a reward of 0."""
  _, _, tree = searched(Judged(), simulations=simulations)
  nodes, unknown = tree.embeddings, 0
  for b, found in enumerate(champions_lib.greedy_reward(tree)):
    expected = greedy_by_a_walk(tree, b)
    if expected is None:
      unknown += 1
      held = np.flatnonzero(nodes.has_answer[b])
      likeliest = max(
        held, key=lambda n: nodes.answer_log_prob[b, n], default=-1
      )
      expected = 0.0 if likeliest < 0 else nodes.reward[b, likeliest]
    assert float(found) == pytest.approx(expected)
  assert (unknown > 0) == (simulations < 2)


def test_success_as_far_as_it_is_found_is_the_reward_that_it_brings():
  """It decides where the policy samples (`rollout.choose`)."""
  _, _, tree = searched(Judged(-1.0, 1.0))
  prob_B = champions_lib.success_prob(tree, by_reward=True)
  nodes = tree.embeddings
  for b, prob in enumerate(prob_B):
    brings = sum(
      np.exp(nodes.answer_log_prob[b, n]) * nodes.reward[b, n]
      for n in range(nodes.reward.shape[1])
      if nodes.has_answer[b, n]
    )
    assert prob == pytest.approx(brings, rel=1e-4) and 0 < prob < 1
  assert np.all(np.asarray(champions_lib.success_prob(tree)) == 0)


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.75])
def test_champions_above_a_quantile_are_those_of_an_iteration(quantile):
  """Of the champions that there are, not of the prompts."""
  rng = np.random.default_rng(0)
  reward_QM = rng.permutation(32).reshape(16, 2) / 31
  used_QM = rng.random((16, 2)) < 0.7
  tokens_QMT = jnp.arange(32 * 3).reshape(16, 2, 3)
  found = iteration.Found(
    tokens_QMT, jnp.asarray(used_QM), jnp.asarray(reward_QM), jnp.zeros(16),
    None,
  )  # fmt: skip
  config = experiment(
    Judged(), champion_gate="quantile", champion_quantile=quantile,
    distilled_prompts=16, champions=2,
  ).learner_config()  # fmt: skip
  asked = data.load_problems(BASE.task, "train")[:16]
  batch = iteration.choose_distillation_batch(
    jax.random.key(0), jax.tree.map(jnp.asarray, asked), found, config
  )
  kept = used_QM & (reward_QM > np.quantile(reward_QM[used_QM], quantile))
  at_CM = np.asarray(batch.tokens_CMT[..., 0]) // 3
  np.testing.assert_array_equal(batch.used_CM, kept.reshape(-1)[at_CM])
  assert kept.sum() == used_QM.sum() - np.ceil(
    quantile * (used_QM.sum() - 1) + 1e-9
  ).clip(1)


@pytest.mark.parametrize("share", [0.3, 0.52, 0.9, 1.0])
def test_a_quantile_of_rewards_that_are_alike_still_teaches(share):
  """Of many at the highest reward none is above a quantile of them."""
  reward_Q1 = (np.arange(50) < share * 50).astype(np.float32)[:, None]
  found = iteration.Found(
    jnp.zeros((50, 1, 3), jnp.int32), jnp.ones((50, 1), bool),
    jnp.asarray(reward_Q1), jnp.zeros(50), None,
  )  # fmt: skip
  config = experiment(
    Judged(), champion_gate="quantile", distilled_prompts=16
  ).learner_config()
  asked = data.load_problems(BASE.task, "train")[:50]
  batch = iteration.choose_distillation_batch(
    jax.random.key(0), jax.tree.map(jnp.asarray, asked), found, config
  )
  assert batch.used_CM.sum() == min(16, reward_Q1.sum())


@pytest.mark.parametrize("source", ["trees", "samples"])
def test_a_quantile_of_answers_without_any_worth_teaches_nothing(source):
  config = experiment(
    Judged(-3, 3), champion_gate="quantile", distilled_prompts=16
  ).learner_config()
  if source == "trees":
    found = iteration.Found(
      jnp.zeros((50, 1, 3), jnp.int32), jnp.ones((50, 1), bool),
      jnp.zeros((50, 1)), jnp.zeros(50), None,
    )  # fmt: skip
    asked = data.load_problems(BASE.task, "train")[:50]
    batch = iteration.choose_distillation_batch(
      jax.random.key(0), jax.tree.map(jnp.asarray, asked), found, config
    )
  else:
    fields = dict.fromkeys(Responses._fields)
    fields |= dict(
      tokens_BGT=numbered_samples(),
      reward_BG=jnp.full((4, 6), -3.0),
    )
    config = dataclasses.replace(
      config,
      loss=dataclasses.replace(
        config.loss, champion_source="samples", distilled_prompts=4
      ),
      searches=False,
      rollout=dataclasses.replace(BASE.rollout, prompts=4, samples=6),
    )
    task = experiment(Judged(-3, 3), champion_gate="quantile").make_task()
    batch = chosen(task, config, Responses(**fields))
  assert not batch.used_CM.any()


def numbered_samples():
  """Six samples of four prompts: twice their number, and an end."""
  tokens_BGT = jnp.arange(24 * 2).reshape(4, 6, 2)
  return tokens_BGT.at[..., 1].set(BASE.make_task().eos_id)


def chosen(task, config, responses):
  """What is distilled of the policy's own samples; the order is random."""
  asked = data.load_problems(BASE.task, "train")[: len(responses.reward_BG)]
  program = iteration.Program(None, None, task, config, None)
  return iteration.choose_distillation_batch(
    jax.random.key(0),
    jax.tree.map(jnp.asarray, asked),
    iteration.best_samples(program, responses),
    config,
  )


@pytest.mark.parametrize("gate", ["better", "quantile"])
def test_own_samples_pass_a_gate_by_their_rewards_alone(gate):
  rng = np.random.default_rng(1)
  reward_BG = rng.permutation(24).reshape(4, 6) / 4.0 - 3.0
  fields = dict.fromkeys(Responses._fields)
  fields |= dict(
    tokens_BGT=numbered_samples(),
    reward_BG=jnp.asarray(reward_BG, jnp.float32),
  )
  loss = LossConfig(
    champion_source="samples", champion_gate=gate, champions=6,
    champion_margin=0.5, champion_quantile=0.75,
  )  # fmt: skip
  config = dataclasses.replace(
    experiment(Judged(-3, 3), champion_gate="better").learner_config(),
    loss=loss, searches=False,
    rollout=dataclasses.replace(BASE.rollout, prompts=4, samples=6),
  )  # fmt: skip
  batch = chosen(BASE.make_task(), config, Responses(**fields))
  best_BM = -np.sort(-reward_BG, axis=1)
  bar = np.quantile(reward_BG, 0.75)
  if gate == "better":
    bar = reward_BG.mean(axis=1, keepdims=True) + 0.5
  # Its first token numbers a sample.
  row_CM = np.asarray(batch.tokens_CMT[..., 0]) // 2
  order_C = row_CM[:, 0] // 6
  np.testing.assert_array_equal(batch.used_CM, (best_BM > bar)[order_C])
  assert 0 < np.mean(batch.used_CM) < 1


@functools.cache
def trained(gate):
  config = experiment(Judged(-1.0, 1.0), champion_gate=gate)
  return few_iterations.run(config, 60)


@pytest.mark.parametrize("gate", ["better", "quantile"])
def test_a_run_learns_from_a_judge(gate):
  """Nobody tells it what is correct, and it gets there."""
  m = trained(gate).metrics
  assert all(np.all(np.isfinite(v)) for k, v in m.items() if k != "tokens")
  np.testing.assert_allclose(m["correct"], (m["reward"] + 1) / 2, atol=1e-6)
  assert np.all(m["search_correct"] == 0) and np.any(m["champion_rate"] > 0)
  assert m["correct"][:5].mean() < 0.1 < 0.2 < m["correct"][-5:].mean()


def test_the_success_head_learns_how_far_from_0_to_1():
  config = experiment(
    Always(1.5), champion_weight=0.0, policy_weight=0.0, success_weight=1.0
  )
  ran = few_iterations.run(config, 40)
  np.testing.assert_allclose(ran.metrics["correct"], 0.25, rtol=1e-6)
  model = nnx.merge(ran.graphdef, ran.state.params)
  prompts = jax.tree.map(lambda a: jnp.asarray(a[0]), ran.prompts)
  tokens_Q1T = jnp.full((len(prompts), 1, 3), small_game.EOS)
  x_Q1TD = scoring.hidden_states(
    model, prompts, tokens_Q1T, config.learner_config().prompt_form
  )
  _, logit_Q1T = model.values(x_Q1TD[:, :, :1])
  np.testing.assert_allclose(jax.nn.sigmoid(logit_Q1T), 0.25, atol=0.02)


MODES = "greedy,mean@4,best@4,vote@4,pass@2,pass@4,search@20"


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (1.0, 3.0)])
def test_accuracy_is_the_mean_reward_from_0_to_1(low, high):
  config = experiment(Judged(low, high), champion_gate="better")
  task = config.make_task()
  graphdef, params = trained("better").graphdef, trained("better").state.params
  prompts = data.load_problems(config.task, "validation")
  found = evaluation.evaluate(graphdef, params, task, prompts, MODES, seed=3)
  for mode in ("greedy", "mean@4", "best@4", "vote@4", "search@20"):
    expected = (found[mode]["reward"] - low) / (high - low)
    assert found[mode]["accuracy"] == pytest.approx(expected, abs=1e-6), mode
  assert 0 < found["mean@4"]["accuracy"] < found["best@4"]["accuracy"]
  assert found["best@4"]["accuracy"] <= found["search@20"]["accuracy"]
  # pass@K: what the best of K samples is worth, in the mean over all draws.
  _, reward_QG, _, _ = evaluation.draw(
    graphdef, params, task, prompts, jax.random.key(3), jnp.float32(1),
    samples=4,
  )  # fmt: skip
  unit_QG = (np.asarray(reward_QG) - low) / (high - low)
  pairs = [unit_QG[:, p].max(1) for p in itertools.combinations(range(4), 2)]
  assert found["pass@2"]["accuracy"] == pytest.approx(np.mean(pairs))
  assert found["pass@4"]["accuracy"] == pytest.approx(unit_QG.max(1).mean())


def test_what_nobody_knows_is_said_of_no_sample():
  config = experiment(Judged(-1.0, 1.0), champion_gate="better")
  graphdef, params = initial_params(config)
  task = config.make_task()
  prompts = data.load_problems(config.task, "validation")[:2]
  (rows, _) = samples.responses_to(
    graphdef, params, task, prompts, task.tokenizer, seed=0, count=3
  )
  assert [row["correct"] for row in rows] == [None] * 3
  assert all(-1 <= row["reward"] <= 1 for row in rows)


@functools.cache
def unscaled(algorithm):
  return few_iterations.run(experiment(None, algorithm), 2)


@pytest.mark.parametrize(("factor", "offset"), [(2.0, -1.0), (5.0, 0.0)])
@pytest.mark.parametrize("algorithm", ["tsd", "grpo"])
def test_where_the_method_is_free_of_scale_so_is_training(
  algorithm, factor, offset
):
  """Group advantages are; the searches read rewards from 0 to 1."""
  own = unscaled(algorithm)
  reward = Scale(TaskReward(), factor, offset)
  scaled = few_iterations.run(experiment(reward, algorithm), 2)
  m, n = own.metrics, scaled.metrics
  np.testing.assert_allclose(
    n["reward"], factor * m["reward"] + offset, rtol=1e-5
  )
  same = ["correct", "entropy", "response_length"]
  if algorithm == "tsd":
    same += ["search_correct", "champion_rate", "champion_ce", "success_loss"]
    np.testing.assert_allclose(
      n["search_reward"], factor * m["search_reward"] + offset, rtol=1e-5
    )
  for name in same:
    np.testing.assert_allclose(n[name], m[name], rtol=1e-4, err_msg=name)
  step = few_iterations.moved(own)
  for a, b in zip(
    jax.tree.leaves(own.state.params),
    jax.tree.leaves(scaled.state.params),
    strict=True,
  ):
    # The 1e-4 beside a group's standard deviation is of the reward's scale.
    np.testing.assert_allclose(a, b, atol=0.02 * step)
