"""Reward models: as transformers reads them, in the algebra, in the loop."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

pytest.importorskip("tokenizers", reason="needs the extra: text")
pytest.importorskip("jinja2", reason="needs the extra: text")

from tests import small_experiment, small_text
from tests.few_iterations import moved, run
from tests.published import SHAPES, edit_config, make
from tests.published import reward_model as write
from tsd_jax.base.errors import ConfigError, UserError
from tsd_jax.base.types import Media, Prompts
from tsd_jax.inference import reward_model
from tsd_jax.inference.reward_model import RewardModel
from tsd_jax.models import hf, pretrained, text_tokenizer
from tsd_jax.models.flops import flops_per_token
from tsd_jax.models.symbols import SymbolTokenizer
from tsd_jax.rewards.algebra import Gate, Lexicographic, Sum, TaskReward
from tsd_jax.rewards.reward import Scorer

B, G, P, T, EOS, PAD = 3, 2, 5, 6, 207, 205
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write(tmp_path_factory.mktemp("rewards") / "model")


def responses():
  """Prompts of all lengths, responses that end anywhere or not at all."""
  length_B = np.array([5, 2, 4])
  prompt_BP = RNG.integers(0, 200, (B, P))
  prompt_BP[np.arange(P) >= length_B[:, None]] = PAD
  tokens_BGT = RNG.integers(0, 200, (B, G, T))
  end_BG = np.array([[0, 3], [5, 2], [6, 6]])
  at_BGT = np.arange(T) - end_BG[..., None]
  tokens_BGT[at_BGT == 0], tokens_BGT[at_BGT > 0] = EOS, PAD
  prompts = Prompts(
    jnp.asarray(prompt_BP), jnp.asarray(length_B), jnp.arange(B)
  )
  return prompts, jnp.asarray(tokens_BGT), jnp.asarray(at_BGT <= 0)


INPUTS = responses()


def rows():
  """Prompt and response together, without padding."""
  prompts, tokens_BGT, mask_BGT = jax.device_get(INPUTS)
  return [
    [
      *prompts.tokens_BP[b, : prompts.length_B[b]].tolist(),
      *tokens_BGT[b, g][mask_BGT[b, g]].tolist(),
    ]
    for b in range(B)
    for g in range(G)
  ]


def raw(folder):
  """Rewards before anything is taken off, BGK."""
  reward = RewardModel((folder,))
  (params,) = reward.load()
  found = reward.members([params], *INPUTS)
  return np.asarray(found + params["centre_K"])


@pytest.mark.parametrize("shape", SHAPES)
def test_rewards_are_those_of_transformers(tmp_path, shape):
  torch = pytest.importorskip("torch", reason="needs the extra: interop")
  transformers = pytest.importorskip("transformers")
  folder = write(tmp_path / "model", shape)
  theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
    folder
  )
  assert type(theirs).__name__ == (
    f"{shape.split('_')[0].title()}ForSequenceClassification"
  )
  assert theirs.config.num_labels == 1
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  batch = tokenizer.pad({"input_ids": rows()}, return_tensors="pt")
  with torch.no_grad():
    padded = theirs(**batch).logits[:, 0].numpy()
    alone = [theirs(torch.tensor([ids])).logits.item() for ids in rows()]
  ours = raw(folder).mean(axis=-1).ravel()
  assert np.ptp(ours) > 0.1
  np.testing.assert_allclose(ours, alone, atol=2e-5, rtol=2e-4)
  np.testing.assert_allclose(ours, padded, atol=2e-5, rtol=2e-4)


def test_a_classifier_of_transformers_is_read(tmp_path):
  torch = pytest.importorskip("torch", reason="needs the extra: interop")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(0)
  model = transformers.LlamaForSequenceClassification(
    transformers.LlamaConfig(
      vocab_size=208, hidden_size=16, num_hidden_layers=2, pad_token_id=PAD,
      num_attention_heads=2, intermediate_size=24, num_labels=1,
      eos_token_id=EOS, bos_token_id=None,
    )
  )  # fmt: skip
  model.save_pretrained(tmp_path)
  with torch.no_grad():
    alone = [model(torch.tensor([ids])).logits.item() for ids in rows()]
  ours = raw(str(tmp_path))
  np.testing.assert_allclose(ours.ravel(), alone, atol=2e-5, rtol=2e-4)
  edit_config(tmp_path, pad_token_id=EOS)
  with pytest.raises(UserError, match="padding token 207 .* ends responses to"):
    raw(str(tmp_path))


def test_where_the_end_is_the_padding_an_export_pads_otherwise(tmp_path):
  """Else transformers would read the reward before the end."""
  tokenizer, config, params = small_text.random_model(tmp_path)
  assert tokenizer.pad_id == tokenizer.eos_id
  heads = hf.RewardHeads(
    np.ones((1, config.d_model), np.float32), np.zeros(1, np.float32)
  )
  folder = tmp_path / "model"
  hf.save(folder, config, params, tokenizer, max_length=64, reward=heads)
  again = text_tokenizer.load(folder)
  assert again.pad_id not in again.end_ids == tokenizer.end_ids
  said = json.loads((folder / "config.json").read_text())
  assert said["pad_token_id"] == again.pad_id
  assert text_tokenizer.vocabulary(again) == text_tokenizer.vocabulary(
    tokenizer
  )


def test_several_files_hold_the_head_once(tmp_path, folder):
  config, _, params, heads = pretrained.load_reward(folder)
  hf.save(
    tmp_path / "split", config, params, SymbolTokenizer(), max_length=64,
    reward=heads, max_file_bytes=20_000,
  )  # fmt: skip
  assert len(list((tmp_path / "split").glob("model-*.safetensors"))) > 1
  np.testing.assert_array_equal(raw(str(tmp_path / "split")), raw(folder))


def test_an_ensemble_is_low_where_its_members_disagree(folder, tmp_path):
  other = write(tmp_path / "other", "qwen3", heads=2, seed=1)
  both = RewardModel((folder, other), pessimism=1.5)
  params = both.load()
  member_BGK = np.concatenate(
    [raw(f) - p["centre_K"] for f, p in zip(both.folders, params, strict=True)],
    axis=-1,
  )
  assert member_BGK.shape == (B, G, 5)
  bound_BG = member_BGK.mean(-1) - 1.5 * member_BGK.std(-1, ddof=1)
  score = Scorer(both, (EOS,), params)(*INPUTS[:2])
  np.testing.assert_allclose(
    score.reward_X, 1 / (1 + np.exp(-bound_BG)), rtol=1e-4, atol=1e-6
  )
  np.testing.assert_allclose(
    score.parts["std"], member_BGK.std(-1, ddof=1), rtol=1e-4
  )
  trusting = dataclasses.replace(both, pessimism=0.0)
  plain = Scorer(trusting, (EOS,), params)(*INPUTS[:2])
  assert np.all(score.reward_X < plain.reward_X)
  assert score.correct_X is None
  one = RewardModel((write(tmp_path / "one", heads=1),), pessimism=9.0)
  assert np.all(one(one.load(), *INPUTS).parts["std"] == 0)


def test_a_forward_of_every_model_is_in_the_ledger(folder):
  c = SHAPES["llama"]
  token = flops_per_token(c) - 2 * c.vocab_size * c.d_model + 2 * c.d_model
  assert RewardModel((folder, folder)).flops(10, 6) == 2 * 16 * token


def config_with(reward):
  base = small_experiment.get_config()
  gate = "correct" if reward.knows_correct else "better"
  loss = dataclasses.replace(base.loss, champion_gate=gate)
  return dataclasses.replace(base, reward=reward, loss=loss, iterations=1)


def test_it_is_a_member_of_rewards_made_of_rewards(folder):
  own = RewardModel((folder,))
  prompts, tokens_BGT, _ = INPUTS
  for reward in (
    Sum((TaskReward(), own), weights=(1.0, 0.5)),
    Gate(TaskReward(), own),
    Lexicographic((TaskReward(), own), levels=(2, 1000)),
  ):
    bound = config_with(reward.bind(SHORT)).make_task().reward
    params = bound.load()
    score = Scorer(bound, (EOS,), params)(prompts, tokens_BGT)
    alone = Scorer(own, (EOS,), own.load())(prompts, tokens_BGT).reward_X
    np.testing.assert_allclose(
      score.parts["reward_model"], alone, rtol=1e-5, atol=1e-6
    )
    right_BG = np.asarray(score.correct_X)
    assert right_BG.any() and not right_BG.all()
    expected = {
      "Sum": right_BG + 0.5 * np.asarray(alone),
      "Gate": np.where(right_BG, alone, 0.0),
      "Lexicographic": (right_BG * 1000 + np.round(alone * 999)) / 1999,
    }[type(reward).__name__]
    np.testing.assert_allclose(score.reward_X, expected, atol=1e-5)


@dataclasses.dataclass(frozen=True)
class Short(reward_model.Reward):
  """Right is what ends within three tokens."""

  def __call__(self, params, prompts, tokens_BGT, mask_BGT):
    right_BG = mask_BGT.sum(-1) <= 3
    return reward_model.Score(right_BG.astype(jnp.float32), right_BG)


SHORT = Short()


@pytest.mark.slow
def test_the_loop_trains_on_it(folder):
  ran = run(config_with(RewardModel((folder,), pessimism=0.5)), 1)
  m = ran.metrics
  assert 0 < m["reward"][0] < 1 and m["reward_std"][0] > 0
  assert m["tokens"].scored[0] > 0 and moved(ran) > 0


@pytest.mark.parametrize(
  ("folders", "words"),
  [((), "must be a tuple of folders"), ("model", "must be a tuple of folders")],
)
def test_no_folders_are_refused(folders, words):
  with pytest.raises(ValueError, match=words):
    RewardModel(folders)
  with pytest.raises(ValueError, match="pessimism=-1"):
    RewardModel(("model",), pessimism=-1)


def test_what_is_no_reward_model_is_one_line(folder, tmp_path):
  with pytest.raises(UserError, match=r"RewardModel.folders: no model at .*no"):
    RewardModel((str(tmp_path / "nowhere"),)).load()
  config = SHAPES["llama"]
  written = tmp_path / "language"
  hf.save(written, config, make(config)[1], SymbolTokenizer(), max_length=64)
  with pytest.raises(UserError, match="no reward model: train one .*train_rew"):
    RewardModel((str(written),)).load()
  with pytest.raises(UserError, match="is a reward model, which writes nothin"):
    pretrained.load(folder)
  with pytest.raises(ValueError, match="reads text alone"):
    media = Media(jnp.zeros((B, 1, 4)), jnp.zeros((B, 1), jnp.int32))
    asked = dataclasses.replace(INPUTS[0], media=media)
    RewardModel((folder,))((), asked, *INPUTS[1:])


@pytest.mark.parametrize(
  ("damage", "words"),
  [
    (lambda a: a.pop("score.weight"), "score.weight is none"),
    (
      lambda a: a.update({"score.weight": np.zeros((2, 32), np.float32)}),
      r"score.weight is \[2, 32\]",
    ),
    (
      lambda a: a.update({"score.weight": 2 * a["score.weight"]}),
      "holds other heads than score.weight",
    ),
  ],
)
def test_another_head_is_refused(tmp_path, damage, words):
  folder = tmp_path / "model"
  write(folder)
  arrays = dict(load_file(folder / "model.safetensors"))
  damage(arrays)
  save_file(arrays, folder / "model.safetensors", {"format": "pt"})
  with pytest.raises(UserError, match=words):
    pretrained.load_reward(folder)


@pytest.mark.parametrize(
  ("heads", "words"),
  [
    ({"score_KD": np.zeros((2, 32), np.float32)}, "of another reward model"),
    (
      {
        "score_KD": np.zeros((0, 32), np.float32),
        "centre_K": np.zeros(0, np.float32),
      },
      "of another reward model",
    ),
    (
      {
        "score_KD": np.full((1, 32), np.nan, np.float32),
        "centre_K": np.zeros(1, np.float32),
      },
      "holds other heads|no numbers",
    ),
  ],
)
def test_damaged_heads_are_refused(tmp_path, heads, words):
  folder = tmp_path / "model"
  write(folder)
  save_file(heads, folder / hf.REWARD_HEADS)
  with pytest.raises(UserError, match=words):
    pretrained.load_reward(folder)


def test_a_policy_with_other_tokens_is_refused(tmp_path, folder):
  tokenizer, config, params = small_text.random_model(tmp_path)
  heads = hf.RewardHeads(
    np.ones((1, config.d_model), np.float32), np.zeros(1, np.float32)
  )
  other = tmp_path / "model"
  hf.save(other, config, params, tokenizer, max_length=64, reward=heads)
  reward = Sum((TaskReward(), RewardModel((str(other),))))
  with pytest.raises((ConfigError, ValueError), match="has other tokens than"):
    config_with(reward)
  config_with(Sum((TaskReward(), RewardModel((folder,)))))
