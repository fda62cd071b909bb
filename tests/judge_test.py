"""The comparison: statistics against their definitions, and the command."""

import dataclasses
import json
import math
import pathlib
import re
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from experiments import compare_countdown, compare_countdown4
from tests import small_comparison, small_experiment, small_game, steps_test
from tsd_jax.base import config as config_lib
from tsd_jax.base.errors import UserError
from tsd_jax.comparison import counts, entrants, judge, statistics
from tsd_jax.comparison.config import Comparison
from tsd_jax.comparison.entrants import Spent
from tsd_jax.learning import memory
from tsd_jax.models import transformer
from tsd_jax.parallel.sharding import MeshConfig
from tsd_jax.run import costs, directory
from tsd_jax.run import curves as curves_lib
from tsd_jax.run.curves import Curve
from tsd_jax.search import search as search_lib
from tsd_jax.tasks.task import as_prompts

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = np.array([0, 10, 20, 30])


def curve(*accuracy, tokens=100, seconds=0.5, updated=10, scored=20, prompts=4):
  return Curve(
    STEPS, STEPS * tokens, np.array(accuracy), np.zeros(4), STEPS * seconds,
    STEPS * updated, STEPS * scored, STEPS * prompts,
  )  # fmt: skip


SLOW = curve(0.1, 0.2, 0.3, 0.4)
FAST = curve(0.1, 0.3, 0.5, 0.5, tokens=200, seconds=1.5)


@pytest.mark.parametrize(
  ("target", "steps"), [(0.1, 0), (0.2, 5), (0.4, 15), (0.5, 20), (0.6, np.inf)]
)
def test_steps_to_a_target(target, steps):
  found = statistics.first_at(FAST, target, "iterations")
  assert found == pytest.approx(steps)
  assert statistics.first_at(FAST, target) == pytest.approx(10 * steps)


def test_a_dip_does_not_hide_the_first_crossing():
  dips = curve(0.1, 0.4, 0.2, 0.4)
  assert statistics.first_at(dips, 0.25, "iterations") == pytest.approx(5)


def test_area_is_the_mean_height():
  assert statistics.area(SLOW) == pytest.approx(0.25)
  assert statistics.area(FAST) == pytest.approx((0.2 + 0.4 + 0.5) / 3)
  # 2,000 tokens are ten iterations.
  assert statistics.area(FAST, 2000) == pytest.approx(0.2)


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
  # Fast after 15 iterations: .1 to .3, .3 to .4; slow to its end.
  area = (0.2 * 10 + 0.35 * 5) / 15
  assert value("difference_of_area") == pytest.approx(area - 0.25)
  # Both score 600 responses.
  assert value("accuracy_at_equal_calls") == pytest.approx(0.5 / 0.4)
  assert found["probability_of_improvement"]["tsd/ppo"] == pytest.approx(0.5)


def test_half_the_tokens_are_half_of_the_shorter_run_s():
  late = curve(0.1, 0.1, 0.1, 0.4)
  found = statistics.contrast({"tsd": [FAST], "ppo": [late]})
  # 1,500 tokens: 7.5 of fast's iterations, 15 of late's.
  half = found["accuracy_at_half_the_tokens"]["tsd/ppo"]["value"]
  assert half == pytest.approx(0.25 / 0.1)
  whole = found["accuracy_at_equal_tokens"]["tsd/ppo"]["value"]
  assert whole == pytest.approx(1.0)


def test_prompts_are_an_axis_of_their_own():
  """Twice the prompts an iteration: half of the iterations are compared."""
  wide = curve(0.1, 0.3, 0.5, 0.6, prompts=8)
  found = statistics.contrast({"tsd": [wide], "ppo": [SLOW]})
  ratio = found["accuracy_at_equal_prompts"]["tsd/ppo"]["value"]
  assert ratio == pytest.approx(0.4 / 0.4)
  assert found["accuracy_at_equal_tokens"]["tsd/ppo"]["value"] > 1.4


def test_steps_of_other_sizes_count_by_what_they_read():
  """Twice the tokens in each of half as many steps are no gain."""
  large = Curve(*(a[:3] for a in curve(0.1, 0.25, 0.4, 0.4, updated=15)))
  found = statistics.contrast({"tsd": [large], "ppo": [SLOW]})
  assert found["steps_to_target"]["tsd/ppo"]["value"] == pytest.approx(1.0)


