"""What every task config owes: a new task is added to the list below."""

import dataclasses

import jax
import numpy as np
import pytest

from tsd_jax.base import config_json
from tsd_jax.models.presets import TINY
from tsd_jax.run.experiment import Experiment
from tsd_jax.tasks import data
from tsd_jax.tasks.calculator import CalculatorConfig
from tsd_jax.tasks.countdown import CountdownConfig
from tsd_jax.tasks.maze import MazeConfig
from tsd_jax.tasks.task import GradedConfig, Task, TaskConfig

LEVELS = {field.name for field in dataclasses.fields(GradedConfig)} - {
  field.name for field in dataclasses.fields(TaskConfig)
}
SIZES = dict(validation_size=20, test_size=30, tuning_size=10)
# Small enough to list and store in a moment; another value of every field.
CONFIGS = {
  CountdownConfig(max_number=4, **SIZES): dict(
    numbers=4, max_number=3, max_target=50, max_value=150, min_target=5
  ),
  CalculatorConfig(max_number=4, **SIZES): dict(
    numbers=4, max_number=3, max_target=50, max_value=150, min_target=5
  ),
  MazeConfig(
    size=4, walls=4, min_moves=4, max_moves=6, count=300,
    **SIZES,
  ): dict(size=5, walls=3, min_moves=3, max_moves=7, count=290),
}  # fmt: skip
every_task = pytest.mark.parametrize(
  "config", CONFIGS, ids=lambda config: config.make().name
)


@every_task
def test_it_makes_a_task(config):
  task = config.make()
  assert isinstance(config, TaskConfig) and isinstance(task, Task)
  assert hash(task) == hash(dataclasses.replace(config).make())
  assert task == config.make()


@every_task
def test_problems_are_distinct_and_in_one_split_each(config):
  problems = config.problems()
  assert problems == config.problems()
  splits = data.split_problems(config)
  assert len(set(problems)) == len(problems)
  whole = data.split_problems(dataclasses.replace(config, split_by="problem"))
  assert set().union(*whole.values()) == set(problems)
  assert sum(map(len, whole.values())) == len(problems)
  groups = [set(map(config.group, split)) for split in splits.values()]
  assert sum(map(len, groups)) == len(set().union(*groups))
  # A held-out part is of many groups, not of whole ones.
  tenth = len(set(map(config.group, problems))) // 10
  assert all(len(g) >= min(tenth, 5) for g in groups)
  sizes = [len(splits[s]) for s in ("validation", "test", "tuning")]
  assert sizes == [20, 30, 10]
  # Whoever asks for tuning problems keeps the problems that results are of.
  other = data.split_problems(dataclasses.replace(config, tuning_size=0))
  assert all(other[s] == splits[s] for s in ("validation", "test"))


@every_task
def test_a_posed_problem_keeps_its_canonical_form_and_its_solution_is_right(
  config,
):
  task, rng = config.make(), np.random.default_rng(0)
  problems = config.problems()[:100]
  posed = [config.pose(problem, rng) for problem in problems]
  prompt_QP = np.stack([p.prompt_P for p in posed])
  response_QT = np.stack([p.response_T for p in posed])
  assert prompt_QP.dtype == response_QT.dtype == np.int32
  assert [*map(config.canonical, prompt_QP)] == problems
  score = jax.jit(task.score)(prompt_QP, response_QT)
  assert np.all(score.correct_X) and np.all(score.reward_X == 1.0)
  # A problem is posed in many forms, or its form would say which one it is.
  again = [config.pose(problem, rng)[0] for problem in problems]
  assert np.any(prompt_QP != np.stack(again), axis=1).mean() > 0.3


@every_task
def test_no_stored_problem_is_in_two_splits_in_any_form(config, tmp_path):
  splits, seen = data.split_problems(config), set()
  for split in data.filled_splits(config):
    prompt_QP = data.load_problems(config, split, tmp_path).tokens_BP
    forms = {config.canonical(prompt_P) for prompt_P in prompt_QP}
    assert forms == set(splits[split]) and not forms & seen
    assert len(forms) == len(prompt_QP)
    seen |= forms


@every_task
def test_warm_starts_are_legal_and_never_ask_what_is_held_out(config):
  task = config.make()
  splits = data.split_problems(config)
  held_out = set(map(config.group, splits["validation"] + splits["test"]))
  rates = []
  for relabel_fraction in (0.0, 1.0):
    rng = np.random.default_rng(0)
    prompt_QP, response_QT = config.warm_start(
      rng, 3_000, relabel_fraction, held_out
    )
    assert prompt_QP.shape == (3_000, task.prompt_length)
    assert response_QT.shape == (3_000, task.response_length)
    forms = {config.canonical(prompt_P) for prompt_P in prompt_QP}
    assert not held_out & set(map(config.group, forms))
    assert forms & set(splits["train"])
    score = jax.jit(task.score)(prompt_QP, response_QT)
    assert np.all(score.reward_X > config.illegal)
    rates.append(score.correct_X.mean())
  assert rates[0] < 0.2 and rates[1] == 1.0


@every_task
def test_text_and_tokens_agree(config):
  task, rng = config.make(), np.random.default_rng(0)
  prompt_P, response_T, _ = config.pose(config.problems()[0], rng)
  for tokens in (prompt_P, response_T):
    text = task.tokenizer.decode(tokens)
    kept = [token for token in tokens.tolist() if token != task.pad_id]
    assert task.tokenizer.encode(text) == kept
  assert task.describe(prompt_P, response_T).endswith("exact 1.000")
  strange = task.describe(0 * prompt_P + 250, 0 * response_T - 7)
  assert "<250>" in strange and "<-7>" in strange and "unfinished" in strange


@every_task
def test_what_changes_the_records_changes_their_name(config):
  changes = CONFIGS[config] | dict(
    validation_size=21, test_size=31, tuning_size=11, seed=7,
    split_by="problem",
  )  # fmt: skip
  fields = {field.name for field in dataclasses.fields(config)}
  assert set(changes) == fields - LEVELS
  names = {
    dataclasses.replace(config, **{field: value}).dataset
    for field, value in changes.items()
  }
  assert len(names | {config.dataset}) == len(changes) + 1
  assert dataclasses.replace(config, near=0.2).dataset == config.dataset


@every_task
def test_a_saved_run_says_which_task_it_is(config):
  experiment = Experiment(task=config, model=TINY)
  saved = config_json.to_dict(experiment)
  name = f"{type(config).__module__}.{type(config).__qualname__}"
  assert saved["task"]["__class__"] == name
  assert config_json.from_dict(Experiment, saved) == experiment
