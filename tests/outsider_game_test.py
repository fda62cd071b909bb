"""A user's game (`small_game.py`) and a plain reward function, from files.

A config file names them, flags reach their fields, a run trains on them, and
its folder is read back. Nothing of the library knows either.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small_game
from tests.few_iterations import moved, run
from tsd_jax.base import config as config_lib
from tsd_jax.models import hf
from tsd_jax.run import load, train
from tsd_jax.tasks import data
from tsd_jax.tasks.task import Task

CONFIG = '''
"""One digit, and a reward that prefers small ones."""

import dataclasses

from tests import outsider_game_test, small_game


def get_config():
  return dataclasses.replace(
    small_game.get_config(),
    task=small_game.BackwardsConfig(digits=1),
    reward=outsider_game_test.prefer_small,
  )
'''


def prefer_small(prompts, response_BGT, score):
  """The game's reward, less up to a tenth for a large first digit."""
  del prompts
  first_BG = response_BGT[..., 0].astype(jnp.float32)
  return score._replace(
    reward_X=score.reward_X * (1 - 0.01 * first_BG),
    parts={"first": first_BG},
  )


@pytest.fixture
def config(tmp_path):
  file = tmp_path / "my_experiment.py"
  file.write_text(CONFIG)
  return config_lib.from_flags(
    str(file), {"task.digits": "3", "optimizer.learning_rate": "3e-3"}
  )


def test_it_is_a_task_and_its_problems_are_kept_apart():
  config = small_game.BackwardsConfig()
  assert isinstance(config.make(), Task) and hash(config.make())
  split = {
    name: {
      config.canonical(p) for p in data.load_problems(config, name).tokens_BP
    }
    for name in data.filled_splits(config)
  }
  assert {n: len(s) for n, s in split.items()} == {
    "train": 20, "validation": 8, "test": 8,
  }  # fmt: skip
  assert len(set.union(*split.values())) == 36


def test_solutions_are_right_and_wrong_answers_are_not():
  config = small_game.BackwardsConfig()
  task, rng = config.make(), np.random.default_rng(0)
  posed = [config.pose(p, rng) for p in config.problems()]
  prompt_QP = np.array([p.prompt_P for p in posed])
  response_QT = np.array([p.response_T for p in posed])
  score = task.score(prompt_QP, response_QT)
  assert np.all(score.correct_X) and np.all(score.reward_X == 1)
  response_QT[:, 0] = (response_QT[:, 0] + 1) % 6
  score = task.score(prompt_QP, response_QT)
  assert not np.any(score.correct_X)
  np.testing.assert_allclose(score.reward_X, 1 / 2)


def test_flags_reach_the_games_fields(config):
  assert config.task.digits == 3
  changed = config_lib.override(config, {"task.digits": "1"})
  assert changed.make_task().prompt_length == 1
  with pytest.raises(Exception, match="use an integer in 1..4"):
    config_lib.override(config, {"task.digits": "9"})


@pytest.mark.slow
def test_a_run_learns_it():
  config = small_game.get_config()
  ran = run(dataclasses.replace(config, iterations=200), 200)
  reward = ran.metrics["reward"]
  assert reward[-20:].mean() > reward[:20].mean() + 0.2
  assert ran.metrics["correct"][-20:].mean() > 0.1
  assert moved(ran) > 0.01


def test_a_config_file_with_both_trains_and_is_read_back(config, tmp_path):
  last = train.train(config, tmp_path / "run")
  assert 0 < last["mean@2"]["reward"] < 1
  opened = load.open_run(tmp_path / "run")
  assert opened.config == config and opened.step == 2
  text = (tmp_path / "run" / "metrics.jsonl").read_text()
  assert "reward_first" in text and "NaN" not in text
  hf.save(
    tmp_path / "exported", config.model, opened.params,
    config.make_task().tokenizer, max_length=8,
  )  # fmt: skip
  exported = json.loads((tmp_path / "exported" / "tokenizer.json").read_text())
  assert exported["model"]["vocab"]["."] == small_game.EOS
  # The function is what scores.
  task = opened.config.make_task()
  prompts = data.load_problems(config.task, "validation")
  response_B1T = jnp.array(prompts.tokens_BP[:, [2, 0, 0, 0]])[:, None]
  response_B1T = response_B1T.at[..., -1].set(small_game.EOS)
  own = task.task.reward((), prompts, response_B1T, None)
  found = task.reward((), prompts, response_B1T, None)
  first_B1 = response_B1T[..., 0]
  np.testing.assert_allclose(
    found.reward_X, own.reward_X * (1 - 0.01 * first_B1), rtol=1e-6
  )
  assert jax.tree.all(jax.tree.map(jnp.array_equal, own[1], found[1]))