def test_a_single_run_tells_no_interval():
  found = statistics.contrast({"tsd": [FAST], "ppo": [SLOW]})
  assert found["steps_to_target"]["tsd/ppo"]["ci95"] == [0.0, None]
  assert found["difference_at_equal_tokens"]["tsd/ppo"]["ci95"] == [None, None]


def test_a_target_that_is_never_reached_is_none():
  found = statistics.contrast({"tsd": [SLOW] * 2, "ppo": [FAST] * 2})
  assert found["steps_to_target"]["tsd/ppo"] == {
    "value": None, "ci95": [0.0, None],
  }  # fmt: skip
  json.dumps(found, allow_nan=False)


def ends(values):
  return [curve(0.1, 0.1, 0.1, v) for v in values]


@pytest.mark.parametrize("sizes", [(8, 8), (5, 3), (2, 2)])
def test_the_interval_of_a_difference_is_welchs(sizes):
  rng = np.random.default_rng(1)
  ours, theirs = (
    rng.normal(m, 0.03, n) for m, n in zip((0.4, 0.3), sizes, strict=True)
  )
  got = statistics.jackknife(
    ends(ours), ends(theirs),
    statistics.Statistic(lambda a, b: a.accuracy[-1] - b.accuracy[-1], False),
  )  # fmt: skip
  test = scipy.stats.ttest_ind(ours, theirs, equal_var=False)
  assert got["ci95"] == pytest.approx(list(test.confidence_interval(0.95)))
  assert got["value"] == pytest.approx(ours.mean() - theirs.mean())


def test_intervals_of_ratios_cover_what_they_say():
  """Steps to a target and accuracies' ratio, three runs of each method."""
  rng = np.random.default_rng(0)
  truth = {"steps_to_target": 0.5, "accuracy_at_equal_tokens": 1.6}
  hits = {name: [] for name in truth}

  def run(slope):
    rise = slope * STEPS / 30 * rng.normal(1, 0.08)
    return curve(*(0.1 + rise + rng.normal(0, 0.004, 4)))

  for _ in range(400):
    runs = {"tsd": [run(0.8) for _ in "123"], "ppo": [run(0.4) for _ in "123"]}
    found = statistics.contrast(runs)
    truth["accuracy_at_equal_tokens"] = 0.9 / 0.5
    for name, value in truth.items():
      low, high = found[name]["tsd/ppo"]["ci95"]
      hits[name].append(low <= value <= (np.inf if high is None else high))
  for name, found in hits.items():
    assert np.mean(found) > 0.92, name


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
    (dict(split="validation"), "made or chose the settings: use test"),
    (dict(split="tuning"), "made or chose the settings: use test"),
    (dict(trials=0), "trials=0 must be at least 1"),
    (dict(samples=300), "samples=300 must be at most 255"),
    (dict(tokens=0.0), "tokens=0.0 must be above 0"),
    (dict(temperatures=(0.0, 1.0)), "must be 1e-06 or more"),
    (dict(score="mean@16"), "mean@16 is not one of experiment.eval.modes"),
    (dict(mode="pass@4"), "pass@4 is not one of experiment.eval.modes"),
    (dict(runs=0), "runs=0 must be at least 1"),
    (dict(tokens=math.inf), "tokens=inf must be above 0, and finite"),
    (dict(split="tst"), "split=tst holds no problems of the task, but train"),
    (dict(seeds=(-1,)), "seed -1 must be an integer in 0"),
    (dict(sweep_seed=2**40), "seed 1099511627776 must be an integer in 0"),
    (dict(knobs=("optimizer.speed",)), "optimizer.speed is no number or"),
    (dict(knobs=("loss.advantage",)), "loss.advantage is no number or switch"),
    (dict(knobs=("rollout",)), "rollout is no number or switch"),
    (dict(knobs=("drawn",)), "drawn is tuned with filtered_best_of_n anyway"),
    (
      dict(knobs=("optimizer.epochs", "optimizer.epochs")),
      "repeats optimizer.epochs",
    ),
    (
      dict(experiment=small_experiment.get_config()),
      "set experiment.task.tuning_size=512, or trials=1",
    ),
    (
      dict(
        runs=2,
        experiment=dataclasses.replace(
          small_comparison.get_config().experiment, mesh=MeshConfig(data=2)
        ),
      ),
      "need a mesh of one device",
    ),
  ],
)
def test_what_cannot_be_compared_is_refused_before_any_run(change, words):
  with pytest.raises(Exception, match=re.escape(words)):
    dataclasses.replace(small_comparison.get_config(), **change)


