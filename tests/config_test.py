"""Configs changed by flags, and the command line as results keep it."""

import dataclasses
import itertools
import re
import subprocess
import sys

import pytest

from tests import small_experiment
from tsd_jax.base import config as config_lib
from tsd_jax.base import config_text
from tsd_jax.base.errors import ConfigError
from tsd_jax.base.paths import ROOT
from tsd_jax.rewards.algebra import Sum, TaskReward
from tsd_jax.rewards.terms import Length
from tsd_jax.search.best_first import BestFirst
from tsd_jax.search.rules import PUCT, Gumbel
from tsd_jax.tasks.text import TextConfig

BASE = small_experiment.get_config()


@pytest.mark.parametrize(
  "folder", [["--workdir=runs/x"], ["--workdir", "runs/x"], []]
)
@pytest.mark.parametrize("output", [["--output=x.json"], ["--output", "x"], []])
def test_a_command_names_no_folder_of_this_machine(folder, output, monkeypatch):
  line = ["program", "--seeds=0,1", *folder, *output, "--config.iterations=5"]
  monkeypatch.setattr(sys, "argv", line)
  assert config_lib.command("launch.compare") == (
    "python -m launch.compare --seeds=0,1 --config.iterations=5 --workdir=DIR"
  )


def test_a_rule_is_chosen_by_its_name_whatever_the_order_of_flags():
  flags = {
    "search.rule.c": "2",
    "search.leaf": "rollout",
    "search.rule": "puct",
    "search.num_simulations": "3",
  }
  for order in itertools.permutations(flags.items()):
    search = config_lib.override(BASE, dict(order)).search
    assert search == dataclasses.replace(
      BASE.search, rule=PUCT(c=2.0), leaf="rollout", num_simulations=3
    )


@pytest.mark.parametrize(
  ("text", "rule"),
  [("best_first", BestFirst()), ("gumbel", Gumbel()), ("PUCT", PUCT())],
)
def test_each_rule_has_a_name(text, rule):
  flags = {"search.rule": text, "search.leaf": "rollout"}
  assert config_lib.override(BASE, flags).search.rule == rule


def test_the_rule_that_is_there_keeps_its_fields():
  rule = BestFirst(beta=0.25, epsilon=0.5)
  search = dataclasses.replace(BASE.search, rule=rule)
  config = dataclasses.replace(BASE, search=search)
  flags = {"search.rule": "best_first", "search.rule.epsilon": "0.1"}
  expected = BestFirst(beta=0.25, epsilon=0.1)
  assert config_lib.override(config, flags).search.rule == expected
  flags["search.rule"], flags["search.leaf"] = "puct", "rollout"
  del flags["search.rule.epsilon"]
  config = config_lib.override(config, flags)
  config = config_lib.override(config, {"search.rule": "best_first"})
  assert config.search.rule == BestFirst()


