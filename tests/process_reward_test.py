"""A search led by what the reward says of unfinished responses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import small_experiment, small_game
from tests.small_game import EOS, Backwards, BackwardsConfig
from tsd_jax.base import config as config_lib
from tsd_jax.base.errors import UserError
from tsd_jax.models import transformer
from tsd_jax.models.phrases import Phrases
from tsd_jax.rewards.algebra import Sum, TaskReward
from tsd_jax.rewards.around import Around
from tsd_jax.rewards.audited import Audited
from tsd_jax.rewards.constrained import Constrained
from tsd_jax.rewards.reward import Scorer
from tsd_jax.search import search as search_lib
from tsd_jax.search.best_first import BestFirst
from tsd_jax.search.config import SearchConfig
from tsd_jax.search.rules import PUCT
from tsd_jax.tasks.task import OwnReward, as_prompts

TASK = Backwards(BackwardsConfig(digits=3))
T = TASK.response_length
PROMPTS = np.array([(i % 6, i // 6, (3 * i) % 6) for i in range(32)], np.int32)


@dataclasses.dataclass(frozen=True)
class Onward(Around):
  """Whether all digits so far are right, the surer the more there are."""

  judges_steps = True

  def __call__(self, params, prompts, tokens_BGT, mask_BGT):
    return self.reward(params, prompts, tokens_BGT, mask_BGT)

  def progress(self, params, prompts, tokens_BT, mask_BT):
    asked_BT = jnp.flip(prompts.tokens_BP, axis=-1)
    asked_BT = jnp.pad(asked_BT, ((0, 0), (0, 1)), constant_values=EOS)
    wrong_B = jnp.any(mask_BT & (tokens_BT != asked_BT), axis=-1)
    far_B = (1.0 + mask_BT.sum(axis=-1)) / (T + 1)
    return jnp.where(wrong_B, 0.0, far_B)


REWARD = Onward(OwnReward(TASK))


@pytest.fixture(scope="module")
def search():
  config = transformer.ModelConfig(
    vocab_size=TASK.vocab_size, d_model=8, num_layers=1, num_heads=1,
    num_kv_heads=1, head_dim=8, d_mlp=8,
  )  # fmt: skip
  model = nnx.merge(*transformer.create(config, 3))

  def searched(reward=REWARD, **settings):
    return jax.jit(
      lambda prompts, key: search_lib.search(
        model, TASK, prompts, key, SearchConfig(**settings),
        scorer=Scorer(reward, TASK.end_ids, reward.load()),
      ).tree
    )(as_prompts(TASK, PROMPTS), jax.random.key(0))  # fmt: skip

  return searched


def expected(prompt_P, path):
  """What `Onward` says of a path, one token at a time."""
  right = [*prompt_P[::-1], EOS]
  if any(a != b for a, b in zip(path, right, strict=False)):
    return 0.0
  return (1 + len(path)) / (T + 1)


@pytest.mark.parametrize(
  "rule", [BestFirst(beta=8.0, stop_when_solved=False), PUCT()]
)
def test_leaves_are_worth_what_the_reward_says(search, rule):
  tree = search(rule=rule, num_simulations=12, leaf="progress")
  nodes, seen = jax.device_get(tree.embeddings), 0
  for b, prompt_P in enumerate(PROMPTS):
    for n in range(1, 13):
      over = nodes.finished[b, n] or nodes.cut_off[b, n]
      if tree.node_visits[b, n] == 0 or over:
        continue
      path = nodes.path_tokens[b, n][: nodes.depth[b, n]]
      worth = expected(prompt_P, path)
      assert abs(tree.raw_values[b, n] - worth) < 1e-4
      seen += worth > 0
  assert seen > 32


def test_a_search_that_is_told_solves_what_another_does_not(search):
  def solved(leaf):
    rule = BestFirst(beta=8.0)
    tree = search(rule=rule, num_simulations=24, leaf=leaf)
    return float(jnp.mean(jnp.any(tree.embeddings.correct, axis=1)))

  assert solved("none") < 0.5 < solved("progress")


def test_rewards_around_and_of_rewards_pass_it_on():
  prompts = as_prompts(TASK, PROMPTS)
  tokens_BT = jnp.asarray(
    np.pad(PROMPTS[:, ::-1], ((0, 0), (0, 1)), constant_values=EOS)
  )
  length_B = jnp.arange(32) % (T + 1)

  def said(reward):
    scorer = Scorer(reward, TASK.end_ids, reward.load())
    return np.asarray(scorer.progress(prompts, tokens_BT, length_B))

  own = said(REWARD)
  assert np.allclose(own, (1 + length_B) / (T + 1))
  plain = OwnReward(TASK)
  for reward in (
    Audited(REWARD, plain),
    Sum((plain, REWARD), weights=(1.0, 1.0)),
    Sum((TaskReward(), plain), weights=(1.0, 1.0)).bind(REWARD),
    Constrained(REWARD, Phrases(("0 0",))).bind(plain, TASK.tokenizer),
  ):
    assert reward.judges_steps and np.array_equal(said(reward), own)
  assert not plain.judges_steps
  with pytest.raises(ValueError, match="OwnReward judges no steps"):
    said(plain)


@pytest.mark.parametrize(
  "said, words",
  [
    (lambda mask_BT: mask_BT.sum(), r"int32\[\]; expected floating\[32\]"),
    (lambda mask_BT: mask_BT.sum(axis=-1), r"int32\[32\]"),
  ],
)
def test_what_is_no_number_for_each_is_refused(search, said, words):
  class Odd(Onward):
    def progress(self, params, prompts, tokens_BT, mask_BT):
      return said(mask_BT)

  with pytest.raises(ValueError, match=words):
    search(Odd(OwnReward(TASK)), num_simulations=2, leaf="progress")


def test_what_is_no_probability_is_kept_within_reason(search):
  class Wild(Onward):
    def progress(self, params, prompts, tokens_BT, mask_BT):
      far_B = mask_BT.sum(axis=-1) - 1.5
      return jnp.where(far_B < 0, jnp.nan, 1e9 * far_B)

  tree = search(Wild(OwnReward(TASK)), num_simulations=8, leaf="progress")
  assert bool(jnp.all(jnp.isfinite(tree.raw_values)))
  assert 0 <= float(tree.raw_values.min()) <= float(tree.raw_values.max()) <= 1


def test_a_run_whose_reward_judges_no_steps_is_refused():
  with pytest.raises(UserError, match="judges no steps: use search.leaf=none"):
    config_lib.override(
      small_experiment.get_config(), {"search.leaf": "progress"}
    )

  base = small_game.get_config()
  run = dataclasses.replace(
    base,
    reward=Onward(TaskReward()),
    search=dataclasses.replace(base.search, leaf="progress"),
  )
  assert run.learner_config().search.values_leaves
