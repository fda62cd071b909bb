"""What keeps a policy gradient steady: a floor under the spread, and a clip."""

import dataclasses
import math

import numpy as np
import pytest

from tests import small_experiment
from tsd_jax.base.errors import UserError
from tsd_jax.base.types import Responses
from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.learning import iteration
from tsd_jax.learning.config import LossConfig, OptimizerConfig
from tsd_jax.run import checks

BASE = small_experiment.get_config().learner_config()
B, G, T = 6, 6, 4
RNG = np.random.default_rng(0)
TOKENS_BGT = RNG.integers(0, 9, (B, G, T))


def sampled(reward_BG):
  whole_BGT = np.ones((B, G, T), bool)
  return Responses(
    tokens_BGT=TOKENS_BGT,
    mask_BGT=whole_BGT,
    log_prob_BGT=np.zeros((B, G, T)),
    value_BGT=np.zeros((B, G, T)),
    entropy_BGT=np.zeros((B, G, T)),
    parent_BG=np.broadcast_to(np.arange(G), (B, G)),
    fork_BG=np.zeros((B, G), int),
    reward_BG=np.asarray(reward_BG, np.float32),
    correct_BG=None,
  )


def advantages_of(kind, reward_BG, **loss):
  config = dataclasses.replace(
    BASE,
    rollout=RolloutConfig(prompts=B, samples=G, forks=0),
    loss=LossConfig(
      advantage=kind, value_weight=0.5, distilled_prompts=8, **loss
    ),
  )
  return np.asarray(
    iteration.token_advantages(sampled(reward_BG), config)[0], np.float64
  )


@pytest.mark.parametrize("kind", ["tree", "prefix", "group"])
def test_noise_below_the_epsilon_is_not_blown_up(kind):
  """Rewards that differ by noise alone: of size 1 before, of none after."""
  noise_BG = 0.5 + 0.01 * RNG.uniform(-1, 1, (B, G))
  loud = advantages_of(kind, noise_BG)
  quiet = advantages_of(kind, noise_BG, advantage_epsilon=0.1)
  assert np.abs(loud).max() > 0.9 and np.abs(quiet).max() < 0.02 / 0.1
  # What differs by a whole reward is heard nearly as before.
  right_BG = np.broadcast_to(np.arange(G) < G / 2, (B, G)) + noise_BG - 0.5
  before = advantages_of(kind, right_BG)
  after = advantages_of(kind, right_BG, advantage_epsilon=0.1)
  std_B11 = right_BG.std(axis=1)[:, None, None]
  expected = before * (std_B11 + 1e-4) / (std_B11 + 0.1)
  np.testing.assert_allclose(after, expected, rtol=1e-3, atol=1e-4)
  assert (np.abs(after) > 0.8 * np.abs(before) - 1e-3).all()


@pytest.mark.parametrize("kind", ["tree", "prefix", "group", "centred", "gae"])
def test_an_outlier_weighs_no_more_than_the_clip(kind):
  reward_BG = RNG.uniform(0, 1, (B, G))
  reward_BG[0, 0] = 50.0
  whole = advantages_of(kind, reward_BG)
  clipped = advantages_of(kind, reward_BG, advantage_clip=1.5)
  assert np.abs(whole).max() > 1.6
  np.testing.assert_allclose(clipped, np.clip(whole, -1.5, 1.5), rtol=1e-6)


@pytest.mark.parametrize("config, field, value, said", [
  (LossConfig(), "advantage_epsilon", 0.0, "must be above 0"),
  (LossConfig(), "advantage_clip", -1.0, "must not be negative"),
  (LossConfig(), "champion_weight", math.nan, "must not be negative"),
  (LossConfig(), "kl_weight", math.inf, "must not be negative, and be finite"),
  (LossConfig(), "discount", 1.5, r"must lie in \[0, 1\]"),
  (LossConfig(), "gae_lambda", -3.0, r"must lie in \[0, 1\]"),
  (LossConfig(), "local_weight", 7.0, r"must lie in \[0, 1\]"),
  (OptimizerConfig(), "b1", 1.0, r"must lie in \[0, 1\)"),
  (OptimizerConfig(), "b2", 2.0, r"must lie in \[0, 1\)"),
  (OptimizerConfig(), "learning_rate", math.nan, "must be positive"),
  (OptimizerConfig(), "learning_rate", math.inf, "must be positive, and fin"),
  (RolloutConfig(), "temperature", math.nan, "must be 1e-06 or more, and"),
])  # fmt: skip
def test_impossible_settings_are_refused(config, field, value, said):
  with pytest.raises(ValueError, match=rf"\.{field}={value} {said}"):
    dataclasses.replace(config, **{field: value})


def test_a_broken_reward_is_not_blamed_on_the_rate():
  def said(metric):
    with pytest.raises(UserError) as caught:
      checks.check_rows([{"step": 1, metric: math.nan}], "run", "kept")
    return str(caught.value)

  assert "See what the reward gives" in said("reward")
  assert "learning_rate" not in said("reward_length")
  assert "learning_rate" in said("loss")