def at_recipe(config: Comparison, method, spent=None):
  """A method as the recipe has it."""
  spent = spent or config.forecast
  return config.run(method, config.recipe(method), 0, "validation", spent)


# They have as many lessons as tsd, and learn from nothing else.
LESSONS_ALONE = ("filtered_best_of_n", "stopped_best_of_n")


@pytest.mark.parametrize("file", [compare_countdown, compare_countdown4])
def test_every_method_reads_as_much_in_an_update_step(file):
  config = file.get_config()
  ours = costs.update_step(config.experiment)
  for method in entrants.METHODS:
    step = costs.update_step(at_recipe(config, method))
    share = step["backward_tokens"] / ours["backward_tokens"]
    # Whole rows of 128 prompts, the last one counted up.
    assert 0.95 < share < 1.25 or method in LESSONS_ALONE, method
    assert step["steps_an_iteration"] == 8


def test_every_run_spends_the_same_tokens():
  config = compare_countdown.get_config()
  for method in entrants.METHODS:
    run = at_recipe(config, method)
    spends = run.iterations * costs.iteration_tokens(run)
    grid = run.iterations_per_call * costs.iteration_tokens(run)
    assert abs(spends - config.tokens) <= grid / 2
    assert run.iterations % run.iterations_per_call == 0
  # What a trial has measured is better than what its settings say.
  tsd = config.recipe("tsd")
  run = config.run("tsd", tsd, 0, "validation", each=40_000.0)
  assert run.iterations == 80


def test_points_are_settings():
  config = compare_countdown.get_config()
  assert config.fields("tsd") == (
    "optimizer.learning_rate", "search.num_simulations",
    "optimizer.linear_decay", "optimizer.minibatches",
  )  # fmt: skip
  run = config.run("tsd", (-1, 2, 1, 1), 3, "validation")
  assert run.optimizer.learning_rate == 8e-4 and run.seed == 3
  assert not run.optimizer.linear_decay and run.optimizer.minibatches == 16
  assert run.search.num_simulations == 256 and run.eval.split == "validation"
  deep, flat = (
    config.run("tsd", (0, n, 0, 0), 0, "validation").iterations for n in (1, -1)
  )
  assert deep < flat  # At equal tokens.
  filtered = config.run(
    "filtered_best_of_n", (0, 1, -1, 0, 0), 0, "validation", config.forecast
  )
  assert filtered.rollout.samples == 4
  assert filtered.loss.distilled_prompts == 224
  stopped = config.run("stopped_best_of_n", (0, 1, 0, 0, 0), 0, "validation")
  assert stopped.search.num_simulations == stopped.search.num_candidates == 128
  # Fewer prompts of larger groups.
  few = config.run("grpo", (0, -1, 0, 0), 0, "validation").learner_config()
  many = at_recipe(config, "grpo").learner_config()
  assert few.rollout.prompts == many.rollout.prompts / 2
  assert few.rollout.group > many.rollout.group
  assert config.exists("tsd", (0, 0, 0, 1), config.forecast)
  assert not config.exists("tsd", (0, 0, 2, 0), config.forecast)
  assert not config.exists("tsd", (0, 0, 0, 12), config.forecast)
  assert config.name("grpo", (1, 0, 0, 0)) == (
    "learning_rate=0.00036,baseline_prompts=128,linear_decay=true,minibatches=8"
  )


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_own_samples_cost_what_the_search_costs(share):
  config = compare_countdown.get_config()
  spent = Spent(share * config.forecast.search, config.forecast.total)
  wide = at_recipe(config, "wide_best_of_n", spent).learner_config()
  assert wide.distilled_prompts == wide.prompts and wide.loss.policy_weight == 0
  sampled = wide.prompts * wide.rollout.samples * 8
  # To the nearest whole row a prompt.
  assert abs(sampled - spent.search) <= wide.prompts * 8 / 2


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_filtered_samples_cost_what_tsd_spends(share):
  """As many lessons, chosen from the samples of many more prompts."""
  config = compare_countdown.get_config()
  tsd, task = config.experiment.learner_config(), config.experiment.make_task()
  total = (
    share * tsd.prompts * tsd.search.num_simulations
    + tsd.rollout.prompts * tsd.rollout.group * 8
    + 5 * (tsd.prompts + tsd.rollout.prompts)
    + 3 * tsd.update_tokens(task)
  )
  if share == 1:
    assert config.forecast.total == total
  found = at_recipe(config, "filtered_best_of_n", Spent(0, total))
  filtered = found.learner_config()
  assert filtered.distilled_prompts == tsd.distilled_prompts == 448
  assert filtered.update_tokens(task) == 448 * 13
  spent = filtered.rollout.prompts * (5 + 2 * 8) + 3 * 448 * 13
  assert abs(spent - total) <= 8 * 21 / 2  # Whole minibatches of prompts.


