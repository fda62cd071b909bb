"""A user's reward model: parameters of its own, and nobody knows the truth.

All that it takes is the class `Preferences`; nothing of the library is changed.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.few_iterations import moved, run
from tests.small_game import get_config
from tsd_jax.base.ledger import Ledger
from tsd_jax.models import transformer
from tsd_jax.models.flops import flops_per_token
from tsd_jax.parallel import sharding
from tsd_jax.rewards.algebra import Gate, Sum, TaskReward
from tsd_jax.rewards.reward import Reward, Score, Scorer
from tsd_jax.rewards.terms import Length
from tsd_jax.run import evaluation, load, train
from tsd_jax.run.hacking import Audit
from tsd_jax.tasks import data

SHAPE = transformer.ModelConfig(
  vocab_size=8, d_model=8, num_layers=1, num_heads=1, num_kv_heads=1,
  head_dim=8, d_mlp=8,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Preferences(Reward):
  """How much better a small Transformer likes a response than its siblings.

  Its raw opinion is -3..3; less `relative` of the mean over the G responses of
  the prompt it is -6..6.
  """

  low, high, knows_correct = -6.0, 6.0, False

  shape: transformer.ModelConfig = SHAPE
  seed: int = 7
  relative: float = 0.5

  def load(self):
    """As if they were read from a file."""
    head_D = jax.random.normal(jax.random.key(self.seed), (self.shape.d_model,))
    return {
      "trunk": transformer.create(self.shape, self.seed)[1],
      "head_D": head_D,
    }

  def flops(self, prompt_length, response_length):
    return (prompt_length + response_length) * flops_per_token(self.shape)

  def __call__(self, params, prompts, tokens_BGT, mask_BGT):
    graphdef, _ = transformer.abstract(self.shape)
    model = nnx.merge(graphdef, params["trunk"])
    B, G, T = tokens_BGT.shape
    P = prompts.tokens_BP.shape[1]
    prompt_BGP = jnp.broadcast_to(prompts.tokens_BP[:, None], (B, G, P))
    tokens_RS = jnp.concatenate([prompt_BGP, tokens_BGT], axis=2)
    tokens_RS = tokens_RS.reshape(B * G, P + T)
    positions_RS = jnp.broadcast_to(jnp.arange(P + T)[None], tokens_RS.shape)
    x_RSD = model.trunk(tokens_RS, positions_RS).x_RTD
    last_R = P + jnp.sum(mask_BGT, axis=2).reshape(-1) - 1
    x_RD = jnp.take_along_axis(x_RSD, last_R[:, None, None], axis=1)[:, 0]
    raw_BG = 3 * jnp.tanh(x_RD @ params["head_D"]).reshape(B, G)
    mean_B1 = jnp.mean(raw_BG, axis=1, keepdims=True)
    return Score(raw_BG - self.relative * mean_B1, None, {"raw": raw_BG})


def experiment(reward=None, **changes):
  base = get_config()
  loss = dataclasses.replace(base.loss, champion_gate="better")
  reward = Preferences() if reward is None else reward
  return dataclasses.replace(base, loss=loss, reward=reward, **changes)


@pytest.fixture(scope="module")
def ran():
  return run(experiment(), 3)


def test_it_trains_and_its_values_are_of_its_own_range(ran):
  m = ran.metrics
  assert all(np.all(np.isfinite(v)) for k, v in m.items() if k != "tokens")
  assert moved(ran) > 1e-5
  for name in ("reward", "reward_raw", "search_reward"):
    assert np.all(np.abs(m[name]) < 6) and np.any(m[name] != 0), name
  # Half of the mean over the group is taken off every response.
  np.testing.assert_allclose(m["reward"], 0.5 * m["reward_raw"], rtol=1e-4)
  # Nobody knows the truth: success is how high the reward is.
  np.testing.assert_allclose(m["correct"], (m["reward"] + 6) / 12, rtol=1e-5)
  assert np.all(m["champion_rate"] > 0) and np.all(m["search_correct"] == 0)


def test_its_parameters_stay_and_are_not_donated(ran):
  fresh = Preferences().load()
  # They can still be read, and are what they were.
  jax.tree.map(np.testing.assert_array_equal, ran.fixed.reward, fresh)
  assert ran.state._fields == (
    "params", "opt_state", "search_params", "iteration",
  )  # fmt: skip


def test_its_operations_are_in_the_ledger():
  """In tokens of the policy, one charge a response that it reads."""
  config = experiment()
  config = dataclasses.replace(
    config,
    search=dataclasses.replace(
      config.search,
      rule=dataclasses.replace(config.search.rule, stop_when_solved=False),
    ),
  )
  tokens = run(config, 1).metrics["tokens"]
  task = config.make_task()
  flops = Preferences().flops(task.prompt_length, task.response_length)
  each = math.ceil(flops / flops_per_token(config.model))
  assert each > 1
  B, Q, N = config.rollout.prompts, config.learner_config().prompts, 12
  # Roots hold an answer too, and a champion is scored again for its parts.
  scored = B * config.rollout.group + Q * (N + 2)
  ledger = Ledger()
  ledger.add(jax.tree.map(lambda a: a[0], tokens), each)
  assert ledger.reward == scored * each
  assert config.learner_config().reward_tokens == each


def test_it_sees_all_responses_of_a_prompt():
  config = experiment()
  task = config.make_task()
  prompts = data.load_problems(config.task, "validation")[:3]
  rng = np.random.default_rng(0)
  tokens_BGT = rng.integers(0, 6, (3, 4, task.response_length))
  tokens_BGT[:, :2, 1:] = task.eos_id
  reward = task.reward
  scorer = Scorer(reward, task.end_ids, reward.load())
  score = scorer(prompts, jnp.asarray(tokens_BGT))
  raw_BG = np.asarray(score.parts["raw"])
  expected_BG = raw_BG - 0.5 * raw_BG.mean(axis=1, keepdims=True)
  np.testing.assert_allclose(score.reward_X, expected_BG, atol=1e-5)
  # A search shows it one at a time.
  one = scorer.one(prompts, jnp.asarray(tokens_BGT[:, 0]))
  np.testing.assert_allclose(one.reward_X, 0.5 * raw_BG[:, 0], atol=1e-5)


@pytest.mark.slow
def test_two_runs_in_one_program_are_each_the_run_alone(ran):
  both = run(experiment(), 3, vmapped=True)
  for lane in range(2):
    for name in ("reward", "search_reward", "champion_rate"):
      np.testing.assert_allclose(
        both.metrics[name][lane], ran.metrics[name], rtol=2e-3, atol=2e-4
      )


@pytest.mark.slow
def test_eight_devices_see_what_one_does(ran):
  base = get_config()
  mesh = sharding.MeshConfig(data=4, fsdp=2)
  config = experiment(
    mesh=mesh,
    optimizer=dataclasses.replace(base.optimizer, minibatches=1),
    search=dataclasses.replace(base.search, trees=2),
  )
  eight = run(config, 1, mesh=sharding.make_mesh(mesh))
  for name in ("reward", "reward_raw", "search_reward"):
    np.testing.assert_allclose(
      eight.metrics[name][0], ran.metrics[name][0], rtol=1e-5
    )
  jax.tree.map(
    np.testing.assert_array_equal, eight.fixed.reward, Preferences().load()
  )


@pytest.mark.slow
def test_a_command_trains_with_it_evaluates_and_reads_it_back(tmp_path):
  """Its parameters come from the run's folder, wherever they came from."""
  config = dataclasses.replace(experiment(), iterations=2)
  last = train.train(config, tmp_path)
  assert -6 < last["mean@2"]["reward"] < 6
  opened = load.open_run(tmp_path)
  assert opened.config == config
  jax.tree.map(
    np.testing.assert_array_equal, opened.reward_params, Preferences().load()
  )
  found = evaluation.evaluate(
    opened.graphdef, opened.params, config.make_task(),
    data.load_problems(config.task, "validation"), config.eval.modes,
    seed=config.seed, reward_params=opened.reward_params,
  )  # fmt: skip
  assert found["mean@2"]["reward"] == pytest.approx(last["mean@2"]["reward"])


