"""A user's task with pictures in its prompts, read through a stub encoder.

All that it takes is `TaskConfig.media`; nothing of the library is changed.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import small_game
from tests.few_iterations import eight_and_one, moved, run
from tsd_jax.base.types import Media
from tsd_jax.inference import prefill, scoring
from tsd_jax.parallel import sharding
from tsd_jax.rewards.reward import Score, response_mask
from tsd_jax.run import evaluation, load, train
from tsd_jax.run.experiment import initial_params
from tsd_jax.search.search import search
from tsd_jax.tasks import data
from tsd_jax.tasks.task import OwnReward, Posed, TaskConfig, prompt_form

PICTURE, ASK, EOS, PAD = 4, 5, 6, 7  # Answers are 0..3, the quadrants.
WIDTH = small_game.get_config().model.d_model


@dataclasses.dataclass(frozen=True)
class BrightestConfig(TaskConfig):
  """Which quadrant of a picture of 4 x 4 pixels is the brightest?"""

  validation_size: int = 8
  test_size: int = 8
  count: int = 64
  blind: bool = False

  @property
  def dataset(self):
    return f"count{self.count}_{self.split}"

  def make(self):
    return Brightest(self)

  def problems(self):
    return list(range(self.count))

  def pictures(self):
    """All of them, and their answers."""
    rng = np.random.default_rng(self.seed)
    answer_Q = np.arange(self.count) % 4
    picture_Qhw = rng.uniform(0.0, 0.3, (self.count, 4, 4))
    for picture_hw, answer in zip(picture_Qhw, answer_Q, strict=True):
      row, column = divmod(int(answer), 2)
      picture_hw[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 0.7
    return picture_Qhw.astype(np.float32), answer_Q.astype(np.int32)

  def pose(self, problem, rng):
    del rng
    _, answer_Q = self.pictures()
    return Posed(
      np.array([PICTURE, PICTURE, ASK], np.int32),
      np.array([answer_Q[problem], EOS], np.int32),
    )

  def canonical(self, prompt_P):
    raise ValueError("all prompts have the same text")

  def warm_start(self, rng, count, relabel_fraction, excluded=()):
    raise ValueError("there is none")

  def media(self, prompts):
    """Each half of a picture, through an encoder, at a placeholder."""
    if self.blind:
      return None
    picture_Qhw, _ = self.pictures()
    halves_BJX = picture_Qhw[np.asarray(prompts.example_B)].reshape(-1, 2, 8)
    position_BJ = jnp.broadcast_to(jnp.arange(2), halves_BJX.shape[:2])
    return Media(encode(halves_BJX), position_BJ)


def encode(patch_XP):
  """The stub: a fixed projection of pixels to the model's width."""
  weight_PD = np.random.default_rng(5).normal(size=(8, WIDTH))
  return jnp.asarray(patch_XP @ weight_PD / 8, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Brightest:
  """What the compiled loop sees; the answers are told by the examples."""

  config: BrightestConfig = BrightestConfig()

  name = "brightest"
  vocab_size, eos_id, pad_id = 8, EOS, PAD
  end_ids = (EOS,)
  tokenizer = small_game.Tokenizer()
  prompt_length, response_length = 3, 2
  prompt_pad_id, shared_prefix_length, step_end_ids = None, 0, ()
  observe, observation_length, state_key = None, 0, None

  @property
  def reward(self):
    return Names(self)

  def describe(self, prompt_P, response_T, example=None):
    return f"picture {example} | {self.tokenizer.decode(response_T)}"


@dataclasses.dataclass(frozen=True)
class Names(OwnReward):
  """1 for the right quadrant and the end; the example says which picture."""

  def __call__(self, params, prompts, tokens_BGT, mask_BGT):
    _, answer_Q = self.task.config.pictures()
    answer_B1 = jnp.asarray(answer_Q)[prompts.example_B][:, None]
    right_BG = (tokens_BGT[..., 0] == answer_B1) & (tokens_BGT[..., 1] == EOS)
    return Score(right_BG.astype(jnp.float32), right_BG)


def experiment(**task):
  return dataclasses.replace(
    small_game.get_config(), task=BrightestConfig(**task)
  )


def problems(config, split="validation"):
  return jax.tree.map(jnp.asarray, data.load_problems(config.task, split))


def by_hand(model, prompts, tokens_BGT):
  """Log pi of every next token, after one full forward, BGTV.

  The placeholders' embeddings are replaced with NumPy.
  """
  B, G, T = tokens_BGT.shape
  P = prompts.tokens_BP.shape[1]
  table_VD = np.asarray(model.embedding_VD[...])
  prompt_BPD = table_VD[np.asarray(prompts.tokens_BP)]
  for b in range(B):
    for j, at in enumerate(np.asarray(prompts.media.position_BJ[b])):
      prompt_BPD[b, at] = prompts.media.embedding_BJD[b, j]
  x_RSD = np.concatenate(
    [np.repeat(prompt_BPD, G, axis=0),
     table_VD[np.asarray(tokens_BGT).reshape(B * G, T)]], axis=1,
  )  # fmt: skip
  positions_RS = jnp.broadcast_to(jnp.arange(P + T)[None], (B * G, P + T))
  x_RSD = model.trunk(jnp.asarray(x_RSD), positions_RS).x_RTD
  log_prob_RSV = jax.nn.log_softmax(model.logits(x_RSD))
  return np.asarray(log_prob_RSV[:, P - 1 : -1]).reshape(B, G, T, -1)


def test_prompts_carry_their_own_pictures():
  config = experiment()
  prompts = data.load_problems(config.task, "train")
  assert prompts.media.embedding_BJD.shape == (48, 2, WIDTH)
  assert isinstance(prompts.media.embedding_BJD, np.ndarray)
  picture_Qhw, _ = config.task.pictures()
  for b in (0, 17):
    halves = picture_Qhw[prompts.example_B[b]].reshape(2, 8)
    np.testing.assert_allclose(
      prompts.media.embedding_BJD[b], encode(halves), rtol=1e-6
    )
  batches = data.PromptIterator(prompts, batch_size=8, seed=0).next_batches(3)
  assert batches.media.embedding_BJD.shape == (3, 8, 2, WIDTH)
  blind = data.load_problems(experiment(blind=True).task, "train")
  assert blind.media is None
  # The order of prompts does not hang on how pictures are encoded.
  assert (
    data.PromptIterator(blind, batch_size=8, seed=0).get_state()
    == data.PromptIterator(prompts, batch_size=8, seed=0).get_state()
  )


@pytest.mark.slow
def test_scores_samples_and_trees_read_them_as_by_hand():
  config = experiment()
  graphdef, params = initial_params(config)
  model, task = nnx.merge(graphdef, params), config.make_task()
  prompts = problems(config)[:4]
  sampler = dataclasses.replace(config.rollout, forks=2)
  samples, _ = sampler(model, task, prompts, jax.random.key(0))
  tokens_BGT, mask_BGT = samples.tokens_BGT, np.asarray(samples.mask_BGT)
  expected_BGTV = by_hand(model, prompts, tokens_BGT)
  expected_BGT = np.take_along_axis(
    expected_BGTV, np.asarray(tokens_BGT)[..., None], axis=-1
  )[..., 0]
  # Given responses, sampled rows and their forks.
  x_BGTD = scoring.hidden_states(model, prompts, tokens_BGT, prompt_form(task))
  found_BGT = scoring.read_log_probs(
    model, scoring.log_prob_of, x_BGTD, tokens_BGT
  )
  np.testing.assert_allclose(found_BGT, expected_BGT, atol=1e-5)
  np.testing.assert_allclose(
    samples.log_prob_BGT, np.where(mask_BGT, expected_BGT, 0.0), atol=1e-5
  )
  # The roots of trees and what is below them.
  options = dataclasses.replace(
    config.search,
    rule=dataclasses.replace(config.search.rule, stop_when_solved=False),
  )
  tree = search(model, task, prompts, jax.random.key(1), options).tree
  nodes = jax.device_get(tree.embeddings)
  for b in range(4):
    np.testing.assert_allclose(
      nodes.log_prob_A[b, 0],
      expected_BGTV[b, 0, 0][nodes.step_AU[b, 0, :, 0]],
      atol=1e-5,
    )
    answers = np.flatnonzero(nodes.has_answer[b] & (tree.node_visits[b] > 0))
    assert len(answers) > 2
    tokens_1GT = jnp.asarray(nodes.answer_tokens[b, answers])[None]
    expected_GTV = by_hand(model, prompts[b : b + 1], tokens_1GT)[0]
    expected_GT = np.take_along_axis(
      expected_GTV, np.asarray(tokens_1GT)[0, ..., None], axis=-1
    )[..., 0]
    inside_GT = np.asarray(response_mask(tokens_1GT[0], (EOS,)))
    np.testing.assert_allclose(
      nodes.answer_log_prob[b, answers],
      (expected_GT * inside_GT).sum(axis=-1),
      atol=1e-5,
    )


def test_a_picture_stands_behind_what_all_prompts_begin_with_too():
  config = experiment()
  graphdef, params = initial_params(config)
  model, prompts = nnx.merge(graphdef, params), problems(config)[:4]
  media = prompts.media._replace(position_BJ=prompts.media.position_BJ + 1)
  tokens_BP = jnp.broadcast_to(jnp.array([ASK, PICTURE, PICTURE, ASK]), (4, 4))
  shifted = dataclasses.replace(
    prompts, tokens_BP=tokens_BP, length_B=prompts.length_B + 1, media=media
  )
  form = prefill.FULL._replace(shared_prefix_length=1)
  x_BD = [prefill.prefill(model, shifted, f).x_BD for f in (prefill.FULL, form)]
  np.testing.assert_allclose(*x_BD, atol=1e-5)
  assert np.abs(np.diff(x_BD[0], axis=0)).max() > 1e-3


def test_pictures_change_what_a_run_does():
  seeing, blind = run(experiment()), run(experiment(blind=True))
  assert moved(seeing) > 1e-4 and moved(blind) > 1e-4
  for name in ("loss", "entropy"):
    assert np.all(seeing.metrics[name] != blind.metrics[name]), name
  # A picture takes no tokens of its own.
  assert (
    seeing.metrics["tokens"].prefill[0] == blind.metrics["tokens"].prefill[0]
  )


@pytest.mark.slow
def test_only_who_sees_learns_to_answer():
  seeing, blind = run(experiment(), 100), run(experiment(blind=True), 100)
  assert seeing.metrics["correct"][-10:].mean() > 0.6
  # All prompts have the same text: without pictures a quarter is all.
  assert blind.metrics["correct"][-10:].mean() < 0.4


@pytest.mark.slow
def test_eight_devices_see_the_same_pictures():
  mesh = sharding.MeshConfig(data=4, fsdp=2)
  eight, one = eight_and_one(experiment(), mesh)
  for name in ("loss", "entropy", "reward", "search_reward"):
    np.testing.assert_allclose(
      eight.metrics[name][0], one.metrics[name][0], rtol=1e-4, atol=1e-6
    )


@pytest.mark.slow
def test_a_command_trains_evaluates_and_reads_it_back(tmp_path):
  config = experiment()
  last = train.train(config, tmp_path)
  opened = load.open_run(tmp_path)
  assert opened.config == config
  found = evaluation.evaluate(
    opened.graphdef, opened.params, config.make_task(), problems(config),
    "greedy,mean@2,search@4", seed=config.seed,
  )  # fmt: skip
  assert found["mean@2"]["accuracy"] == last["mean@2"]["accuracy"]
  assert found["search@4"]["accuracy"] >= found["greedy"]["accuracy"]
