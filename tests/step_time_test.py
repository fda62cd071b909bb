"""The worker that times our step counts and measures what it should."""

import dataclasses
import json
import math

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments.baselines import step_time, step_workers
from experiments.benchmarks import shapes
from tsd_jax.base.errors import UserError


@pytest.fixture(autouse=True)
def _flags_are_read():
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(["step_time"])


@pytest.fixture
def work(monkeypatch, tmp_path):
  model = dataclasses.replace(
    shapes.TINY, vocab_size=12, d_model=16, num_layers=1, num_heads=2,
    num_kv_heads=2, head_dim=8, d_mlp=16, unroll_layers=1,
  )  # fmt: skip
  monkeypatch.setattr(step_workers, "model_config", lambda shape: model)
  size = step_time.Size(length=4, warm=1, steps=2, turns=1)
  monkeypatch.setitem(step_time.SIZES, "tiny", size)
  return step_time.make_work("tiny", tmp_path / "start")


def test_our_steps_are_timed(work):
  times = 4  # Of so many steps the quickest are compared: others had company.
  more = {"steps": times * work["steps"], "prompts": times * work["prompts"]}
  asked = json.loads(json.dumps(work | more))
  found = step_workers.ours(asked, step_workers.Clock())
  for name in ("wall_seconds", "step_seconds", "rollout_seconds"):
    assert len(found[name]) == 3 * times
    assert all(math.isfinite(s) and s > 0 for s in found[name])
  ours, other = step_time.rows_of(
    "tiny", {"ours": [found], "other": [found, found]}
  )
  assert min(found["step_seconds"]) > min(found["rollout_seconds"]) > 0
  assert ours["step_seconds"] > 0 and ours["rollout_seconds"] > 0
  assert ours["compile_seconds"] > 0  # The first one compiles.
  assert other["step_over_ours"] == other["memory_over_ours"] == 1
  assert 0.05 < ours["peak_memory_gb"] < 64


def test_the_three_are_asked_for_the_same(work):
  """Eight prompts, four samples, one optimiser step; no response ends."""
  case = step_workers.make_case(12, 4, 3)
  config, task = case.learner_config(), case.make_task()
  assert (config.rollout.prompts, config.rollout.group) == (8, 4)
  assert config.loss.advantage == "group" and not config.loss.distils
  assert not config.searches and config.optimizer.minibatches == 1
  assert work["trl"]["per_device_train_batch_size"] == 32
  assert work["trl"]["num_generations"] == 4
  assert work["trl"]["steps_per_generation"] == 1
  assert work["trl"]["max_steps"] == work["steps"] == 3
  assert work["trl"]["max_completion_length"] == work["length"] == 4
  assert work["trl"]["beta"] == 0
  assert task.eos_id >= work["vocab_size"]
  assert np.shape(work["prompts"]) == (3 * 8, 4)
  response_BT = np.array([[0, 5, 6, 11], [1, 2, 3, 4]])
  score = task.score(np.zeros((2, 4), int), response_BT)
  np.testing.assert_allclose(score.reward_X, [0.5, 1.0])
  np.testing.assert_allclose(
    score.reward_X, step_workers.rewards(response_BT, 12)
  )


def test_text_comes_back_as_the_same_tokens():
  tokenizers = pytest.importorskip("tokenizers", reason="extra: interop")
  words = step_workers.Words(12)
  file = words.huggingface_files()["tokenizer.json"]
  theirs = tokenizers.Tokenizer.from_str(file)
  ids = [11, 1, 10, 0, 1]
  text = words.decode([*ids, words.pad_id])
  assert words.encode(text) == theirs.encode(text).ids == ids
  assert theirs.decode(ids) == text
  assert theirs.token_to_id("<end>") == words.eos_id == 12
  assert theirs.token_to_id("<pad>") == words.pad_id == 13


def test_a_clock_counts_sampling_in_its_step(monkeypatch):
  now = iter(range(100))
  monkeypatch.setattr(step_workers.time, "process_time", lambda: next(now))
  clock = step_workers.Clock()
  sample = clock.samples(lambda: None)  # Takes 1.
  sample()  # Before the first step: counted nowhere.
  clock.step_ended()
  sample()
  sample()
  clock.step_ended()
  clock.step_ended()
  found = clock.figures()
  assert found["step_seconds"] == [5, 1]
  assert found["rollout_seconds"] == [2, 0]


@pytest.mark.parametrize(
  ("flag", "value", "message"),
  [
    ("shapes", ["tiny", "huge"], "--shapes=huge is unknown: use tiny, smollm2"),
    ("trl", "/nowhere/python", "--trl=/nowhere/python is no program"),
  ],
)
def test_bad_flags_are_refused(flag, value, message):
  # Another script that was imported may have left its default.
  with flagsaver.flagsaver(**{"shapes": ["tiny"], flag: value}):
    with pytest.raises(UserError, match=message):
      step_time.main({})


def test_a_process_that_fails_is_named(capfd):
  with pytest.raises(UserError, match="trl failed on tiny; its output"):
    step_time.start_work("false", dict(library="trl", shape="tiny"))