def test_filtered_samples_cost_as_much_where_prompts_begin_alike():
  """The head that all prompts share is read once, and paid for once."""
  config = dataclasses.replace(
    compare_countdown.get_config(),
    methods=("tsd", "filtered_best_of_n"),
  )
  ours = config.experiment.learner_config()
  form = ours.prompt_form._replace(shared_prefix_length=4)
  headed = dataclasses.replace(ours, prompt_form=form)
  task = config.experiment.make_task()
  for spent in (5e4, 2e5):
    prompts = entrants._filtered_prompts(headed, task, spent, 2)
    lessons = headed.prompt_tokens(task, 448, 8) + 448 * 8
    found = headed.prompt_tokens(task, prompts) + prompts * 16 + 3 * lessons
    assert abs(found - spent) <= 8 * 21 / 2 + 5


def test_a_setting_is_judged_by_its_last_quarter_of_tokens(tmp_path):
  """However many evaluations lie in it."""
  config = dataclasses.replace(
    compare_countdown.get_config(), tokens=1e6, score="mean@16"
  )
  scores = []
  for evaluations in (3, 12, 24):
    tokens_I = np.linspace(0, 1e6, evaluations + 1)
    rows = [
      {
        "step": i,
        "seconds": 0.0,
        "ledger": {"total": int(tokens)},
        "eval": {"mean@16": {"accuracy": tokens / 1e6, "stderr": 0.0}},
      }
      for i, tokens in enumerate(tokens_I)
    ]
    place = tmp_path / str(evaluations)
    place.mkdir()
    (place / directory.METRICS).write_text(
      "".join(json.dumps(row) + "\n" for row in rows)
    )
    scores.append(judge.score(config, place))
  np.testing.assert_allclose(scores, 0.875, atol=1e-6)


@pytest.mark.parametrize(
  ("share", "decays", "name", "iterations"),
  [
    (0.5, True, "a,iterations=80", 80),
    (0.5, False, "a", 80),  # Goes on.
    (0.96, True, None, None),  # As near as whole calls come.
    (1.09, True, None, None),
    (1.6, True, "a,iterations=25", 25),
    (1.6, False, "a,iterations=25", 25),
  ],
)
def test_a_trial_spends_what_it_may(tmp_path, share, decays, name, iterations):
  config = compare_countdown.get_config()
  place = tmp_path / "a"
  place.mkdir()
  row = {"step": 40, "ledger": {"total": round(share * config.tokens)}}
  (place / "metrics.jsonl").write_text(json.dumps(row) + "\n")
  run = config.run("tsd", config.recipe("tsd"), 0, "validation")
  optimizer = dataclasses.replace(run.optimizer, linear_decay=decays)
  run = dataclasses.replace(run, optimizer=optimizer, iterations=40)
  found = judge._corrected(config, place, run)
  if iterations is None:
    assert found is None
  else:
    assert found is not None
    assert (found[0].name, found[1].iterations) == (name, iterations)


