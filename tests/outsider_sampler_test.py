"""A user's sampler: half of the rows at a temperature of their own.

All that it takes is the class `TwoTemperatures`; nothing of the library is
changed.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.few_iterations import eight_and_one, moved, run
from tsd_jax.base import config as config_lib
from tsd_jax.base.errors import ConfigError
from tsd_jax.inference import prefill, sampling
from tsd_jax.inference.rollout import Sampler, plain_samples
from tsd_jax.parallel import sharding
from tsd_jax.run import load, train
from tsd_jax.run.experiment import initial_params
from tsd_jax.tasks import data
from tsd_jax.tasks.task import prompt_form


@dataclasses.dataclass(frozen=True)
class TwoTemperatures(Sampler):
  """The first half of a prompt's rows at `hot`, the rest as the loss reads."""

  hot: float = 1.5

  def __post_init__(self):
    super().__post_init__()
    if self.hot <= 0:
      raise ValueError(f"rollout.hot={self.hot} must be > 0")

  def temperatures(self, prompts: int):
    """Of every row, R1."""
    first_G = jnp.arange(self.samples) < self.samples // 2
    return jnp.tile(jnp.where(first_G, self.hot, self.temperature), prompts)[
      :, None
    ]

  def __call__(self, model, task, prompts, key):
    B, G = len(prompts), self.samples
    prefix = prefill.prefill(model, prompts, prompt_form(task))
    sampled = sampling.sample(
      model,
      prefill.repeat_rows(prefix, G),
      sampling.row_keys(key, B, G),
      length=task.response_length,
      end_ids=task.end_ids,
      pad_id=task.pad_id,
      temperature=self.temperatures(B),
      observe=sampling.observer(task, prompts),
    )
    return plain_samples(task, prompts, sampled), sampled.forwards


CONFIG = """
import dataclasses

from outsider_sampler_test import TwoTemperatures
from tests import small_game


def get_config():
  return dataclasses.replace(
    small_game.get_config(),
    rollout=TwoTemperatures(
      prompts=8, samples=6, baseline_prompts=8, temperature=0.8, hot=2.0
    ),
  )
"""


@pytest.fixture
def file(tmp_path):
  file = tmp_path / "my_sampler.py"
  file.write_text(CONFIG)
  return str(file)


def full_log_probs(model, prompts, tokens_BGT, temperature_R1):
  """Log pi of every token by one forward over prompt and response, BGT."""
  B, G, T = tokens_BGT.shape
  P = prompts.tokens_BP.shape[1]
  prompt_RP = jnp.repeat(prompts.tokens_BP, G, axis=0)
  tokens_RS = jnp.concatenate([prompt_RP, tokens_BGT.reshape(B * G, T)], axis=1)
  logits_RTV = model(tokens_RS)[:, P - 1 : -1] / temperature_R1[..., None]
  log_prob_RT = jnp.take_along_axis(
    jax.nn.log_softmax(logits_RTV), tokens_BGT.reshape(B * G, T, 1), axis=2
  )
  return log_prob_RT.reshape(B, G, T)


def sharp_params(config):
  """Parameters that are sure of something, so that a temperature matters."""
  graphdef, params = initial_params(config)
  return graphdef, jax.tree.map(lambda a: 2.0 * a, params)


def test_the_behaviour_is_that_of_every_rows_own_temperature(file):
  config = config_lib.load(file)
  graphdef, params = sharp_params(config)
  model, task = nnx.merge(graphdef, params), config.make_task()
  prompts = data.load_problems(config.task, "train")[:8]
  prompts = jax.tree.map(jnp.asarray, prompts)
  sampler = config.rollout
  samples, forwards = jax.jit(lambda key: sampler(model, task, prompts, key))(
    jax.random.key(3)
  )
  assert samples.tokens_BGT.shape == (8, 6, task.response_length)
  temperature_R1 = sampler.temperatures(8)
  assert set(np.asarray(temperature_R1[:6, 0]).tolist()) == {
    2.0, np.float32(0.8),
  }  # fmt: skip
  expected_BGT = full_log_probs(
    model, prompts, samples.tokens_BGT, temperature_R1
  )
  mask_BGT = np.asarray(samples.mask_BGT)
  np.testing.assert_allclose(
    samples.log_prob_BGT, np.where(mask_BGT, expected_BGT, 0.0), atol=2e-5
  )
  # All rows run until the longest one's last token.
  assert int(forwards) == 8 * 6 * (mask_BGT.sum(-1).max() - 1)


