"""What is said of rewards on held-out pairs: by hand, SciPy and simulation."""

import json

import numpy as np
import pytest
import scipy.special
import scipy.stats

from tsd_jax.run import pair_measures as measures

RNG = np.random.default_rng(0)
COUNT = 400


def drawn(count=COUNT, seed=0, scale=1.0, repeat=1):
  """Rewards whose pairs are won as often as they say, at scale 1."""
  rng = np.random.default_rng(seed)
  true_Q2 = rng.normal(size=(count, 2))
  ahead_Q = true_Q2[:, 0] - true_Q2[:, 1]
  swap_Q = rng.random(count) > scipy.special.expit(ahead_Q)
  true_Q2[swap_Q] = true_Q2[swap_Q, ::-1]
  return scale * np.repeat(true_Q2, repeat, axis=0)


def found_of(reward_Q2, length_Q2=None, group_Q=None):
  count = len(reward_Q2)
  length_Q2 = np.ones((count, 2), int) if length_Q2 is None else length_Q2
  group_Q = np.arange(count) if group_Q is None else group_Q
  return measures.measure(reward_Q2[..., None], length_Q2, group_Q)


def test_ties_are_worth_a_half():
  found = found_of(np.array([[1.0, 0], [0, 1], [2, 2], [3, 1]]))
  assert found["accuracy"]["value"] == 2.5 / 4
  assert found["pairs"] == found["prompts"] == 4


def test_a_calibrated_reward_is_told_from_a_boastful_one():
  honest = found_of(drawn())["calibration"]
  assert honest["ece"] < honest["ece_if_calibrated_95"]
  assert honest["overconfidence"]["low"] < 0 < honest["overconfidence"]["high"]
  boastful = found_of(drawn(scale=5.0))["calibration"]
  assert boastful["ece"] > 2 * boastful["ece_if_calibrated_95"]
  assert boastful["overconfidence"]["low"] > 0.1
  timid = found_of(drawn(scale=0.1))["calibration"]
  assert timid["overconfidence"]["high"] < -0.05
  assert honest["log_loss"]["value"] < min(
    x["log_loss"]["value"] for x in (boastful, timid)
  )


def test_calibration_by_hand():
  reward_Q2 = drawn(60)
  found = found_of(reward_Q2)["calibration"]
  ahead_Q = reward_Q2[:, 0] - reward_Q2[:, 1]
  p_Q = scipy.special.expit(ahead_Q)
  assert found["log_loss"]["value"] == pytest.approx(-np.log(p_Q).mean())
  total, rows = (
    0.0,
    {round(row["from"], 2): row for row in found["reliability"]},
  )
  for b in range(measures.BINS):
    low = 0.5 + b * 0.05
    its = [
      (max(p, 1 - p), p > 0.5) for p in p_Q if low <= max(p, 1 - p) < low + 0.05
    ]
    if not its:
      continue
    sure, hit = np.mean(its, axis=0)
    total += len(its) / 60 * abs(sure - hit)
    row = rows[round(low, 2)]
    assert row["pairs"] == len(its)
    assert row["confidence"] == pytest.approx(sure)
    assert row["accuracy"]["value"] == pytest.approx(hit)
  assert found["ece"] == pytest.approx(total)
  assert sum(row["pairs"] for row in rows.values()) == 60


def test_a_reward_of_length_is_found_out():
  length_Q2 = RNG.integers(1, 30, (COUNT, 2))
  found = found_of(length_Q2 / 10.0, length_Q2)["length"]
  assert found["correlation"]["value"] == pytest.approx(1)
  assert found["correlation_in_pairs"]["value"] == pytest.approx(1)
  assert found["accuracy_chosen_longer"]["value"] == 1
  assert found["accuracy_chosen_shorter"]["value"] == 0
  longer = length_Q2[:, 0] > length_Q2[:, 1]
  assert found["pairs_chosen_longer"] == longer.sum()
  fair = found_of(drawn(), length_Q2)["length"]
  for name in ("correlation", "correlation_in_pairs"):
    assert fair[name]["low"] < 0 < fair[name]["high"]
  both = drawn() + length_Q2 / 20
  by_numpy = np.corrcoef(both.ravel(), length_Q2.ravel())[0, 1]
  mixed = found_of(both, length_Q2)["length"]
  assert mixed["correlation"]["value"] == pytest.approx(by_numpy)
  # It makes no difference which of the two stands first.
  swapped = found_of(both[:, ::-1], length_Q2[:, ::-1])["length"]
  name = "correlation_in_pairs"
  assert swapped[name]["value"] == pytest.approx(mixed[name]["value"])


def test_equal_lengths_say_nothing():
  found = found_of(drawn(50))["length"]
  assert found["correlation"]["value"] == 0
  assert found["chosen_is_longer"]["value"] == 0.5
  assert "accuracy_chosen_longer" not in found


