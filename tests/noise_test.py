"""Verifiers that err: how often, on what, and that nobody is judged by them."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests.iteration_test import EOS, PAD, Copy, T, V, start
from tsd_jax.rewards.abstention import Abstention
from tsd_jax.rewards.algebra import Sum, TaskReward
from tsd_jax.rewards.noise import Confirmed, Jittered, Noisy
from tsd_jax.rewards.reward import Scorer
from tsd_jax.rewards.terms import Length
from tsd_jax.run import evaluation
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.task import OwnReward, as_prompts, rewarded

OWN = Copy()
REWARD = OwnReward(OWN)
B, G = 500, 40


def responses(seed=0, count=B):
  """Prompts, and finished responses to them that begin at random."""
  rng = np.random.default_rng(seed)
  prompts = as_prompts(OWN, rng.integers(0, 6, (count, 2)).astype(np.int32))
  tokens_BGT = rng.integers(0, 6, (count, G, T)).astype(np.int32)
  tokens_BGT[..., -1] = EOS
  return prompts, jnp.asarray(tokens_BGT)


def judged(reward, prompts, tokens_BGT):
  return Scorer(reward, (EOS,), reward.load())(prompts, tokens_BGT)


@pytest.mark.parametrize("fixed", [True, False])
def test_it_errs_as_often_as_it_says(fixed):
  """Within four standard errors of those that differ, as errors do."""
  prompts, tokens_BGT = responses()
  right_BG = np.asarray(judged(REWARD, prompts, tokens_BGT).correct_X)
  noisy = Noisy(REWARD, accept=0.15, reject=0.3, fixed=fixed)
  score = judged(noisy, prompts, tokens_BGT)
  said_BG = np.asarray(score.correct_X)
  place_G1 = np.zeros((G, 1)) if fixed else np.arange(G)[:, None]
  prompt_BGP, place_BG1 = (
    np.broadcast_to(a, (B, G, a.shape[-1]))
    for a in (np.asarray(prompts.tokens_BP)[:, None], place_G1)
  )
  judged_BGX = np.concatenate([prompt_BGP, place_BG1, tokens_BGT], axis=-1)
  for of_BG, rate in ((~right_BG, 0.15), (right_BG, 0.3)):
    _, at = np.unique(judged_BGX[of_BG], axis=0, return_index=True)
    errs = (said_BG != right_BG)[of_BG][at]
    assert len(errs) > 1000
    error = np.sqrt(rate * (1 - rate) / len(errs))
    assert abs(errs.mean() - rate) < 4 * error
  np.testing.assert_array_equal(score.reward_X, said_BG.astype(np.float32))
  np.testing.assert_array_equal(score.parts["right"], right_BG)
  np.testing.assert_array_equal(score.parts["mistaken"], said_BG != right_BG)


@hypothesis.given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
@hypothesis.settings(max_examples=10, deadline=None)
def test_a_fixed_error_belongs_to_the_response(seed, order):
  """Whatever stands beside it or behind its end; others' errors differ."""
  noisy = Noisy(REWARD, accept=0.5, seed=seed)
  prompts, tokens_BGT = responses(count=20)
  said_BG = np.asarray(judged(noisy, prompts, tokens_BGT).correct_X)
  place_G = np.random.default_rng(order).permutation(G)
  moved = judged(noisy, prompts, tokens_BGT[:, place_G])
  np.testing.assert_array_equal(moved.correct_X, said_BG[:, place_G])
  early_BGT = tokens_BGT.at[..., -2].set(EOS)
  other = judged(noisy, prompts, early_BGT)
  padded = judged(noisy, prompts, early_BGT.at[..., -1].set(PAD))
  np.testing.assert_array_equal(other.correct_X, padded.correct_X)
  reseeded = dataclasses.replace(noisy, seed=seed + 1)
  assert (judged(reseeded, prompts, tokens_BGT).correct_X != said_BG).any()


def test_what_is_worth_too_little_is_never_accepted():
  """Here wrong responses are worth nothing."""
  noisy = Noisy(REWARD, accept=0.9, above=0.0)
  right_BG = judged(REWARD, *responses()).correct_X
  said_BG = judged(noisy, *responses()).correct_X
  np.testing.assert_array_equal(said_BG, right_BG)


@pytest.mark.parametrize("least, rate", [(None, 0.027), (2, 0.216)])
def test_asked_again_it_errs_less(least, rate):
  """Three times running with .3, or two times in three."""
  noisy = Noisy(REWARD, accept=0.3, fixed=False)
  confirmed = Confirmed(noisy, calls=3, least=least)
  prompts, tokens_BGT = responses()
  score = judged(confirmed, prompts, tokens_BGT)
  three_BGK = np.asarray(
    judged(noisy, prompts, jnp.repeat(tokens_BGT, 3, axis=1)).correct_X
  ).reshape(B, G, 3)
  needed = 3 if least is None else least
  expected_BG = three_BGK.sum(axis=-1) >= needed
  np.testing.assert_array_equal(score.correct_X, expected_BG)
  np.testing.assert_array_equal(score.reward_X, expected_BG)
  wrong_BG = ~np.asarray(judged(REWARD, prompts, tokens_BGT).correct_X)
  accepted = np.asarray(score.correct_X)[wrong_BG]
  assert abs(accepted.mean() - rate) < 4 * np.sqrt(rate / len(accepted))
  # It does not help against a rule with a gap.
  gap = dataclasses.replace(noisy, fixed=True)
  np.testing.assert_array_equal(
    judged(Confirmed(gap, calls=3, least=least), prompts, tokens_BGT).correct_X,
    judged(gap, prompts, tokens_BGT).correct_X,
  )


