"""Host rewards of any declared range, from the worker to the search."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs the extra: text")
pytest.importorskip("jinja2", reason="needs the extra: text")

from tests.host_tools import results
from tests.misbehaving import misbehave
from tests.text_tokenizer_test import write_folder
from tsd_jax.base import config as config_lib
from tsd_jax.base.errors import UserError
from tsd_jax.rewards import callback, worker
from tsd_jax.rewards.pool import Pool, PoolConfig
from tsd_jax.rewards.reward import Scorer
from tsd_jax.tasks.task import as_prompts
from tsd_jax.tasks.text import TextConfig

NAME = f"{misbehave.__module__}.{misbehave.__name__}"
LOW, HIGH = -0.5, 3.0


@pytest.fixture(scope="module")
def workers():
  running = Pool(NAME, PoolConfig(seconds=1.0), worker.Number(LOW, HIGH))
  yield running
  running.close()


def test_a_worker_keeps_to_the_range_and_a_fault_is_worth_the_least(workers):
  expected = {  # What `misbehave` returns for each.
    "negative": -0.25, "two": 2.0, "true": 1.0, "nan": LOW, "raise": LOW,
    "die": LOW, "hang": LOW, "text": LOW,
  }  # fmt: skip
  worth = {"low": LOW, "high": HIGH, "above": 3.0001, "below": -0.5001}
  requests = [("p", how, {"worth": 0}) for how in expected]
  requests += [("p", "", {"worth": x}) for x in worth.values()]
  got = workers.grade(requests)
  assert got.dtype == np.float32
  np.testing.assert_array_equal(
    got, np.float32([*expected.values(), LOW, HIGH, LOW, LOW])
  )
  assert workers.take_counts() == {
    "graded": len(requests), "not_finite": 1, "raised": 1, "died": 1,
    "timed_out": 1, "wrong_type": 1, "out_of_range": 2,
  }  # fmt: skip


def test_the_range_is_named_in_the_log(workers, caplog):
  workers.grade([("p", "", {"worth": 7})])
  assert "out_of_range (returned 7.0, not in [-0.5, 3])" in caplog.text


@pytest.mark.parametrize(
  ("value", "judged"),
  [
    ("ab", ("ab", None)),
    (None, (None, None)),
    ("abcdef", (None, worker.OUT_OF_RANGE)),
    (3, (None, worker.WRONG_TYPE)),
    ("\ud800", (None, worker.WRONG_TYPE)),
  ],
)
def test_a_text_is_judged_by_its_length(value, judged):
  assert worker.Text(longest=5).judge(value)[:2] == judged


@pytest.mark.parametrize("returns", [worker.Number(-2, 5), worker.Text(7)])
def test_a_worker_is_told_what_its_function_returns(returns):
  job = worker.Job(
    "a.b", returns, 1.5, 64, shared=False, network=True, parent=7
  )
  heard = worker.Job.read(job.text())
  assert heard == job
  assert type(heard.returns) is type(returns)


def test_a_callback_holds_its_host_to_the_range():
  example = jnp.zeros(2, jnp.int32)
  tokens = jnp.zeros((2, 3), jnp.int32)

  def graded(*rewards):
    return jax.jit(
      lambda e, t: callback.graded(
        lambda *_: np.float32(rewards), e, t, LOW, HIGH
      )
    )(example, tokens)

  np.testing.assert_array_equal(graded(LOW, HIGH), [LOW, HIGH])
  callback.raise_errors()
  np.testing.assert_array_equal(graded(0, 3.5), [LOW, LOW])
  with pytest.raises(UserError, match=r"outside \[-0.5, 3\]: \[0.0, 3.5\]"):
    callback.raise_errors()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  folder = tmp_path_factory.mktemp("range")
  line = {"prompt": "Use 3:", "unit": 1, "wanted": 12}
  (folder / "p.jsonl").write_text(json.dumps(line))
  return TextConfig(
    file=str(folder / "p.jsonl"), tokenizer=str(write_folder(folder / "t")),
    reward=results, prompt_length=8, response_length=24, low=-2.0, high=2.0,
    correct_at=0.0, validation_size=0, test_size=0,
  )  # fmt: skip


def test_scores_of_a_text_task_have_its_range(config):
  task = config.make()
  texts = ["3*4=12>>", "3*4=7>>", "no", "12>>", "3*4=12>>"]
  rows = np.full((1, len(texts), 24), task.pad_id)
  for i, text in enumerate(texts):
    ids = [*task.tokenizer.encode(text), task.eos_id]
    rows[0, i, : len(ids)] = ids
  rows[0, -1][rows[0, -1] == task.eos_id] = task.pad_id  # Unfinished.
  assert (task.reward.low, task.reward.high) == (-2.0, 2.0)
  scorer = Scorer(task.reward, task.end_ids)
  prompts = as_prompts(task, np.array([config.lines[0].prompt_P]))
  score = jax.jit(scorer)(prompts, rows)
  expected = [0.5, -1.5, -2.0, -2.0, -2.0]
  np.testing.assert_array_equal(score.reward_X[0], expected)
  right = [True, False, False, False, False]
  np.testing.assert_array_equal(score.correct_X[0], right)
  unit = scorer.unit(score.reward_X[0])
  np.testing.assert_allclose(unit, [0.625, 0.125, 0, 0, 0])
  said = task.describe(config.lines[0].prompt_P, rows[0, 1])
  assert said.endswith("reward -1.500")
  callback.report()


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(low=2.0), r"low=2.0 must be less than high=2.0"),
    (dict(high=-3), r"low=-2.0 must be less than high=-3"),
    # As float32 they are one.
    (dict(low=2.0 - 1e-9), "must be less than high"),
    (dict(low=float("-inf")), r"low=-inf: use a float32"),
    (dict(high=1e39), r"high=1e\+39: use a float32"),
    (dict(high=True), r"high=True: use a float32"),
    (dict(correct_at=-2.0), r"correct_at=-2.0: .* above low=-2.0 and up to"),
    (dict(correct_at=2.5), r"correct_at=2.5: .* up to high=2.0"),
    (dict(high=-1.0), r"correct_at=0.0: .* up to high=-1.0"),
  ],
)
def test_ranges_that_cannot_be_are_refused(config, changes, words):
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(config, **changes)


def test_a_range_has_flags(config):
  got = config_lib.override(config, {"high": "9.5", "correct_at": "9"})
  assert (got.low, got.high, got.correct_at) == (-2.0, 9.5, 9.0)