@pytest.mark.parametrize(("n", "p"), [(20, 0.95), (50, 0.7), (200, 0.5)])
def test_intervals_are_wilsons_and_hold_the_truth(n, p):
  rng, inside = np.random.default_rng(n), []
  for _ in range(400):
    hit_Q = (rng.random(n) < p).astype(float)
    found = measures.proportion(hit_Q, np.arange(n))
    wilson = scipy.stats.binomtest(int(hit_Q.sum()), n).proportion_ci(
      method="wilson"
    )
    if 0 < hit_Q.mean() < 1:  # One pair a group: n / (n - 1) apart.
      assert found["low"] == pytest.approx(wilson.low, abs=0.3 / n)
      assert found["high"] == pytest.approx(wilson.high, abs=0.3 / n)
    else:
      assert found["low"] == pytest.approx(wilson.low)
    inside.append(found["low"] <= p <= found["high"])
  assert np.mean(inside) > 0.9


def test_pairs_of_a_prompt_count_once_where_they_agree():
  hit_Q = (np.random.default_rng(1).random(60) < 0.8).astype(float)
  alone = measures.proportion(hit_Q, np.arange(60))
  group_Q = np.repeat(np.arange(60), 9)
  repeated = measures.proportion(np.repeat(hit_Q, 9), group_Q)
  for side in ("value", "low", "high"):
    assert repeated[side] == pytest.approx(alone[side], abs=0.003)
  # Taken for independent they would seem three times as sure.
  naive = measures.proportion(np.repeat(hit_Q, 9), np.arange(540))
  width = {k: x["high"] - x["low"] for k, x in (("a", alone), ("n", naive))}
  assert width["a"] > 2.5 * width["n"]
  every = measures.proportion(np.ones(540), group_Q)
  assert every["low"] == pytest.approx(measures.proportion(
    np.ones(60), np.arange(60))["low"])  # fmt: skip


def test_the_bootstrap_draws_groups():
  x_Q = np.random.default_rng(2).normal(size=80)
  mean = lambda x: lambda w: np.average(x, weights=w)  # noqa: E731
  alone = measures.bootstrapped(mean(x_Q), np.arange(80))
  exact = 1.96 * x_Q.std() / np.sqrt(80)
  assert alone["high"] - alone["value"] == pytest.approx(exact, rel=0.12)
  repeated = measures.bootstrapped(
    mean(np.repeat(x_Q, 5)), np.repeat(np.arange(80), 5)
  )
  assert repeated == pytest.approx(alone)


def test_members_that_agree_are_right_more_often():
  rng = np.random.default_rng(3)
  clear_Q = rng.random(COUNT) < 0.5
  true_Q2 = np.stack([np.where(clear_Q, 2.0, 0.1), np.zeros(COUNT)], axis=1)
  noise_Q2K = rng.normal(size=(COUNT, 2, 5)) * np.where(
    clear_Q, 0.3, 2.0
  ).reshape(-1, 1, 1)
  reward_Q2K = true_Q2[..., None] + noise_Q2K
  found = measures.members(reward_Q2K, np.arange(COUNT))
  assert found["count"] == 5
  agree, differ = (
    found[f"accuracy_where_they_{x}"] for x in ("agree", "differ")
  )
  assert agree["low"] > differ["high"]
  assert found["std"] == pytest.approx(
    np.mean([np.std(row, ddof=1) for row in reward_Q2K.reshape(-1, 5)])
  )
  hits = reward_Q2K[:, 0] > reward_Q2K[:, 1]
  assert found["mean_accuracy_of_one"] == pytest.approx(hits.mean())
  differ = [len({*row}) > 1 for row in hits.tolist()]
  assert found["pairs_where_they_differ"] == sum(differ) > 50
  assert found["spread_and_size"] < 0.2
  scaled = true_Q2[..., None] * rng.normal(1, 0.1, (COUNT, 1, 5))
  found = measures.members(scaled, np.arange(COUNT))
  assert found["spread_and_size"] > 0.8
  assert "accuracy_where_they_differ" not in found


def test_the_table_says_what_was_measured():
  length_Q2 = RNG.integers(1, 9, (COUNT, 2))
  reward_Q2K = drawn()[..., None] + 0.1 * RNG.normal(size=(COUNT, 2, 3))
  found = measures.measure(reward_Q2K, length_Q2, np.arange(COUNT) // 2)
  assert json.loads(json.dumps(found)) == found
  text = measures.table(found)
  assert text.startswith("400 held-out pairs of 200 prompts")
  for name in ("accuracy", "chosen is shorter", "calibration", "agree"):
    assert name in text
  assert f"{found['accuracy']['value']:.3f}" in text