NAMES = "best_first, puct, gumbel"


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (
      {"search.rule.c": "2", "search.rule": "nonsense"},
      f"config.search.rule='nonsense' is not one of {NAMES}; its fields here "
      "are config.search.rule.stop_when_solved, config.search.rule.beta",
    ),
    ({"search.rule": "rule"}, f"'rule' is not one of {NAMES}"),
    ({"search.rule": "none"}, f"'none' is not one of {NAMES}"),
    ({"search.rule": ""}, f"config.search.rule='' is not one of {NAMES}"),
    (
      {"search.rule.c": "2"},
      "no field config.search.rule.c where config.search.rule is best_first; "
      "set config.search.rule=puct",
    ),
    (
      {"search.rule.c": "2", "search.rule": "gumbel", "search.leaf": "rollout"},
      "no field config.search.rule.c where config.search.rule is gumbel; set "
      "config.search.rule=puct",
    ),
    (
      {"search.rule": "gumbel", "search.rule.scales": "2"},
      "no field config.search.rule.scales; did you mean "
      "config.search.rule.scale?",
    ),
    (
      {"search.rule": "puct", "search.rule.c": "fast"},
      "config.search.rule.c='fast' is not a number",
    ),
    (
      {"search.rule": "puct"},
      "config.search: search.leaf=none gives search.rule=puct nothing",
    ),
    (
      {"reward.weights": "1", "reward": "none"},
      "config.reward.weights: config.reward is none here; set it in the config",
    ),
    (
      {"search": "puct"},
      "config.search is set field by field: config.search.r",
    ),
    ({"task": "maze_config"}, "config.task is set field by field"),
    ({"seed.x": "1"}, "config.seed.x: config.seed has no fields"),
    (
      {"loss.terms": "square"},
      "config.loss.terms is a comma-separated list, each LossTerm, which no "
      "flag can say",
    ),
  ],
)
def test_what_no_flag_can_mean_is_one_line(flags, message):
  for order in (flags, dict(reversed(flags.items()))):
    with pytest.raises(ConfigError) as error:
      config_lib.override(BASE, order)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_reward_can_be_taken_out_and_its_fields_set():
  reward = Sum((TaskReward(), Length()), (1.0, 0.1))
  config = dataclasses.replace(BASE, reward=reward)
  assert config_lib.override(config, {"reward": "none"}).reward is None
  changed = config_lib.override(config, {"reward.weights": "1,0.2"})
  assert changed.reward == dataclasses.replace(reward, weights=(1.0, 0.2))


MINE = """
import dataclasses

from tests import small_experiment
from tsd_jax.search.rules import PUCT


@dataclasses.dataclass(frozen=True)
class Sharpened(PUCT):
  power: float = 2.0

  def __post_init__(self):
    if self.power <= 0:
      raise ValueError(f"search.rule.power={self.power} must be positive")


def get_config():
  base = small_experiment.get_config()
  search = dataclasses.replace(
    base.search, rule=Sharpened(power=3.0), leaf="rollout"
  )
  return dataclasses.replace(base, search=search)
"""