class Trials:
  """Stands in for training: runs spend what they are told to."""

  def __init__(self, config, each, breaks=()):
    self.config, self.each, self.breaks = config, each, breaks
    self.lengths = []

  def train_all(self, groups, jobs):
    del jobs
    for group in groups:
      for place, run in group.items():
        place.mkdir(parents=True, exist_ok=True)
        if run.algorithm in self.breaks:
          (place / directory.BROKEN).write_text("loss became nan\n")
          raise UserError("loss became nan")
        self.lengths.append(run.iterations)
        total = round(self.each(run.iterations) * run.iterations)
        spent = {"total": total}
        spent["search"] = 1
        modes = self.config.score.split(",")
        scores = {mode: {"accuracy": 0.1, "stderr": 0.1} for mode in modes}
        row = {"step": run.iterations, "seconds": 1.0, "ledger": spent}
        first = row | {"step": 0, "ledger": {"total": 0}}
        lines = [json.dumps(r | {"eval": scores}) for r in (first, row)]
        (place / "metrics.jsonl").write_text("\n".join(lines) + "\n")

  def tried(self, monkeypatch, folder, methods=("tsd",)):
    config = self.config
    tuned = {method: judge.Tuned() for method in methods}
    points = {method: config.recipe(method) for method in methods}
    monkeypatch.setattr(judge, "train_all", self.train_all)
    judge._try(config, folder, tuned, points, config.forecast, 1)
    return tuned


def test_corrections_that_come_to_no_end_leave_a_trial(tmp_path, monkeypatch):
  """Longer is dearer by the iteration: 10 are too few, 15 too many."""
  config = dataclasses.replace(compare_countdown.get_config(), trials=1)
  each = config.forecast.total
  config = dataclasses.replace(config, tokens=each * 0.82 * 12.5)
  trials = Trials(config, lambda n: each * (0.8 if n <= 10 else 0.84))
  tuned = trials.tried(monkeypatch, tmp_path)["tsd"]
  assert len(trials.lengths) > 2 and set(trials.lengths) == {10, 15}
  place = tuned.places[tuned.point]
  assert directory.read_rows(place)[-1]["step"] == trials.lengths[-1]
  assert tuned.scores[tuned.point] == pytest.approx(0.1)


def test_a_trial_whose_numbers_break_is_the_worst_and_no_more(
  tmp_path, monkeypatch
):
  config = dataclasses.replace(compare_countdown.get_config(), trials=1)
  trials = Trials(config, lambda n: config.forecast.total, breaks=("ppo",))
  tuned = trials.tried(monkeypatch, tmp_path, ("tsd", "ppo", "grpo"))
  recipe = config.recipe("ppo")
  assert tuned["ppo"].scores == {recipe: 0.0} and not tuned["ppo"].places
  for method in ("tsd", "grpo"):
    assert tuned[method].scores[tuned[method].point] == pytest.approx(0.1)
  with pytest.raises(UserError, match="all 1 trials of ppo ended in numbers"):
    judge._choose(config, "ppo", tuned["ppo"], config.forecast)
  near = (1, *recipe[1:])
  tuned["ppo"].scores[near] = 0.05
  tuned["ppo"].places[near] = tmp_path
  assert tuned["ppo"].point == near


def test_a_setting_that_does_not_fit_in_memory_does_not_exist(monkeypatch):
  config = compare_countdown.get_config()
  at = config.fields("tsd").index("search.num_simulations")
  deep = tuple(3 * (i == at) for i in range(len(config.fields("tsd"))))
  assert config.exists("tsd", deep, config.forecast)
  monkeypatch.setattr(memory, "device_bytes", lambda mesh: 2**30)
  assert not config.exists("tsd", deep, config.forecast)
  assert config.exists("tsd", config.recipe("tsd"), config.forecast)


def test_stopped_samples_are_whole_answers_until_one_is_right():
  base = small_game.get_config()
  base = dataclasses.replace(
    base, task=dataclasses.replace(base.task, digits=1)
  )
  changes = entrants.settings("stopped_best_of_n", base, Spent(0, 0), 64)
  run, task = config_lib.override(base, changes), base.make_task()
  model = nnx.merge(*transformer.create(run.model, 0))
  prompts = as_prompts(task, np.arange(6, dtype=np.int32)[:, None])
  tree = jax.jit(
    lambda prompts: (
      search_lib.search(
        model, task, prompts, jax.random.key(0), run.search
      ).tree
    )
  )(prompts)
  tree = jax.device_get(tree)
  made_QN = tree.node_visits[:, 1:] > 0
  assert np.all(tree.parents[:, 1:][made_QN] == 0)
  assert np.all(tree.embeddings.depth[:, 1:][made_QN] >= 1)
  over_QN = tree.embeddings.finished | tree.embeddings.cut_off
  assert np.all(over_QN[:, 1:][made_QN])
  drawn_Q, right_QN = made_QN.sum(axis=1), tree.embeddings.correct[:, 1:]
  assert right_QN.any(axis=1).sum() >= 2
  for drawn, right_N in zip(drawn_Q, right_QN, strict=True):
    # Nothing is drawn after an answer that is right.
    (right,) = np.nonzero(right_N)
    assert drawn == (right[0] + 1 if len(right) else 64)


