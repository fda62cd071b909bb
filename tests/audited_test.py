"""A second verifier that judges and never pays; a preference behind a gate."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import hybrid
from tests.algebra_test import EOS, A, B, responses, table
from tests.small_experiment import get_config
from tsd_jax.inference.reward_model import RewardModel
from tsd_jax.models import symbols
from tsd_jax.rewards.algebra import Gate, Scale, Sum, TaskReward
from tsd_jax.rewards.audited import Audited
from tsd_jax.rewards.noise import Noisy
from tsd_jax.rewards.reward import Scorer
from tsd_jax.rewards.terms import Length
from tsd_jax.run.hacking import Audit
from tsd_jax.tasks.countdown import CountdownConfig
from tsd_jax.tasks.task import as_prompts

JUDGE = table(0.5, 0.0, 1.0, right=[True, False, True])


def scorer(reward):
  return Scorer(reward, (EOS,), jax.tree.map(jnp.asarray, reward.load()))


def test_who_is_audited_is_paid_as_before():
  audited = Audited(B, JUDGE)
  prompts, tokens_BGT = responses()
  paid, plain = (scorer(r)(prompts, tokens_BGT) for r in (audited, B))
  jax.tree.map(np.testing.assert_array_equal, paid, plain)
  assert (audited.low, audited.high) == (B.low, B.high)
  assert not audited.knows_correct and audited.flops(3, 5) == B.flops(3, 5)
  said_BG = scorer(audited).accepted(prompts, tokens_BGT)
  np.testing.assert_array_equal(said_BG[0], np.array(JUDGE.right, float))
  assert scorer(B).accepted(prompts, tokens_BGT) is None


def test_a_verifier_that_knows_nothing_correct_accepts_by_its_reward():
  prompts, tokens_BGT = responses()
  said_BG = scorer(Audited(A, B)).accepted(prompts, tokens_BGT)
  expected_G = (np.array(B.values) - B.low) / (B.high - B.low)
  np.testing.assert_allclose(said_BG[0], expected_G)


def test_an_audit_is_no_truth_and_errs_where_its_verifier_does():
  noisy = Noisy(JUDGE, accept=0.5)
  audited = Audited(noisy, Noisy(JUDGE, accept=0.9))
  assert audited.truth() == Audited(JUDGE, Noisy(JUDGE, accept=0.9))
  with pytest.raises(ValueError, match="no reward"):
    Audited(JUDGE, 3)
  with pytest.raises(ValueError, match=r"Audited\.load"):
    audited.auditor().load()


def test_an_ensemble_is_found_however_deep():
  model = RewardModel(("folder",))
  deep = Sum((Length(), Gate(JUDGE, Sum((model, Length())))))
  assert deep.disagreement == "gate.sum.reward_model.std"
  assert Audited(deep, JUDGE).disagreement == deep.disagreement
  assert Sum((Length(), Scale(A))).disagreement is None


def test_an_audit_changes_nothing_of_what_is_trained():
  """States are merged as before where the task's own reward pays."""
  plain = get_config()
  audited = dataclasses.replace(plain, audit=Audit(TaskReward()))
  task, own = audited.make_task(), plain.make_task()
  assert task.reward == Audited(own.reward, own.reward)
  assert task.state_key.__self__ == own.state_key.__self__
  assert audited.learner_config() == plain.learner_config()
  longer = dataclasses.replace(audited, reward=Sum((TaskReward(), Length())))
  assert longer.make_task().state_key is None
  assert plain.evaluations == 4
  once = dataclasses.replace(plain.eval, every=0)
  assert dataclasses.replace(plain, eval=once).evaluations == 2


# --- A preference and a verifier that differ ----------------------------------

TASK = CountdownConfig(numbers=3).make()
PROBLEM = np.array([[2, 3, 4, symbols.SEPARATOR, 14]], np.int32)
PROMPTS = as_prompts(TASK, PROBLEM)
WORDS = [2, 3, 4, 5, 6, 7, 8, 12, 14, 20, *range(symbols.PLUS, symbols.PAD)]


def response(*steps):
  return [*sum(steps, []), symbols.EOS]


def scored(reward, answers):
  bound = reward.bind(TASK.reward)
  tokens_1GT = jnp.asarray(np.array(answers, np.int32))[None]
  found = Scorer(bound, TASK.end_ids, bound.load())(PROMPTS, tokens_1GT)
  return jax.tree.map(lambda a: np.asarray(a[0]), found)


SOLVED = [
  response([3, symbols.TIMES, 4, 12], [2, symbols.PLUS, 12, 14]),
  response([4, symbols.TIMES, 3, 12], [12, symbols.PLUS, 2, 14]),
  response([2, symbols.PLUS, 3, 5], [5, symbols.PLUS, 4, 9]),
  # It ends with the target, and is none.
  response([2, symbols.PLUS, 3, 5], [4, symbols.PLUS, 5, 14]),
]
word = st.sampled_from(WORDS)
step = st.tuples(word, word, word, word).map(list)
answer = st.tuples(step, step).map(lambda s: response(*s))


@settings(max_examples=25, deadline=None)
@given(
  st.lists(answer, min_size=4, max_size=4),
  st.floats(0.01, 100.0), st.floats(0.01, 100.0),
)  # fmt: skip
def test_no_liked_wrong_answer_beats_a_right_one(answers, right, liked):
  """Whatever the weights: among right ones the liked are ahead."""
  gated = dataclasses.replace(hybrid.GATED, weights=(right, liked))
  found = scored(gated, SOLVED + answers)
  assert list(found.correct_X[:4]) == [True, True, False, False]
  worst = found.reward_X[found.correct_X].min()
  assert worst > found.reward_X[~found.correct_X].max()
  order = np.argsort(found.reward_X[found.correct_X], kind="stable")
  liked_J = found.parts["gate.liked"][found.correct_X]
  assert np.all(np.diff(liked_J[order]) >= 0)


def test_the_sum_without_a_gate_is_beaten_by_a_lie():
  found = scored(hybrid.UNGATED, SOLVED)
  np.testing.assert_allclose(found.parts["liked"], [1.0, 0.5, 0.25, 1.0])
  assert list(found.correct_X) == [True, True, False, False]
  assert found.reward_X[1] < found.reward_X[3] < found.reward_X[0]


def test_what_is_liked_is_read_up_to_the_end():
  unfinished = [2, symbols.PLUS, 3, 14, *[5] * 5]
  early = [2, symbols.PLUS, 14, symbols.EOS, symbols.PLUS, *[symbols.PAD] * 4]
  silent = [symbols.EOS, *[symbols.PAD] * 8]
  found = scored(hybrid.UNGATED, [unfinished, early, silent])
  np.testing.assert_allclose(found.parts["liked"], [0.5, 1.0, 0.0])
