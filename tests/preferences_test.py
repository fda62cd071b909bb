"""Commands that train on pairs: the whole way, and bad input."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("tokenizers", reason="needs the extra: text")
pytest.importorskip("jinja2", reason="needs the extra: text")

from tests import small_pairs
from tests.pool_test import ROOT
from tsd_jax.base.errors import UserError
from tsd_jax.base.types import Prompts
from tsd_jax.inference.reward_model import RewardModel
from tsd_jax.learning import preference
from tsd_jax.learning.preference import Fit
from tsd_jax.models import pretrained, text_tokenizer
from tsd_jax.run import directory, preferences
from tsd_jax.run.preferences import Files
from tsd_jax.tasks import pairs as pairs_lib


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A folder with a model and pairs; Files that name them."""
  folder = tmp_path_factory.mktemp("made")
  return Files(
    pairs=small_pairs.write(folder / "pairs.jsonl", 96),
    model=small_pairs.language_model(folder),
    workdir=str(folder / "out"),
    held_out=small_pairs.write(folder / "held_out.jsonl", 30, seed=1),
  )


@pytest.fixture(scope="module")
def read(made):
  tokenizer = text_tokenizer.load(made.model)
  return pairs_lib.read(made.pairs, tokenizer, made.limits).pairs


@pytest.fixture(scope="module")
def trained(made):
  lines = []
  found = preferences.train_reward(
    made, Fit(1e-2, epochs=4, batch=16), heads=3, say=lines.append
  )
  return found, lines


