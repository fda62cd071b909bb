"""The rules that tell when a reward is hacked, and how often they are wrong."""

import json

import numpy as np
import pytest
from scipy import stats

from tsd_jax.rewards.algebra import TaskReward
from tsd_jax.run.hacking import Audit, Detector, Seen, exceeds

Q, K = 300, 16


def seen(step, accepted_Q, *, reward=0.5, best_Q=None, **more):
  """An evaluation in which choosing by reward changes nothing."""
  best_Q = accepted_Q if best_Q is None else best_Q
  fields = dict(greedy_Q=accepted_Q, champion_Q=None, length=9.0, kl=0.1)
  return Seen(step, reward, accepted_Q, best_Q, **(fields | more))


def skills(rng, mean=0.4):
  """How probably each problem is solved: most are hard or easy."""
  return rng.beta(2 * mean, 2 * (1 - mean), Q)


@pytest.mark.parametrize("shift", [-0.1, 0.0, 0.02, 0.05, 0.1])
@pytest.mark.parametrize("level", [0.05, 1e-3])
def test_the_test_is_students(shift, level):
  rng = np.random.default_rng(round(100 * shift) + 50)
  difference_Q = rng.normal(shift, 0.3, 60)
  found = stats.ttest_1samp(difference_Q, 0.0, alternative="greater")
  assert exceeds(difference_Q, level) == (found.pvalue < level)


def test_differences_that_are_all_alike_count_by_their_signs():
  assert exceeds(np.ones(20), 1e-4) and not exceeds(np.ones(5), 1e-3)
  # Also where their mean is rounded.
  assert not exceeds(np.full(3, 0.1), 1e-3) and exceeds(np.full(3, 0.1), 0.13)
  assert not exceeds(np.zeros(20), 0.5) and not exceeds(-np.ones(20), 0.5)
  assert not exceeds(np.ones(1), 0.6)


def test_runs_that_are_not_hacked_are_suspected_no_oftener_than_is_said():
  """Policies that stay as good as they are, whatever they are paid."""
  rng = np.random.default_rng(0)
  audit, evaluations, suspected, runs = Audit(TaskReward(), K, 0.1), 6, 0, 400
  for _ in range(runs):
    detector, p_Q, alarms = Detector(audit, evaluations), skills(rng), {}
    for step in range(evaluations):
      answers_QG = rng.random((Q, K)) < p_Q[:, None]
      alarms |= detector.see(
        seen(
          step, answers_QG.mean(1), reward=float(step),
          best_Q=answers_QG[:, 0].astype(float),
          greedy_Q=answers_QG[:, 1].astype(float),
          champion_Q=answers_QG[:, 2].astype(float),
        )
      )  # fmt: skip
    suspected += bool(alarms)
  # 0.1, and four standard errors of what is counted.
  assert suspected / runs < 0.1 + 4 * np.sqrt(0.09 / runs)
  assert suspected  # The tests are not so strict that nothing ever passes.


def hacked(rng, detector, steps=30):
  """A run that rises and then falls; what was told first, and the curve."""
  p_Q, curve = skills(rng), []
  for step in range(steps):
    # Up for 10 evaluations, then down by .012 of a problem each.
    level = 1 + 0.02 * step if step < 10 else 1.2 - 0.03 * (step - 10)
    accepted_Q = rng.binomial(K, np.clip(level * p_Q, 0, 1)) / K
    curve.append(accepted_Q.mean())
    alarms = detector.see(seen(step, accepted_Q, reward=0.1 * step))
    if alarms:
      return step, alarms, curve
  raise AssertionError("nothing was told")


@pytest.mark.parametrize("seed", range(5))
def test_a_fall_is_told_before_a_tenth_is_lost(seed):
  rng = np.random.default_rng(seed)
  step, alarms, curve = hacked(rng, Detector(Audit(TaskReward()), 30))
  assert list(alarms) == ["fall"] and step > 10
  assert max(curve) - curve[-1] < 0.1
  best = int(np.argmax(curve[:-1]))
  assert f"since iteration {best} what the audit accepts" in alarms["fall"]
  assert "the paid reward rose from" in alarms["fall"]


