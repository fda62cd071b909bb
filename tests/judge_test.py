"""The comparison: statistics against their definitions, and the command."""

import dataclasses
import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.stats

from experiments import compare_countdown, compare_countdown4
from tests import small_comparison
from tsd_jax.comparison import judge, statistics
from tsd_jax.parallel.sharding import MeshConfig
from tsd_jax.run import costs
from tsd_jax.run import curves as curves_lib
from tsd_jax.run.curves import Curve

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = np.array([0, 10, 20, 30])


def curve(*accuracy, tokens=100, seconds=0.5):
  return Curve(
    STEPS, STEPS * tokens, np.array(accuracy), np.zeros(4), STEPS * seconds
  )


SLOW = curve(0.1, 0.2, 0.3, 0.4)
FAST = curve(0.1, 0.3, 0.5, 0.5, tokens=200, seconds=1.5)


@pytest.mark.parametrize(
  ("target", "steps"), [(0.1, 0), (0.2, 5), (0.4, 15), (0.5, 20), (0.6, np.inf)]
)
def test_steps_to_a_target(target, steps):
  assert statistics.steps_to(FAST, target) == pytest.approx(steps)


def test_a_dip_does_not_hide_the_first_crossing():
  assert statistics.steps_to(curve(0.1, 0.4, 0.2, 0.4), 0.25) == pytest.approx(
    5
  )


def test_area_is_the_mean_height():
  assert statistics.area(SLOW) == pytest.approx(0.25)
  assert statistics.area(FAST) == pytest.approx((0.2 + 0.4 + 0.5) / 3)


def test_contrast_by_hand():
  found = statistics.contrast({"tsd": [FAST] * 3, "ppo": [SLOW] * 3})
  # .4 after 15 iterations instead of 30.
  steps = found["steps_to_target"]["tsd/ppo"]
  assert steps["value"] == pytest.approx(0.5)
  assert steps["ci95"] == pytest.approx([0.5, 0.5])

  def value(name):
    return found[name]["tsd/ppo"]["value"]

  # 3,000 tokens: 15 of fast's iterations, 30 of slow's; both are at .4 there.
  assert value("accuracy_at_equal_tokens") == pytest.approx(1.0)
  assert value("difference_at_equal_tokens") == pytest.approx(0.0)
  assert value("difference_at_equal_steps") == pytest.approx(0.1)
  # A second is two of slow's iterations: fast is still at .3 when slow ends.
  assert value("accuracy_at_equal_seconds") == pytest.approx(0.3 / 0.4)
  assert value("difference_of_area") == pytest.approx(11 / 30 - 0.25)
  assert found["probability_of_improvement"]["tsd/ppo"] == pytest.approx(0.5)


def test_half_the_tokens_are_half_of_the_shorter_run_s():
  late = curve(0.1, 0.1, 0.1, 0.4)
  found = statistics.contrast({"tsd": [FAST], "ppo": [late]})
  # 1,500 tokens: 7.5 of fast's iterations, 15 of late's.
  half = found["accuracy_at_half_the_tokens"]["tsd/ppo"]["value"]
  assert half == pytest.approx(0.25 / 0.1)
  whole = found["accuracy_at_equal_tokens"]["tsd/ppo"]["value"]
  assert whole == pytest.approx(1.0)


def test_a_setting_is_chosen_by_more_than_a_run_s_last_evaluation():
  steady, lucky = curve(0.1, 0.3, 0.3, 0.3), curve(0.1, 0.1, 0.1, 0.4)
  assert judge.sweep_score(steady) == pytest.approx(0.3)
  assert judge.sweep_score(steady) > judge.sweep_score(lucky)
  short = Curve(*(a[:3] for a in steady))  # Its start does not count.
  assert judge.sweep_score(short) == pytest.approx(0.3)


