"""Counts of answers and the columns made from them, against plain counting."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import countdown
from tests import small_experiment, small_maze
from tsd_jax.base.errors import UserError
from tsd_jax.base.ledger import Ledger
from tsd_jax.comparison import columns, counts
from tsd_jax.rewards.algebra import Sum, TaskReward
from tsd_jax.rewards.terms import Length
from tsd_jax.run import evaluation, load
from tsd_jax.run.experiment import initial_params
from tsd_jax.tasks import data
from tsd_jax.tasks.task import as_prompts

QUESTIONS, SAMPLES, TEMPERATURE = 24, 20, 0.7


@pytest.fixture(scope="module")
def run():
  config = dataclasses.replace(countdown.get_config(), seed=3)
  return load.Run(config, *initial_params(config), 0, Ledger())


@pytest.fixture(scope="module")
def problems(run):
  return data.load_problems(run.config.task, "validation")[:QUESTIONS]


def test_samples_are_counted_whatever_their_number(run, problems):
  """More than are drawn at once; each answer is scored once more, alone."""
  found = counts.count(run, problems, SAMPLES, TEMPERATURE)
  task, answers = run.config.make_task(), [[] for _ in range(QUESTIONS)]
  for start, samples in (0, 16), (16, 4):
    key = jax.random.fold_in(jax.random.key(3), start)
    tokens_QGT, *_ = evaluation.draw(
      run.graphdef, run.params, task, problems, key,
      jnp.float32(TEMPERATURE), samples=samples,
    )  # fmt: skip
    for own, drawn in zip(answers, np.asarray(tokens_QGT), strict=True):
      own += [tuple(row) for row in drawn.tolist()]
  for q, own in enumerate(answers):
    prompt = np.repeat(problems.tokens_BP[q : q + 1], len(own), axis=0)
    score = task.score(jnp.asarray(prompt), jnp.asarray(own))
    right = np.asarray(score.correct_X)
    assert len(own) == SAMPLES and found.right_Q[q] == right.sum()
    solved = {answer for answer, ok in zip(own, right, strict=True) if ok}
    assert found.distinct_Q[q] == len(solved)
    answers[q] = np.asarray(score.reward_X) >= np.float32(0.1)
  assert found.legal == pytest.approx(np.mean(answers))
  assert 0 < found.right_Q.sum() and 0.5 < found.legal < 1


def test_a_start_is_measured_whatever_its_reward_is_made_of(tmp_path):
  """Its parameters are read, as those of a run are."""
  config = small_experiment.get_config()
  made = dataclasses.replace(
    config, reward=Sum((TaskReward(), Length()), (1.0, 0.1))
  )
  plan = counts.Plan("validation", 1, 1.0)
  found = counts.measure_start(made, tmp_path / "a", plan)
  plain = counts.measure_start(config, tmp_path / "b", plan)
  assert found["greedy"] == plain["greedy"]


def test_greedy_answers_are_the_evaluations(run, problems):
  found = counts.count(run, problems, 0, 1.0)
  assert set(found.right_Q) <= {0, 1}
  expected = evaluation.evaluate(
    run.graphdef, run.params, run.config.make_task(), problems, "greedy", seed=0
  )
  assert found.right_Q.mean() == pytest.approx(expected["greedy"]["accuracy"])


@given(st.lists(st.integers(0, 255), max_size=300))
def test_counts_come_back_as_they_were(values):
  text = counts.pack(np.array(values, int))
  assert counts.unpack(json.loads(json.dumps(text))).tolist() == values


@pytest.mark.parametrize("k", [1, 5, 16])
def test_pass_at_k_of_counts_is_that_of_samples(k):
  rng = np.random.default_rng(0)
  right_QN = rng.random((50, 16)) < rng.random((50, 1))
  right_QN[0], right_QN[1] = False, True
  got_Q = columns.pass_at(right_QN.sum(axis=1), 16, k)
  np.testing.assert_allclose(
    got_Q, evaluation.solved_by_k(right_QN, k), atol=1e-12
  )


def counted(right, greedy, cooled, distinct):
  def drawn(right_Q):
    return {
      "right": counts.pack(np.array(right_Q)),
      "distinct": counts.pack(np.array(distinct)), "legal": None,
    }  # fmt: skip

  return {
    "plan": {"split": "test", "samples": 4, "temperature": 0.5},
    "greedy": counts.pack(np.array(greedy)), "greedy_legal": None,
    "constant": 0.25,
    "samples": {"1": drawn(right), "0.5": drawn(cooled)},
    "train": {"greedy": 1.0, "mean": 0.25},
  }  # fmt: skip


def test_columns_by_hand():
  runs = [
    counted([0, 2, 4], [0, 0, 1], [0, 4, 4], [0, 1, 2]),
    counted([0, 1, 4], [0, 1, 1], [0, 3, 4], [0, 1, 3]),
  ]
  found = columns.of_method(runs)
  value = {k: v["value"] for k, v in found.items() if isinstance(v, dict)}
  assert value == pytest.approx({
    "greedy": 3 / 6, "mean": 11 / 24, "mean, cooled": 15 / 24,
    "distinct": 7 / 6,
  })  # fmt: skip
  assert found["legal"] is None and found["greedy legal"] is None
  assert found["constant answer"] == 0.25
  assert found["greedy, gap to train"] == pytest.approx(0.5)
  assert found["mean, gap to train"] == pytest.approx(0.25 - 11 / 24)
  low, high = found["mean"]["ci95"]
  assert low < 11 / 24 < high
  alone = columns.of_method(runs[:1])["mean"]
  assert alone == {"value": pytest.approx(0.5), "ci95": [None, None]}


def test_methods_are_compared_problem_by_problem():
  """A method that is right on the same problems is surely no worse."""
  rng = np.random.default_rng(0)
  right_SQ = rng.integers(0, 5, (3, 40))
  one = [counted(r, r > 2, r, r) for r in right_SQ]
  other = [counted(r // 2, r > 2, r // 2, r // 2) for r in right_SQ]
  found = columns.contrast({"tsd": one, "ppo": other})
  assert found["greedy"]["tsd/ppo"]["difference"] == {
    "value": 0.0, "ci95": [0.0, 0.0],
  }  # fmt: skip
  gain = found["mean"]["tsd/ppo"]
  expected = (right_SQ - right_SQ // 2).mean() / 4
  assert gain["difference"]["value"] == pytest.approx(expected)
  assert 0 < gain["difference"]["ci95"][0] < expected
  assert gain["ratio"]["ci95"][0] > 1
  assert columns.contrast({"tsd": one[:1], "ppo": other[:1]})["mean"] == {}


def test_shifted_problems_have_columns_of_their_own():
  def run(greedy, right):
    more = {"greedy": counts.pack(greedy), "right": counts.pack(right)}
    return counted([0, 4], [0, 1], [0, 4], [0, 1]) | {"shifted": more}

  runs = [run(np.array([0, 0, 1]), np.array([0, 1, 3]))] * 2
  groups = columns.Groups(test=[0, 1], shifted=[0, 1, 1])
  found = columns.of_method(runs, groups)
  assert found["greedy, shifted"]["value"] == pytest.approx(1 / 3)
  assert found["mean, shifted"]["value"] == pytest.approx(4 / 12)
  pair = columns.contrast({"tsd": runs, "ppo": runs}, groups)
  assert pair["mean, shifted"]["tsd/ppo"]["difference"]["value"] == 0.0


def test_what_one_answer_solves_whatever_is_asked(run):
  """Three problems are one and the same, so its answer solves three of four."""
  task = run.config.task
  posed = [
    task.pose(problem, np.random.default_rng(seed))
    for seed, problem in enumerate([((2, 3, 4), 24)] * 3 + [((2, 3, 5), 30)])
  ]
  prompts = as_prompts(task.make(), np.stack([p.prompt_P for p in posed]))
  answer_AT = np.stack([posed[3].response_T, posed[0].response_T])
  assert counts.constant(run, prompts, answer_AT) == 0.75
  assert counts.constant(run, prompts, answer_AT[:1]) == 0.25
  assert counts.constant(run, prompts, answer_AT[:0]) == 0.0


def test_the_most_frequent_right_answers_come_first(run, problems):
  found = counts.count(run, problems, SAMPLES, 0.3)
  assert 1 < len(found.common_AT) <= 16
  assert len(np.unique(found.common_AT, axis=0)) == len(found.common_AT)


def test_groups_are_those_of_the_split(problems):
  task = countdown.get_config().task
  found = data.groups(task, problems)
  numbers = [tuple(sorted(p[:3])) for p in problems.tokens_BP.tolist()]
  for i, mine in enumerate(numbers):
    for j, other in enumerate(numbers):
      assert (mine == other) == (found[i] == found[j])


def test_longer_problems_are_asked_as_their_own_task(tmp_path, monkeypatch):
  """A maze of more walls has a longer prompt."""
  config = dataclasses.replace(
    small_experiment.get_config(), task=small_maze.get_config().task,
    model=small_maze.get_config().model,
  )  # fmt: skip
  plan = counts.Plan("test", 2, 1.0, "walls=7")
  counts.rehearse(config, plan)
  found = counts.measure_start(config, tmp_path, plan)
  assert len(counts.unpack(found["shifted"]["right"])) == config.task.test_size
  longer, _ = counts._unlike(config, plan)
  monkeypatch.setattr(
    counts, "_unlike", lambda *_: (longer, config.make_task())
  )
  with pytest.raises(UserError, match="shifted=walls=7 cannot be asked: "):
    counts.rehearse(config, plan)


def test_shifted_problems_are_unlike_those_of_train():
  task = countdown.get_config().task
  other = counts.shifted(task, "min_target=101,max_target=199")
  asked = data.load_problems(other, "test").tokens_BP[:, -1]
  assert asked.min() > task.max_target and asked.max() > 150
  with pytest.raises(UserError, match="walls"):
    counts.shifted(task, "walls=3")


@pytest.mark.parametrize("same", ["max_number=14", "seed=1"])
def test_shifted_problems_that_train_has_are_refused(same):
  config = countdown.get_config()
  with pytest.raises(UserError, match=r"\d+ of 512 problems are in train too"):
    counts.rehearse(config, counts.Plan("test", 2, 1.0, same))