@pytest.fixture
def file(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text(MINE)
  return str(file)


def test_a_rule_of_ones_own_has_flags_like_the_others(file):
  def rule(**flags):
    flags = {f"search.{name}": text for name, text in flags.items()}
    return config_lib.from_flags(file, flags).search.rule

  mine = rule()
  assert type(mine).__name__ == "Sharpened" and mine.power == 3.0
  changed = rule(**{"rule.power": "4", "rule.c": "2"})
  assert (changed.power, changed.c) == (4.0, 2.0)
  assert rule(**{"rule": "sharpened", "rule.c": "2"}).power == 3.0
  assert rule(rule="puct", **{"rule.c": "2"}) == PUCT(c=2.0)
  assert rule(rule="best_first") == BestFirst()
  for flags, words in (
    ({"rule": "puct", "rule.power": "4"}, "rule is puct; set.*=sharpened"),
    ({"rule": "x"}, "is not one of best_first, puct, gumbel, sharpened"),
    ({"rule.power": "0"}, "search.rule.power=0.0 must be positive"),
  ):
    with pytest.raises(ConfigError, match=words):
      rule(**flags)


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--config.search.rule=nonsense"], f"is not one of {NAMES}"),
    (["--config.search.rule.c=2"], "set config.search.rule=puct"),
    (["--config.search.rule"], "--config.search.rule has no value"),
  ],
)
def test_a_command_says_it_in_one_line(flags, words, tmp_path):
  done = subprocess.run(
    [
      sys.executable, "-m", "launch.train",
      "--config=tests/small_experiment.py", f"--workdir={tmp_path}", *flags,
    ],
    cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
  )  # fmt: skip
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: ") and words in line
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("command", "file", "words"),
  [
    ("compare", "maze", "returned Experiment; this command needs a Comparison"),
    ("train", "compare_maze", "returned Comparison; .* needs an Experiment"),
    ("local", "compare_maze", "returned Comparison; .* needs an Experiment"),
    ("aot", "compare_maze", "returned Comparison; .* needs an Experiment"),
  ],
)
def test_a_config_of_another_kind_is_refused(command, file, words, tmp_path):
  flags = [f"--config=experiments/{file}.py"]
  given = f"--workdir={tmp_path}" if command != "aot" else "--topology=v5e:1x1"
  done = subprocess.run(
    [sys.executable, "-m", f"launch.{command}", *flags, given],
    cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
  )  # fmt: skip
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: ") and re.search(words, line)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("flags", "messages"),
  [
    (
      {"lr": "1", "search.nodes": "3", "iterations": "many"},
      [
        "did you mean config.optimizer.learning_rate?",
        "did you mean config.search.num_simulations?",
        "config.iterations='many' is not an integer",
      ],
    ),
    (
      {"search.mix": "3", "loss.champions": "0", "loss.clip_low": "3"},
      ["search.mix=3.0", "loss.champions=0", "loss.clip_low=3.0"],
    ),
    (
      {"iterations_per_call": "4", "search.num_candidates": "999"},
      ["checkpoint_every=2", "eval.every=2", "num_candidates=999 exceeds"],
    ),
  ],
)
def test_everything_that_is_wrong_is_said_at_once(flags, messages):
  with pytest.raises(ConfigError) as error:
    config_lib.override(BASE, flags)
  for message in messages:
    assert str(error.value).count(message) == 1
  assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
  ("file", "flags"),
  [
    ("countdown", {"mesh.fsdp": "16"}),
    ("countdown", {"optimizer.minibatches": "5"}),
    ("countdown", {"iterations_per_call": "4"}),
    ("countdown", {"mesh.tensor": "3"}),
    ("countdown", {"search.slot_reuse": "false", "search.trees": "100"}),
  ],
)
def test_the_values_that_a_refusal_names_fit(file, flags):
  config = config_lib.load(f"experiments/{file}.py")
  with pytest.raises(ConfigError) as error:
    config_lib.override(config, flags)
  named = {}
  for part in str(error.value).removeprefix("config: ").split("; "):
    said, _, remedy = part.partition(": use ")
    field = re.match(r"([\w.]+)=", said) or re.match(r"([\w.]+)=", remedy)
    # Of two values that fit, the larger.
    value = remedy.rpartition(" ")[2].rpartition("=")[2]
    field = re.match(r"([\w.]+)=", remedy) or field
    named[field[1]] = value
  assert named
  config_lib.override(config, flags | named)


@pytest.mark.parametrize(
  ("name", "meant"),
  [
    ("lr", "optimizer.learning_rate"),
    ("learning_rate", "optimizer.learning_rate"),
    ("optimizer.lr", "optimizer.learning_rate"),
    ("batch_size", "rollout.prompts"),
    ("steps", "iterations"),
    ("simulations", "search.num_simulations"),
    ("search.num_sims", "search.num_simulations"),
    ("kl_coef", "loss.kl_weight"),
    ("lora_rank", "lora.rank"),
    ("eval_every", "eval.every"),
    ("max_number", "task.max_number"),
    ("num_candidate", "search.num_candidates"),
  ],
)
def test_a_wrong_name_is_answered_with_the_field_that_is_meant(name, meant):
  with pytest.raises(ConfigError, match=rf"did you mean config\.{meant}\?"):
    config_lib.override(BASE, {name: "1"})


def test_a_name_like_no_other_is_answered_with_the_way_to_see_all():
  with pytest.raises(ConfigError, match="--print_config shows all fields"):
    config_lib.override(BASE, {"xyz": "1"})


def test_every_synonym_means_a_field_that_there_is():
  text = config_text.describe(config_lib.load("experiments/countdown.py"))
  text += "\n".join(f.name for f in dataclasses.fields(TextConfig))
  for field in config_lib._SYNONYMS.values():
    assert re.search(rf"\b{field}\b", text), field