def test_what_ends_steps_has_no_whole_answers():
  text = types.SimpleNamespace(make_task=lambda: steps_test.TASK)
  with pytest.raises(ValueError, match="set experiment.task.step_ends=''"):
    entrants.settings("stopped_best_of_n", text, Spent(0, 0), 8)


def test_wide_baselines_read_as_many_prompts_as_the_update_holds():
  config = compare_countdown.get_config()
  ours = costs.update_step(config.experiment)
  for method, rows in (("wide_ppo", 1), ("wide_grpo", 2), ("wide_cispo", 2)):
    wide = at_recipe(config, method)
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
    at_recipe(base, m).learner_config()
    for m in ("grpo_champion", "tree_prefix_values")
  )
  grpo = at_recipe(base, "grpo").learner_config()
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
  for name in ("session_seconds", "training_seconds", "tuning_finished"):
    content.pop(name)
  content["ratios"].pop("accuracy_at_equal_seconds")
  for row in content["methods"].values():
    row.pop("seconds")
    row.pop("seconds_of_runs")
  return content


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_gives_the_same(tmp_path):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  config = small_comparison.get_config()
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
  assert set(content["methods"]) == {"tsd", "filtered_best_of_n"}
  assert set(content["ratios"]) >= {
    "steps_to_target", "accuracy_at_equal_tokens",
  }  # fmt: skip
  # 8 prompts of 5 tokens with 8 rows of 8 tokens fed, and 8 champions, and the
  # champions alone; in two minibatches.
  backward = {
    "tsd": 8 * (5 + 8 * 8) + 8 * (5 + 8), "filtered_best_of_n": 8 * (5 + 8),
  }  # fmt: skip
  for name, row in content["methods"].items():
    expected = backward[name] / 2
    assert row["update_step"]["backward_tokens"] == expected
    assert row["flops"] == pytest.approx(
      np.array(row["tokens"]) * content["flops_per_token"]
    )
    assert row["tokens"][-1] == pytest.approx(content["tokens"], rel=0.1)
    assert len(row["sweep"]) == content["trials"] == 2
    assert set(row["settings"]) == set(config.fields(name))
    runs = [directory.read_rows(whole / "runs" / name / s)[-1] for s in "01"]
    for axis, part in (("updated", "update"), ("scored", "scored")):
      ledgers = [run["ledger"][part] for run in runs]
      assert row[axis][-1] == pytest.approx(np.mean(ledgers))
    for found in row["counts"]:
      assert found["plan"]["split"] == "test"
      for drawn in found["samples"].values():
        right_Q = counts.unpack(drawn["right"])
        assert len(right_Q) == 512 and right_Q.max() <= 16
      shifted_Q = counts.unpack(found["shifted"]["right"])
      assert len(shifted_Q) == 512 and 0 <= found["constant"] < 0.02
  for part in ("test", "shifted"):
    assert 40 < len(set(content["groups"][part])) < 512
  assert content["start"]["greedy"]["ci95"] == [None, None]
  # Test problems were read by nothing but the counts.
  for place in (
    whole / "runs" / "tsd" / "0",
    *(whole / "sweep" / "tsd").iterdir(),
  ):
    assert json.loads((place / "config.json").read_text())["eval"]["split"] in (
      "validation", "tuning",
    )  # fmt: skip
  written = json.loads((whole / "compare.json").read_text())
  assert statistics.table(written) in done.stdout
  expected = statistics.mean_curve(
    [
      curves_lib.read_curve(whole / "runs" / "tsd" / s, "mean@2", 16)
      for s in "01"
    ]
  )
  got = judge.curves(written)["tsd"]
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
  assert len(shared["methods"]["tsd"]["seconds_of_runs"]) == 2
  assert shared["ratios"].items() >= content["ratios"].items()
  assert (whole / "compare.html").read_text().count("<svg") == 3