@pytest.mark.parametrize(
  "stops", [8, 12]
)  # Amid an epoch of 6 steps; at its end.
def test_a_stopped_training_goes_on_as_if_it_had_not(
  made, trained, tmp_path, monkeypatch, stops
):
  files = dataclasses.replace(
    made, workdir=str(tmp_path / "out"), checkpoint_minutes=0.0
  )
  fit, lines = Fit(1e-2, epochs=4, batch=16), []
  with monkeypatch.context() as patch:
    save = preferences._Keeper.save

    def save_and_stop(keeper, carry, place):
      save(keeper, carry, place)
      if place.step == stops:
        raise KeyboardInterrupt

    patch.setattr(preferences._Keeper, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
      preferences.train_reward(files, fit, heads=3, say=lines.append)
  other = dataclasses.replace(fit, learning_rate=1e-3)
  for heads, words in (
    (3, "other learning_rate: u"),
    (2, "other heads, learn"),
  ):
    with pytest.raises(UserError, match=f"of a training with {words}"):
      preferences.train_reward(files, other, heads=heads, say=lines.append)
  with pytest.raises(UserError, match="with other beta, heads: use"):
    preferences.train_dpo(files, fit, say=lines.append)
  with directory.sole_writer(tmp_path / "out"):
    with pytest.raises(UserError, match="another process trains in"):
      preferences.train_reward(files, fit, heads=3, say=lines.append)
  assert not (tmp_path / "out" / preferences.MODEL).exists()
  found = preferences.train_reward(files, fit, heads=3, say=lines.append)
  whole, said = trained
  assert found == whole and f"going on after step {stops}" in lines

  def epochs(lines):
    """What is said of epochs, without their seconds."""
    return [x.rsplit(",", 1)[0] for x in lines if x.startswith("epoch")]

  # The line of an epoch that ended as it was stopped is said by nobody.
  missing = epochs(said)[stops // 6 - 1 : stops // 6] * (stops % 6 == 0)
  assert [x for x in epochs(said) if x not in missing] == epochs(lines)
  assert sorted(x.name for x in (tmp_path / "out").iterdir()) == [
    preferences.MEASURED, preferences.MODEL,
  ]  # fmt: skip


def test_a_folder_of_a_run_is_left_alone(made, tmp_path):
  (tmp_path / directory.CONFIG).write_text("{}")
  step = tmp_path / directory.CHECKPOINTS / "10"
  step.mkdir(parents=True)
  files = dataclasses.replace(made, workdir=str(tmp_path))
  with pytest.raises(UserError, match="config.json is there already: use ano"):
    preferences.train_reward(files, Fit())
  assert step.is_dir()


def prompts_of(pairs):
  return Prompts(
    jnp.asarray(pairs.prompt_QP),
    jnp.asarray(pairs.prompt_length_Q),
    jnp.arange(len(pairs)),
  )


def test_a_reward_model_learns_what_is_chosen(made, trained, read):
  found, lines = trained
  assert found["accuracy"]["low"] > 0.8
  assert found["pairs"] == 30 and found["trained_pairs"] == 96
  assert found["members"]["count"] == 3
  assert "96 pairs to train on, 30 held out" in lines[0]
  assert "epoch 4 of 4: 6 steps" in lines[-1]
  folder = f"{made.workdir}/{preferences.MODEL}"
  with open(f"{made.workdir}/{preferences.MEASURED}") as file:
    assert json.load(file) == found
  # As it is read back: right, apart, and about 1/2 in the mean.
  reward = RewardModel((folder,))
  score = reward(
    reward.load(), prompts_of(read), jnp.asarray(read.tokens_Q2T),
    jnp.asarray(read.mask_Q2T),
  )  # fmt: skip
  reward_Q2 = np.asarray(score.reward_X)
  assert np.mean(reward_Q2[:, 0] > reward_Q2[:, 1]) > 0.95
  np.testing.assert_allclose(score.parts["mean"].mean(), 0, atol=1e-4)
  # Heads that share a trunk are no copies of one another.
  _, _, _, heads = pretrained.load_reward(folder)
  assert np.abs(np.corrcoef(heads.score_KD) - np.eye(3)).max() < 0.999


def test_the_folder_is_not_written_over(made, trained):
  with pytest.raises(UserError, match="model is there already: use another"):
    preferences.train_reward(made, Fit())


def test_dpo_prefers_what_is_chosen(made, read, tmp_path):
  files = dataclasses.replace(made, workdir=str(tmp_path))
  found = preferences.train_dpo(
    files, Fit(3e-3, epochs=2, batch=16), beta=0.3, say=lambda line: None
  )
  assert found["accuracy"]["low"] > 0.8
  gained = found["log_prob_gained"]
  assert gained["chosen"] > gained["rejected"]
  # What it wrote is a language model with these log-probabilities.
  before_Q2, after_Q2 = (
    log_probs_alone(folder, read[:4])
    for folder in (files.model, tmp_path / "model")
  )
  ahead_Q = np.subtract(*(after_Q2 - before_Q2).T)
  assert np.all(ahead_Q > 0)


def log_probs_alone(folder, pairs):
  """Of whole responses, by plain forwards of bare rows, one at a time."""
  _, graphdef, params = pretrained.load(folder)
  forward = jax.jit(lambda ids_RT: nnx.merge(graphdef, params)(ids_RT))
  width = pairs.prompt_QP.shape[1] + pairs.tokens_Q2T.shape[2]
  found = np.zeros((len(pairs), 2))
  for i in range(len(pairs)):
    prompt = pairs.prompt_QP[i, : pairs.prompt_length_Q[i]]
    for j in range(2):
      row = pairs.tokens_Q2T[i, j][pairs.mask_Q2T[i, j]]
      ids = np.concatenate([prompt, row])
      # Causal: what stands after it changes nothing.
      padded = np.pad(ids, (0, width - len(ids)))[None]
      log_p = np.asarray(jax.nn.log_softmax(forward(jnp.asarray(padded))[0]))
      for t in range(len(prompt), len(ids)):
        found[i, j] += log_p[t - 1, ids[t]]
  return found


def test_log_probs_are_those_of_bare_rows(made, read):
  _, graphdef, params = pretrained.load(made.model)
  ours_Q2 = preference.read_all(
    preference.log_probs, graphdef, params, read[:5], 2
  )
  np.testing.assert_allclose(
    ours_Q2, log_probs_alone(made.model, read[:5]), rtol=1e-4
  )


def test_a_last_batch_is_filled_up_with_what_does_not_count(read):
  weight_Q1 = np.ones((len(read), 1), np.float32)
  order_Q = np.random.default_rng(0).permutation(len(read))[:7]
  found = list(preference.batches(read, order_Q, 3, weight_Q1, None))
  assert [b.weight_BK[:, 0].tolist() for b in found] == [
    [1, 1, 1], [1, 1, 1], [1, 0, 0],
  ]  # fmt: skip
  seen = np.concatenate([b.prompts.example_B for b in found])[:7]
  np.testing.assert_array_equal(seen, order_Q)
  np.testing.assert_array_equal(
    found[0].tokens_B2T, read[order_Q[:3]].tokens_Q2T
  )
  # Fewer pairs than a batch.
  (one,) = preference.batches(read, order_Q[:2], 5, weight_Q1, None)
  assert one.tokens_B2T.shape[0] == 5 and one.weight_BK.sum() == 2


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"pairs": "nowhere.jsonl"}, "no pairs in nowhere.jsonl"),
    ({"model": "nowhere"}, "no model at nowhere"),
    ({"limits": pairs_lib.Limits(99, 1)}, "all 96 pairs .*--response_length"),
  ],
)
def test_what_does_not_fit_is_told_before_anything_is_read(
  made, tmp_path, changes, words
):
  files = dataclasses.replace(made, workdir=str(tmp_path / "x"), **changes)
  with pytest.raises(UserError, match=words):
    preferences.prepare(files)
  assert not (tmp_path / "x").exists()