def test_a_jittered_reward_is_off_by_what_it_says():
  """Uniformly, but for outliers; what is correct stays known."""
  prompts, tokens_BGT = responses()
  exact = judged(REWARD, prompts, tokens_BGT)
  jittered = Jittered(REWARD, size=0.1, outliers=0.05, outlier=4.0)
  score = judged(jittered, prompts, tokens_BGT)
  np.testing.assert_array_equal(score.correct_X, exact.correct_X)
  np.testing.assert_array_equal(score.parts["exact"], exact.reward_X)
  assert (jittered.low, jittered.high) == (REWARD.low - 4.0, REWARD.high + 4.0)
  error_BG = np.asarray(score.reward_X - exact.reward_X)
  _, at = np.unique(
    np.concatenate(
      [
        np.broadcast_to(np.asarray(prompts.tokens_BP)[:, None], (B, G, 2)),
        tokens_BGT,
      ],
      axis=-1,
    ).reshape(B * G, -1),
    axis=0,
    return_index=True,
  )
  errors = error_BG.reshape(-1)[at]
  far = np.abs(errors) > 0.1 + 1e-5
  np.testing.assert_allclose(np.abs(errors[far]), 4.0, atol=1e-5)
  assert abs(far.mean() - 0.05) < 4 * np.sqrt(0.05 / len(far))
  near = errors[~far]
  assert scipy.stats.kstest(near, "uniform", (-0.1, 0.2)).pvalue > 1e-3
  signs = errors[far] > 0
  assert abs(signs.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(signs))
  assert jittered.truth() == REWARD
  again = judged(dataclasses.replace(jittered, seed=1), prompts, tokens_BGT)
  assert (again.reward_X != score.reward_X).mean() > 0.9


@pytest.mark.parametrize(
  "field, value", [("size", -1.0), ("outlier", -1.0), ("outliers", 1.0)]
)
def test_impossible_errors_are_refused(field, value):
  with pytest.raises(ValueError, match=rf"Jittered\.{field}={value}"):
    Jittered(REWARD, **{field: value})


def test_the_truth_is_found_within():
  """However deep the verifier that errs stands, and with its parameters."""
  noisy = Noisy(TaskReward(), accept=0.1)
  deep = Abstention(Sum((Confirmed(noisy), Length()), (1.0, 0.1)), mark=5)
  plain = Abstention(
    Sum((Confirmed(TaskReward()), Length()), (1.0, 0.1)), mark=5
  )
  assert deep.truth() == plain
  assert deep.bind(REWARD).truth() == plain.bind(REWARD)
  assert plain.bind(REWARD).truth() == plain.bind(REWARD)
  assert jax.tree.structure(deep.bind(REWARD).load()) == jax.tree.structure(
    plain.bind(REWARD).load()
  )


def test_what_cannot_read_the_tokens_is_found_within():
  class Foreign(OwnReward):
    def misreads(self, tokenizer):
      return f"no {tokenizer}"

  deep = Sum((Confirmed(Noisy(Foreign(OWN))),))
  assert deep.misreads("tokens") == "no tokens"
  assert Sum((Confirmed(Noisy(REWARD)),)).misreads("tokens") is None


def test_calls_add_up():
  """Of verifiers within verifiers, and of the busiest of some."""
  twice = Confirmed(REWARD, calls=2)
  assert REWARD.judgements == 1
  assert Confirmed(twice, calls=3).judgements == 6
  assert Noisy(twice).judgements == 2
  assert Sum((Length(), twice)).judgements == 2


@pytest.mark.parametrize(
  "make, words",
  [
    (lambda: Noisy(REWARD, accept=1.0), "Noisy.accept=1.0 must lie in"),
    (lambda: Noisy(REWARD, reject=-0.1), "Noisy.reject=-0.1 must lie in"),
    (lambda: Noisy(Length()), "Length knows no correct answers: Noisy"),
    (lambda: Noisy(print), "Noisy holds"),
    (lambda: Confirmed(REWARD, calls=0), "Confirmed.calls=0 must be"),
    (lambda: Confirmed(REWARD, least=4), "Confirmed.least=4 must lie in"),
  ],
)
def test_what_cannot_be_is_refused(make, words):
  """Before anything is compiled."""
  with pytest.raises(ValueError, match=words):
    make()


def test_held_out_answers_are_judged_by_the_truth():
  """And chosen by the verifier, errors and all."""
  noisy = Noisy(REWARD, accept=0.4)
  prompts, _ = responses(count=64)
  found = {}
  for name, reward in (("plain", REWARD), ("noisy", noisy)):
    found[name] = evaluation.evaluate(
      *start(), rewarded(OWN, reward), prompts, "greedy,mean@8,best@8,search@4",
      seed=0, search=SearchConfig(num_candidates=V),
    )  # fmt: skip
  for mode in ("greedy", "mean@8"):
    plain, told = found["plain"][mode], found["noisy"][mode]
    assert told["accuracy"] == plain["accuracy"]
    assert told["reward"] > plain["reward"]
  for mode in ("best@8", "search@4"):  # Deceived, and seen to be.
    plain, told = found["plain"][mode], found["noisy"][mode]
    assert told["accuracy"] < plain["accuracy"] < told["reward"]