def test_resampled_seeds_move_every_statistic():
  """Two seeds that reach the target after 10 and after 20 iterations."""
  early, late = curve(0.1, 0.4, 0.4, 0.4), curve(0.1, 0.1, 0.4, 0.4)
  found = statistics.contrast({"tsd": [early, late], "ppo": [SLOW]})
  steps = found["steps_to_target"]["tsd/ppo"]
  assert steps["value"] == pytest.approx(20 / 30)
  assert steps["ci95"] == pytest.approx([10 / 30, 20 / 30])


def test_a_target_that_is_never_reached_is_none():
  found = statistics.contrast({"tsd": [SLOW] * 2, "ppo": [FAST] * 2})
  assert found["steps_to_target"]["tsd/ppo"] == {
    "value": None, "median": None, "ci95": [None, None],
  }  # fmt: skip
  json.dumps(found, allow_nan=False)


def test_the_interval_is_scipys():
  rng = np.random.default_rng(1)
  ours, theirs = rng.normal(0.4, 0.03, 8), rng.normal(0.3, 0.03, 8)

  def ends(values):
    return [curve(0.1, 0.1, 0.1, v) for v in values]

  got = statistics.bootstrap(
    ends(ours), ends(theirs),
    {"gain": lambda a, b: a.accuracy[-1] - b.accuracy[-1]}, draws=4000,
  )["gain"]  # fmt: skip
  expected = scipy.stats.bootstrap(
    (ours, theirs), lambda a, b, axis: a.mean(axis) - b.mean(axis),
    method="percentile", n_resamples=4000, rng=0,
  ).confidence_interval  # fmt: skip
  assert got["ci95"] == pytest.approx(list(expected), abs=3e-3)
  assert got["value"] == pytest.approx(ours.mean() - theirs.mean())


def test_probability_of_improvement_is_mann_whitney():
  rng = np.random.default_rng(2)
  a, b = rng.normal(0.5, 1, 9), rng.normal(0, 1, 7)
  u = scipy.stats.mannwhitneyu(a, b).statistic
  assert statistics.probability_of_improvement(a, b) == pytest.approx(u / 63)
  assert statistics.probability_of_improvement([1, 1], [1, 1]) == 0.5


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (dict(methods=("ppo", "tsd")), "must begin with tsd"),
    (dict(methods=("tsd", "tsd")), "repeats one"),
    (dict(seeds=(0, 0)), "must be distinct"),
    (dict(sweep_seed=1), "must be none of seeds"),
    (dict(split="validation"), "chose the settings"),
    (dict(values=()), "values is empty"),
    (dict(values=("fast",)), "is not a number"),
    (
      dict(
        swept="optimizer.learning_rate+optimizer.linear_decay", values=("1e-3",)
      ),
      "must give each of swept=",
    ),
    (dict(mode="greedy"), "is not what experiment.eval.modes"),
    (dict(runs=0), "runs=0 must be at least 1"),
    (
      dict(
        runs=2,
        experiment=dataclasses.replace(
          small_comparison.get_config().experiment, mesh=MeshConfig(data=2)
        ),
      ),
      "need a mesh of one device",
    ),
    (
      dict(swept="optimizer.minibatches", values=("2", "4")),
      "their ratio of steps would mean nothing",
    ),
  ],
)
def test_what_cannot_be_compared_is_refused_before_any_run(change, words):
  with pytest.raises(Exception, match=re.escape(words)):
    dataclasses.replace(small_comparison.get_config(), **change)


@pytest.mark.parametrize("file", [compare_countdown, compare_countdown4])
def test_every_method_reads_as_much_in_an_update_step(file):
  config = file.get_config()
  assert config.methods == judge.METHODS
  for method in config.methods:
    run = config.run(method, config.values[0], 0, "test")
    step, ours = costs.update_step(run), costs.update_step(config.experiment)
    share = step["backward_tokens"] / ours["backward_tokens"]
    assert 0.95 < share < 1 + judge.TOLERANCE, method
    assert step["steps_an_iteration"] == 8