@pytest.mark.slow
def test_it_takes_part_in_a_combination():
  """The model's likes, behind the gate of a right answer."""
  reward = Gate(TaskReward(), Sum((Preferences(), Length()), (0.1, 0.2)))
  config = experiment(reward, audit=Audit(TaskReward()))
  config = dataclasses.replace(config, loss=get_config().loss)
  task = config.make_task()
  assert task.reward.knows_correct and task.reward.low == pytest.approx(-0.8)
  ran = run(config, 1)
  m = ran.metrics
  np.testing.assert_array_equal(m["reward_open"], m["correct"])
  assert np.all(m["reward_open"] < 0.5)
  # An open gate is worth what is behind it, a shut one the least.
  low, least = task.reward.low, (1 - m["reward_open"]) * task.reward.low
  assert np.all(m["reward"] >= low - 1e-6)
  assert np.all(m["reward"] <= least + 0.6 * m["reward_open"] + 1e-6)
  assert {
    "reward_own", "reward_sum", "reward_sum.preferences",
    "reward_sum.preferences.raw", "reward_sum.length",
  } <= set(m)  # fmt: skip
  # Only right answers are distilled, and the audit is of the same mind.
  assert np.all(m["champion_rate"] > 0)
  np.testing.assert_allclose(m["champion_reward_open"], 1.0, rtol=1e-6)
  np.testing.assert_allclose(m["champion_accepted"], 1.0, rtol=1e-6)
  np.testing.assert_array_equal(m["accepted"], m["correct"])
  assert np.all(m["tokens"].scored > 0)
  assert config.learner_config().reward_tokens > 0
