"""A reward's parameters live in the run's folder, wherever they came from."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small_game
from tsd_jax.base.errors import UserError
from tsd_jax.rewards.reward import Reward, Score
from tsd_jax.run import directory, load, reward_params, train


@dataclasses.dataclass(frozen=True)
class Weighed(Reward):
  """What a file's weights of tokens like: a reward model's part."""

  knows_correct, low, high = False, -1.0, 1.0

  file: str

  def load(self):
    return {"weight_V": jnp.asarray(np.load(self.file))}

  def __call__(self, params, prompts, tokens_BGT, mask_BGT):
    liked_BGT = params["weight_V"][tokens_BGT] * mask_BGT
    mean_BG = jnp.sum(liked_BGT, axis=-1) / jnp.sum(mask_BGT, axis=-1)
    return Score(jnp.tanh(mean_BG))


def write(file, seed):
  np.save(file, np.random.default_rng(seed).normal(size=8).astype("float32"))
  return str(file)


def experiment(file, iterations):
  base = small_game.get_config()
  return dataclasses.replace(
    base,
    reward=Weighed(file),
    iterations=iterations,
    loss=dataclasses.replace(base.loss, champion_gate="better"),
  )


def rows(folder):
  found = directory.read_rows(folder)
  for row in found:
    row.pop("seconds")
  return found


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_reward_that_it_began_with(tmp_path):
  file = write(tmp_path / "weights.npy", seed=1)
  first = np.load(file)
  train.train(experiment(file, 4), tmp_path / "whole")
  train.train(experiment(file, 2), tmp_path / "run")
  saved = (tmp_path / "run" / directory.REWARD).read_bytes()
  write(file, seed=2)  # Someone trains the reward model further.
  train.train(experiment(file, 4), tmp_path / "run")
  assert rows(tmp_path / "run") == rows(tmp_path / "whole")
  assert (tmp_path / "run" / directory.REWARD).read_bytes() == saved
  # So do evaluations; another run takes what is there now.
  opened = load.open_run(tmp_path / "run")
  np.testing.assert_array_equal(opened.reward_params["weight_V"], first)
  train.train(experiment(file, 2), tmp_path / "other")
  opened = load.open_run(tmp_path / "other")
  np.testing.assert_array_equal(opened.reward_params["weight_V"], np.load(file))
  assert rows(tmp_path / "other")[1:3] != rows(tmp_path / "whole")[1:3]


class Pair(NamedTuple):
  """A pytree of one's own."""

  left: Any
  right: Any


@dataclasses.dataclass(frozen=True)
class Loaded(Reward):
  """Any parameters, which it gives out once."""

  params: Any = dataclasses.field(compare=False)

  def load(self):
    return self.params

  def __call__(self, params, prompts, tokens_BGT, mask_BGT):
    raise NotImplementedError


PARAMS = Pair(
  {"b": np.float32(2.5), "a": np.arange(6, dtype=np.int32).reshape(2, 3)},
  [jnp.asarray([1.0, -3.0], jnp.bfloat16), np.array([True, False])],
)


def test_any_tree_of_arrays_comes_back_with_its_types(tmp_path):
  reward = Loaded(PARAMS)
  assert reward_params.read(reward, tmp_path) is PARAMS
  assert not list(tmp_path.iterdir())  # Whoever only reads writes nothing.
  assert reward_params.read(reward, tmp_path, keep=True) is PARAMS
  assert [f.name for f in tmp_path.iterdir()] == [directory.REWARD]
  other = Loaded(jax.tree.map(jnp.zeros_like, PARAMS))
  for keep in (False, True):
    found = reward_params.read(other, tmp_path, keep=keep)
    assert jax.tree.structure(found) == jax.tree.structure(PARAMS)
    for a, b in zip(
      jax.tree.leaves(found), jax.tree.leaves(PARAMS), strict=True
    ):
      assert jnp.asarray(a).dtype == jnp.asarray(b).dtype
      np.testing.assert_array_equal(
        np.asarray(a, np.float32), np.asarray(b, np.float32)
      )


def test_a_reward_without_parameters_leaves_no_file(tmp_path):
  assert reward_params.read(Loaded(()), tmp_path, keep=True) == ()
  assert not list(tmp_path.iterdir())


def _cut(file: pathlib.Path):
  file.write_bytes(file.read_bytes()[:-40])


def _flip(file: pathlib.Path):
  data = bytearray(file.read_bytes())
  data[len(data) // 3] ^= 0xFF
  file.write_bytes(data)


@pytest.mark.parametrize(
  "damage",
  [
    _cut,
    _flip,
    lambda file: file.write_bytes(b""),
    lambda file: file.write_text("no archive"),
  ],
)
def test_a_damaged_file_is_one_line(damage, tmp_path):
  reward = Loaded({"w": np.arange(400.0, dtype=np.float32)})
  reward_params.read(reward, tmp_path, keep=True)
  file = tmp_path / directory.REWARD
  damage(file)
  with pytest.raises(UserError, match="is damaged .*: delete it") as error:
    reward_params.read(reward, tmp_path)
  assert str(file) in str(error.value)
  file.unlink()
  reward_params.read(reward, tmp_path, keep=True)
  assert file.exists()


@pytest.mark.parametrize(
  "params",
  [
    {"w": np.zeros(3, np.float32)},
    {"w": np.zeros(4, np.float16)},
    {"w": np.zeros(4, np.float32), "x": np.zeros(1)},
  ],
)
def test_another_rewards_parameters_are_refused(params, tmp_path):
  reward = Loaded({"w": np.zeros(4, np.float32)})
  reward_params.read(reward, tmp_path, keep=True)
  with pytest.raises(UserError, match="another reward's parameters: use anoth"):
    reward_params.read(Loaded(params), tmp_path)


def test_a_damaged_file_stops_a_run_before_it_is_compiled(tmp_path):
  file = write(tmp_path / "weights.npy", seed=1)
  run = tmp_path / "run"
  run.mkdir()
  (run / directory.REWARD).write_bytes(b"PK")
  with pytest.raises(UserError, match="is damaged"):
    train.train(experiment(file, 2), run)
  assert not (run / directory.METRICS).exists()


def test_a_missing_model_is_one_line(tmp_path):
  reward = Weighed(str(tmp_path / "nowhere.npy"))
  with pytest.raises(UserError, match="Weighed cannot be loaded.*nowhere.npy"):
    reward_params.read(reward, tmp_path)