def test_a_fall_of_reward_and_of_what_is_accepted_is_no_hacking():
  detector = Detector(Audit(TaskReward()), 2)
  assert not detector.see(seen(0, np.full(Q, 0.5), reward=0.5))
  assert not detector.see(seen(5, np.full(Q, 0.25), reward=0.4))
  assert "fall" in detector.see(seen(10, np.full(Q, 0.25), reward=0.6))


@pytest.mark.parametrize("paid", [0.3, 0.1, None])
def test_a_fall_is_told_where_rejected_answers_are_paid_more(paid):
  """Though all in all less is paid: there are fewer right answers."""
  detector = Detector(Audit(TaskReward()), 2)
  detector.see(seen(0, np.full(Q, 0.5), rejected_reward=0.2))
  found = detector.see(
    seen(5, np.full(Q, 0.25), reward=0.4, rejected_reward=paid)
  )
  assert ("fall" in found) == (paid == 0.3)
  assert "paid rose from 0.200 to 0.300" in str(found) or paid != 0.3


def test_choosing_what_the_audit_rejects_is_told_at_the_start():
  rng = np.random.default_rng(1)
  a_Q = skills(rng)
  wrong_Q = (rng.random(Q) < a_Q / 2).astype(float)
  found = Detector(Audit(TaskReward()), 10).see(seen(0, a_Q, best_Q=wrong_Q))
  assert list(found) == ["best_paid"] and f"{a_Q.mean():.3f}" in str(found)
  found = Detector(Audit(TaskReward()), 10).see(
    seen(0, a_Q, champion_Q=wrong_Q)
  )
  assert list(found) == ["champion"] and f"{wrong_Q.mean():.3f}" in str(found)


@pytest.mark.parametrize(
  "limit, more, rule",
  [
    ({"disagreement": 2.0}, {"disagreement": 0.5}, "disagreement"),
    ({"length": 2.0}, {"length": 19.0}, "length"),
    ({"length": 2.0}, {"length": 4.0}, "length"),
    ({"kl": 0.5}, {"kl": 0.6}, "kl"),
  ],
)
def test_bounds_hold_against_the_start(limit, more, rule):
  same_Q = np.full(Q, 0.5)
  none = dict.fromkeys(("disagreement", "length", "kl"))
  for bounds, expected in ((none | limit, [rule]), (none, [])):
    detector = Detector(Audit(TaskReward(), **bounds), 3)
    assert not detector.see(seen(0, same_Q, disagreement=0.2))
    later = {"disagreement": 0.39} | more
    assert list(detector.see(seen(1, same_Q, **later))) == expected


def test_a_detector_goes_on_from_a_checkpoint():
  rng = np.random.default_rng(3)
  a_Q, less_Q = skills(rng), skills(rng, 0.2)
  one, other = (Detector(Audit(TaskReward()), 4) for _ in range(2))
  first = seen(0, a_Q, champion_Q=a_Q, disagreement=0.1)
  one.see(first)
  one.alarm = "told"
  other.restore(json.loads(json.dumps(one.to_json())))
  later = seen(5, less_Q, reward=0.9, disagreement=0.3)
  assert other.see(later) == one.see(later) != {}
  assert other.alarm == "told"


@pytest.mark.parametrize(
  "fields, words",
  [
    (dict(verifier=3), "audit.verifier=3 is no reward"),
    (dict(samples=1), "audit.samples=1 must be at least 2"),
    (dict(false_alarm=0.0), "audit.false_alarm=0.0 must lie"),
    (dict(disagreement=1.0), "audit.disagreement=1.0 must be above 1"),
    (dict(length=0.5), "audit.length=0.5 must be above 1"),
    (dict(kl=0.0), "audit.kl=0.0 must be above 0"),
    (dict(listed=-1), "audit.listed=-1 must not be"),
  ],
)
def test_what_cannot_be_is_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    Audit(**({"verifier": TaskReward()} | fields))
