"""Tasks that tests make up are tasks: they keep the protocol's promises."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.abstention_test import Riddles
from tests.constrained_test import Small
from tests.iteration_test import Copy
from tests.long_observations_test import Tool
from tests.observe_test import Turns
from tests.outsider_media_test import Brightest
from tests.padding_test import Sum
from tests.rollout_test import Short
from tests.search_test import Hash
from tests.sharding_test import Alike
from tests.small_game import Backwards
from tests.steps_test import Steps
from tests.transpositions_test import Bag, Last
from tsd_jax.rewards.reward import Scorer
from tsd_jax.tasks.task import Task, as_prompts, next_observation

FAKES = [
  Alike(), Backwards(), Bag(), Brightest(), Copy(), Hash(), Last(), Riddles(),
  Short(), Small(),
  Steps(), Sum(5, None, 0), Sum(8, 8, 1), Tool(), Turns(),
]  # fmt: skip
B, G = 5, 40


@pytest.fixture(params=FAKES, ids=lambda task: type(task).__name__)
def task(request):
  return request.param


def test_all_of_them_are_here():
  """Whatever has a reward or a score of its own, or derives from one."""
  classes = {
    node.name: node
    for file in sorted(pathlib.Path(__file__).parent.glob("*.py"))
    for node in ast.walk(ast.parse(file.read_text()))
    if isinstance(node, ast.ClassDef) and file.name != "fake_task.py"
  }

  def names(node):
    """What a class body defines."""
    return {
      name.id if isinstance(name, ast.Name) else name
      for statement in node.body
      for name in (
        getattr(statement, "targets", [getattr(statement, "name", "")])
      )
    }

  found = {
    name
    for name, node in classes.items()
    if names(node) & {"score", "reward", "observe"}
  }
  for _ in classes:
    found |= {
      name
      for name, node in classes.items()
      for base in node.bases
      if ast.unparse(base).split(".")[-1] in found
    }
  assert found == {type(task).__name__ for task in FAKES}


def test_it_is_a_task(task):
  assert isinstance(task, Task) and hash(task) == hash(task)
  assert 0 <= task.eos_id < task.vocab_size
  assert 0 <= task.pad_id < task.vocab_size
  assert task.shared_prefix_length < task.prompt_length
  assert (task.observe is None) == (task.observation_length == 0)
  assert set(task.step_end_ids) <= set(range(task.vocab_size))
  prompt_P = np.zeros(task.prompt_length, int)
  response_T = np.zeros(task.response_length, int)
  assert isinstance(task.describe(prompt_P, response_T, 0), str)


def responses(task, rng):
  """Prompts and G responses to each: some finished, padded after the end."""
  P, T = task.prompt_length, task.response_length
  prompt_BP = rng.integers(0, task.vocab_size, (B, P))
  prompt_BP[:, : task.shared_prefix_length] = 1
  tokens_BGT = rng.integers(0, task.vocab_size, (B, G, T))
  tokens_BGT = np.where(tokens_BGT == task.eos_id, 0, tokens_BGT)
  ends_BG1 = rng.integers(0, T + 3, (B, G, 1))
  at_T = np.arange(T)
  tokens_BGT = np.where(at_T == ends_BG1, task.eos_id, tokens_BGT)
  tokens_BGT = np.where(at_T > ends_BG1, task.pad_id, tokens_BGT)
  return as_prompts(task, prompt_BP.astype(np.int32)), tokens_BGT


def test_its_reward_scores_responses(task):
  prompts, tokens_BGT = responses(task, np.random.default_rng(0))
  # Which raises where shapes and kinds are not as they should be.
  scorer = Scorer(task.reward, task.end_ids)
  score = jax.device_get(jax.jit(scorer)(prompts, tokens_BGT))
  assert score.reward_X.shape == score.correct_X.shape == (B, G)
  reward = scorer.reward
  assert np.all(score.reward_X >= reward.low)
  assert np.all(score.reward_X <= reward.high)
  finished_BG = np.any(tokens_BGT == task.eos_id, axis=-1)
  assert not np.all(finished_BG)
  assert np.all(score.reward_X[~finished_BG] == reward.low)
  assert not np.any(score.correct_X[~finished_BG])
  assert np.ptp(score.reward_X[finished_BG]) > 0
  # A row's score is its own: neither its place nor the others change it.
  alone = jax.jit(scorer.one)(prompts, tokens_BGT[:, 3])
  np.testing.assert_array_equal(alone.reward_X, score.reward_X[:, 3])


def test_its_environment_writes_tokens(task):
  if task.observe is None:
    return
  prompts, tokens_BGT = responses(task, np.random.default_rng(1))
  most, T = task.observation_length, task.response_length
  observe = jax.jit(
    lambda *a: (task.observe(*a), next_observation(task, *a)[1])
  )
  written = np.zeros(most + 1, int)
  for g in range(G):
    length_B = np.random.default_rng(g).integers(0, T + 1, B)
    before_BT = np.where(
      np.arange(T) < length_B[:, None], tokens_BGT[:, g], task.pad_id
    )
    (token_BO, count_B), asked_B = jax.device_get(
      observe(prompts, before_BT, length_B)
    )
    assert token_BO.shape == (B, most) and count_B.shape == (B,)
    assert {token_BO.dtype, count_B.dtype} == {np.dtype("int32")}
    assert np.all((count_B >= 0) & (count_B <= most))
    real_BO = np.arange(most) < count_B[:, None]
    assert np.all((token_BO >= 0) & (token_BO < task.vocab_size) | ~real_BO)
    assert not np.any(asked_B[length_B == 0])
    written += np.bincount(count_B, minlength=most + 1)
  assert written[0] and written[most]


def test_its_states_are_integers(task):
  if task.state_key is None:
    return
  prompts, tokens_BGT = responses(task, np.random.default_rng(2))
  length_B = jnp.arange(B) % task.response_length
  key_BZ = jax.jit(task.state_key)(
    prompts.tokens_BP, jnp.asarray(tokens_BGT[:, 0]), length_B
  )
  assert key_BZ.ndim == 2 and len(key_BZ) == B
  assert jnp.issubdtype(key_BZ.dtype, jnp.integer)