def test_the_hot_rows_follow_their_distribution(file):
  """First tokens, of many draws, against the softmax at both temperatures."""
  config = config_lib.from_flags(file, {"rollout.samples": "4000"})
  graphdef, params = sharp_params(config)
  model, task = nnx.merge(graphdef, params), config.make_task()
  prompts = data.load_problems(config.task, "train")[:1]
  prompts = jax.tree.map(jnp.asarray, prompts)
  samples, _ = jax.jit(lambda key: config.rollout(model, task, prompts, key))(
    jax.random.key(0)
  )
  logits_V = model(prompts.tokens_BP)[0, -1]
  for rows, temperature in ((slice(2000), 2.0), (slice(2000, None), 0.8)):
    found_V = np.bincount(samples.tokens_BGT[0, rows, 0], minlength=8) / 2000
    expected_V = np.asarray(jax.nn.softmax(logits_V / temperature))
    spread_V = np.sqrt(expected_V * (1 - expected_V) / 2000)
    assert np.all(np.abs(found_V - expected_V) < 5 * spread_V + 1e-3)


def test_the_losses_importance_ratios_are_the_full_forwards(file):
  """pi at the loss's temperature over mu at the row's own."""
  config = config_lib.from_flags(
    file,
    {
      "algorithm": "grpo",
      "optimizer.minibatches": "1",
      "optimizer.learning_rate": "1e-9",
    },
  )
  ran = run(config, 1)
  learner, task = config.learner_config(), config.make_task()
  assert isinstance(learner.rollout, TwoTemperatures)
  key = jax.random.fold_in(jax.random.key(config.seed), 0)
  rollout_key = jax.random.split(key, 5)[3]
  model = nnx.merge(ran.graphdef, jax.tree.map(jnp.asarray, ran.before))
  B = learner.rollout.prompts
  prompts = jax.tree.map(lambda a: jnp.asarray(a[0][:B]), ran.prompts)
  samples, _ = learner.rollout(model, task, prompts, rollout_key)
  tokens_BGT, mask_BGT = samples.tokens_BGT, np.asarray(samples.mask_BGT)

  def log_probs(temperature_R1):
    return np.asarray(
      full_log_probs(model, prompts, tokens_BGT, temperature_R1)
    )

  own_R1 = learner.rollout.temperatures(B)
  ratio_BGT = np.exp(log_probs(jnp.full_like(own_R1, 0.8)) - log_probs(own_R1))
  half = learner.rollout.samples // 2
  assert np.abs(ratio_BGT - 1)[:, :half].max() > 1e-3
  np.testing.assert_allclose(ratio_BGT[:, half:], 1.0, atol=1e-6)
  assert ran.metrics["ratio"][0] == pytest.approx(
    ratio_BGT[mask_BGT].mean(), abs=1e-6
  )
  log_ratio = np.log(ratio_BGT[mask_BGT])
  assert ran.metrics["approx_kl"][0] == pytest.approx(
    np.mean(np.exp(log_ratio) - 1 - log_ratio), abs=1e-6
  )


def test_flags_say_its_fields(file):
  config = config_lib.from_flags(file, {"rollout.hot": "1.25"})
  assert config.rollout.hot == 1.25 and config.rollout.samples == 6
  with pytest.raises(ConfigError, match="rollout.hot=-1.0 must be > 0"):
    config_lib.from_flags(file, {"rollout.hot": "-1"})


@pytest.mark.slow
def test_a_run_of_a_config_file_trains_and_is_read_back(file, tmp_path):
  config = config_lib.from_flags(file, {"rollout.hot": "1.25"})
  train.train(config, tmp_path / "run")
  opened = load.open_run(tmp_path / "run")
  assert opened.config == config and opened.step == 2


@pytest.mark.slow
def test_eight_devices_sample_the_same_rows(file):
  mesh = sharding.MeshConfig(data=8)
  eight, one = eight_and_one(config_lib.load(file), mesh)
  assert moved(one) > 1e-5
  for name in ("reward", "response_length", "ratio"):
    np.testing.assert_allclose(
      eight.metrics[name][0], one.metrics[name][0], rtol=1e-5
    )