@pytest.mark.parametrize("share", [1.0, 0.7])
def test_cheaper_iterations_are_more_iterations(share):
  config = compare_countdown.get_config()
  ours = config.run("tsd", "3e-4", 0, "test", share)
  assert ours.iterations == config.experiment.iterations
  # By hand: a search that stops early leaves that much of its budget.
  saved = (1 - share) * 1024 * 16
  spends = ours.iterations * (costs.iteration_tokens(ours) - saved)
  for method in config.methods:
    run = config.run(method, "3e-4", 0, "test", share)
    an_iteration = costs.iteration_tokens(run)
    an_iteration -= saved * run.learner_config().searches
    assert run.iterations % run.iterations_per_call == 0
    missed = abs(run.iterations * an_iteration - spends)
    least = run.iterations == ours.iterations
    assert missed <= run.iterations_per_call * an_iteration / 2 or least
  same = dataclasses.replace(config, equal_tokens=False)
  assert same.run("ppo", "3e-4", 0, "test").iterations == ours.iterations


def test_what_searches_spend_of_their_budget():
  run = compare_countdown.get_config().experiment
  budget = 65 * 1024 * 16
  ledgers = [{"search": budget // 2}, {"search": budget}]
  assert costs.search_share(run, ledgers) == pytest.approx(0.75)


def test_several_fields_are_swept_together():
  config = dataclasses.replace(
    small_comparison.get_config(),
    swept="optimizer.learning_rate+optimizer.linear_decay",
    values=("1e-3+true", "1e-2+false"),
  )
  for value, rate, falls in (
    ("1e-3+true", 1e-3, True),
    ("1e-2+false", 1e-2, False),
  ):
    optimizer = config.run("grpo", value, 0, "test").optimizer
    assert optimizer.learning_rate == rate
    assert optimizer.linear_decay == falls


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_own_samples_cost_what_the_search_costs(share):
  config = compare_countdown.get_config()
  wide = config.run("wide_best_of_n", "3e-4", 0, "test", share).learner_config()
  tsd = config.experiment.learner_config()
  assert wide.distilled_prompts == wide.prompts and wide.loss.policy_weight == 0
  sampled = wide.prompts * wide.rollout.samples * 8
  spent = share * tsd.prompts * tsd.search.num_simulations
  # To the nearest whole row a prompt.
  assert abs(sampled - spent) <= wide.prompts * 8 / 2


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_filtered_samples_cost_what_tsd_spends(share):
  """As many lessons, chosen from the samples of many more prompts."""
  config = compare_countdown.get_config()
  name = "filtered_best_of_n"
  filtered = config.run(name, "3e-4", 0, "test", share).learner_config()
  tsd, task = config.experiment.learner_config(), config.experiment.make_task()
  assert filtered.distilled_prompts == tsd.distilled_prompts == 448
  assert filtered.update_tokens(task) == 448 * 13
  spent = filtered.rollout.prompts * (5 + 2 * 8) + 3 * 448 * 13
  ours = (
    share * tsd.prompts * tsd.search.num_simulations
    + tsd.rollout.prompts * tsd.rollout.group * 8
    + 5 * (tsd.prompts + tsd.rollout.prompts)
    + 3 * tsd.update_tokens(task)
  )
  assert abs(spent - ours) <= 8 * 21 / 2  # Whole minibatches of prompts.


def test_wide_baselines_read_as_many_prompts_as_the_update_holds():
  config = compare_countdown.get_config()
  ours = costs.update_step(config.experiment)
  for method, rows in (("wide_ppo", 1), ("wide_grpo", 2), ("wide_cispo", 2)):
    wide = config.run(method, "3e-4", 0, "test")
    step = costs.update_step(wide)
    assert wide.algorithm == method.removeprefix("wide_")
    assert wide.learner_config().rollout.group == rows
    # A prompt of 5 tokens, and 8 of a response for every row of it.
    prompt = 5 + 8 * rows
    left = ours["backward_tokens"] - step["backward_tokens"]
    assert step["backward_tokens"] == step["prompts"] * prompt
    assert 0 <= left < prompt


def test_controls_differ_from_tsd_in_what_they_are_named_for():
  base = compare_countdown.get_config()
  champion, prefix = (
    base.run(m, "3e-4", 0, "test").learner_config()
    for m in ("grpo_champion", "tree_prefix_values")
  )
  grpo = base.run("grpo", "3e-4", 0, "test").learner_config()
  for control in (champion, prefix):
    assert not control.searches and control.loss.champion_weight == 0.5
    assert control.rollout.samples == grpo.rollout.samples - 1
    assert control.rollout.forks == 0
  # But for the champion and the row it takes, it is GRPO.
  loss = dataclasses.replace(
    champion.loss, champion_weight=0.0, champion_source="search"
  )
  assert loss == grpo.loss
  assert prefix.loss.advantage == "prefix"


def command(folder):
  return [
    sys.executable, "-m", "launch.compare",
    "--config=tests/small_comparison.py", f"--workdir={folder}",
  ]  # fmt: skip


def without_clocks(folder):
  content = json.loads((folder / "compare.json").read_text())
  for name in ("session_seconds", "training_seconds"):
    content.pop(name)
  content["ratios"].pop("accuracy_at_equal_seconds")
  for row in content["methods"].values():
    row.pop("seconds")
  return content


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_gives_the_same(tmp_path):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  done = subprocess.run(
    command(whole), cwd=ROOT, capture_output=True, text=True, timeout=600,
    check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  process = subprocess.Popen(command(killed), cwd=ROOT, stdout=subprocess.PIPE)
  target = killed / "runs" / "tsd" / "1" / "metrics.jsonl"
  deadline = time.monotonic() + 300
  while not target.exists() and time.monotonic() < deadline:
    assert process.poll() is None
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert not (killed / "compare.json").exists()
  again = subprocess.run(
    command(killed), cwd=ROOT, capture_output=True, text=True, timeout=600,
    check=False,
  )  # fmt: skip
  assert again.returncode == 0, again.stderr
  content = without_clocks(killed)
  assert content == without_clocks(whole)
  assert content["methods"]["tsd"]["seeds"] == [0, 1]
  assert set(content["methods"]) == {"tsd", "grpo", "tree_prefix_values"}
  assert np.shape(content["methods"]["grpo"]["mean@2"]) == (2, 4)
  assert set(content["ratios"]) >= {
    "steps_to_target", "accuracy_at_equal_tokens",
  }  # fmt: skip
  # 8 prompts of 5 tokens with 8 rows of 8 tokens fed, and 8 champions; GRPO's
  # 10 rows are the fewest that reach that. In two minibatches.
  backward = {
    "tsd": 8 * (5 + 8 * 8) + 8 * (5 + 8),
    "grpo": 8 * (5 + 10 * 8),
    "tree_prefix_values": 8 * (5 + 9 * 8) + 8 * (5 + 8),
  }
  for name, row in content["methods"].items():
    expected = backward[name] / 2
    assert row["update_step"]["backward_tokens"] == expected
    assert row["flops"] == pytest.approx(
      np.array(row["tokens"]) * content["flops_per_token"]
    )
  assert statistics.table(content) in done.stdout
  expected = statistics.mean_curve(
    [curves_lib.read_curve(whole / "runs" / "grpo" / s, "mean@2") for s in "01"]
  )
  got = judge.curves(json.loads((whole / "compare.json").read_text()))["grpo"]
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=0.005)
  assert (whole / "compare.html").read_text().count("<svg") == 4
  # Runs that shared a machine with others do not compare their seconds.
  again = subprocess.run(
    [*command(whole), "--jobs=2"], cwd=ROOT, capture_output=True, text=True,
    timeout=600, check=False,
  )  # fmt: skip
  assert again.returncode == 0, again.stderr
  shared = json.loads((whole / "compare.json").read_text())
  assert "accuracy_at_equal_seconds" not in shared["ratios"]
  assert shared["ratios"].items() >= content["ratios"].items()
  assert (whole / "compare.html").read_text().count("<svg") == 3