def test_more_tokens_than_positions_are_refused(made, tmp_path):
  file = tmp_path / "long.jsonl"
  line = {"prompt": "add 12 " * 60, "chosen": "sure", "rejected": "done"}
  lines = [line, line | {"prompt": "add 345 " * 60}]
  file.write_text("".join(json.dumps(x) + "\n" for x in lines))
  files = dataclasses.replace(
    made, workdir=str(tmp_path / "x"), pairs=str(file), held_out=None
  )
  with pytest.raises(UserError, match="exceed the 64 positions of .*: set"):
    preferences.prepare(files)
  short = dataclasses.replace(files, limits=pairs_lib.Limits(40, 20))
  told = []
  ready = preferences.prepare(short, told.append)
  assert ready.facts["shortened_prompts"] == 2
  assert "2 prompts lost their beginning (--prompt_length)" in told[0]


def test_prompts_in_both_files_are_counted(made, tmp_path):
  told = []
  both = dataclasses.replace(made, held_out=made.pairs, workdir=str(tmp_path))
  ready = preferences.prepare(both, told.append)
  assert ready.facts["held_out_pairs_with_trained_prompts"] == 96
  assert "96 held-out pairs have a prompt that is trained on" in told[0]
  alone = dataclasses.replace(made, held_out=None, workdir=str(tmp_path))
  ready = preferences.prepare(alone, told.append)
  assert ready.facts["held_out_pairs_with_trained_prompts"] == 0
  assert len(ready.trained) + len(ready.held_out) == 96


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    (dict(learning_rate=0.0), "learning_rate=0.0 must be a positive number"),
    (dict(epochs=0, batch=0), "epochs=0 must .*batch=0 must be at least 1"),
    (dict(seed=-1), "seed=-1 must be"),
  ],
)
def test_impossible_settings_are_refused(settings, words):
  with pytest.raises(ValueError, match=words):
    Fit(**settings)


def test_impossible_arguments_are_refused_before_anything_is_read(made):
  with pytest.raises(UserError, match="--beta=0 must be a positive number"):
    preferences.train_dpo(made, Fit(), beta=0)
  with pytest.raises(UserError, match="--heads=0 must be at least 1"):
    preferences.train_reward(made, Fit(), heads=0)
  with pytest.raises(UserError, match=r"--held_out_share=1.0 must lie in"):
    dataclasses.replace(made, held_out_share=1.0)
  with pytest.raises(UserError, match="--prompt_length=0 and"):
    dataclasses.replace(made, limits=pairs_lib.Limits(0, 5))


@pytest.mark.parametrize(
  ("module", "flags", "words"),
  [
    ("train_reward", ["--model=x", "--workdir=y"], "--pairs is missing"),
    ("train_dpo", ["--pairs=p", "--model=x"], "--workdir is missing"),
    (
      "train_reward",
      ["--pairs=p", "--model=x", "--workdir=y", "--epochs=0"],
      "--epochs=0 must be at least 1",
    ),
  ],
)
def test_bad_flags_are_one_line(module, flags, words, tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", f"launch.{module}", *flags],
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1].startswith("error: ")
  assert words in done.stderr
