"""config.json of a run reads back as the config that wrote it."""

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsd_jax.base import config as config_lib
from tsd_jax.base import config_json, names
from tsd_jax.base.errors import ConfigError
from tsd_jax.learning.loss_terms import LossTerm
from tsd_jax.rewards.algebra import Clip, Gate, Sum, TaskReward
from tsd_jax.rewards.terms import Length
from tsd_jax.search.rules import PUCT

names.allow([__name__])


@dataclasses.dataclass(frozen=True)
class Inner:
  """Every kind of leaf."""

  count: int = 1
  rate: float = 0.1
  switch: bool = False
  word: str = ""
  choice: Literal["a", "b"] = "a"
  pair: tuple[int, float] = (1, 2.0)
  many: tuple[int, ...] = ()
  maybe: float | None = None
  path: str | None = None

  def __post_init__(self):
    """Refuses a count below 0."""
    if self.count < 0:
      raise ValueError(f"count={self.count} must not be negative")


@dataclasses.dataclass(frozen=True)
class Outer:
  """Nested, with and without None."""

  inner: Inner
  other: Inner | None = None
  seed: int = 0


numbers = st.floats(allow_nan=False)
inners = st.builds(
  Inner,
  count=st.integers(0, 10**12), rate=numbers, switch=st.booleans(),
  word=st.text(), choice=st.sampled_from("ab"),
  pair=st.tuples(st.integers(), numbers),
  many=st.lists(st.integers(), max_size=3).map(tuple),
  maybe=st.none() | numbers, path=st.none() | st.text(),
)  # fmt: skip


@given(st.builds(Outer, inner=inners, other=st.none() | inners))
def test_what_is_written_reads_back_equal(config):
  text = config_json.to_json(config)
  back = config_json.from_dict(Outer, json.loads(text))
  assert back == config
  assert config_json.difference(json.loads(text), back) == []


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"inner": 3}, r"config\.inner is 3, not an object"),
    ({"seed": "x"}, r'config\.seed is saved as "x", not as an integer'),
    ({"seed": 1.5}, "not as an integer"),
    ({"sed": 1}, "another version of the code: sed is unknown"),
    (
      {"inner": config_json.to_dict(Inner()) | {"count": -1}},
      r"config\.inner: count=-1 must not be negative",
    ),
    (
      {"inner": config_json.to_dict(Inner()) | {"pair": [1]}},
      r"config\.inner\.pair is saved as \[1\]",
    ),
  ],
)
def test_what_cannot_be_read_is_named(change, message):
  saved = config_json.to_dict(Outer(Inner())) | change
  with pytest.raises(ConfigError, match=message):
    config_json.from_dict(Outer, saved)


def test_exactly_the_fields_must_be_there():
  saved = config_json.to_dict(Outer(Inner(count=3)))
  del saved["inner"]["rate"], saved["inner"]["many"]
  saved["inner"] |= {"pace": 1, "gait": 2}
  with pytest.raises(ConfigError) as error:
    config_json.from_dict(Outer, saved)
  assert str(error.value) == (
    "config.inner was saved by another version of the code: rate is missing; "
    "many is missing; pace is unknown; gait is unknown"
  )
  # A field of the whole is named before what is in another is looked at.
  del saved["seed"]
  with pytest.raises(ConfigError, match="config was saved by.*: seed is miss"):
    config_json.from_dict(Outer, saved)


def test_a_field_that_one_side_lacks_is_a_difference():
  saved = config_json.to_dict(Outer(Inner()))
  del saved["inner"]["rate"], saved["seed"]
  saved["inner"]["pace"] = 1
  assert config_json.difference(saved, Outer(Inner())) == [
    "inner.rate: not saved, now 0.1",
    "seed: not saved, now 0",
    "inner.pace: saved 1, now absent",
  ]


def test_a_difference_is_named_field_by_field():
  saved = config_json.to_dict(Outer(Inner(rate=math.inf)))
  lines = config_json.difference(saved, Outer(Inner(count=2), seed=5))
  assert lines == [
    "inner.count: saved 1, now 2",
    'inner.rate: saved "inf", now 0.1',
    "seed: saved 0, now 5",
  ]
  assert not config_json.difference(
    saved, Outer(Inner(count=2), seed=5), ignore=("inner", "seed")
  )


@dataclasses.dataclass(frozen=True)
class Base:
  """What a field may ask for."""

  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Left(Base):
  """One kind of it."""

  left: int = 1


@dataclasses.dataclass(frozen=True)
class Right(Base):
  """Another kind, which no annotation names."""

  right: int = 2


@dataclasses.dataclass(frozen=True)
class WithKinds:
  """A field of any kind."""

  kind: Left | Base


@pytest.mark.parametrize("kind", [Left(left=3), Right(right=4), Base(5)])
def test_a_class_that_the_field_does_not_tell_is_saved_by_name(kind):
  saved = config_json.to_dict(WithKinds(kind))
  assert saved["kind"]["__class__"] == f"{__name__}.{type(kind).__name__}"
  assert config_json.from_dict(WithKinds, saved).kind == kind
  assert not config_json.difference(saved, WithKinds(kind))


def test_a_class_that_the_field_does_not_tell_must_be_named():
  saved = {"kind": {"seed": 0, "left": 7}}
  with pytest.raises(ConfigError, match=r"config\.kind.*__class__ is missing"):
    config_json.from_dict(WithKinds, saved)
  # Nor does a field tell it whose own class is only a base.
  config = config_lib.load("tests/small_experiment.py")
  saved = config_json.to_dict(config)
  assert saved["task"].pop("__class__").endswith("countdown.CountdownConfig")
  with pytest.raises(ConfigError, match=r"config\.task.*__class__ is missing"):
    config_json.from_dict(type(config), saved)


@pytest.mark.parametrize(
  ("tag", "message"),
  [
    (f"{__name__}.Inner", r"Inner\", which is no Left or Base"),
    (f"{__name__}.double", "which is no Left or Base"),
    ("nowhere.Game", "add --imports=nowhere"),
    ("tsd_jax.nowhere.Game", "which cannot be imported"),
    (3, "which cannot be imported"),
  ],
)
def test_a_class_of_another_kind_is_refused(tag, message):
  saved = {"kind": {"__class__": tag, "seed": 0}}
  words = r"config\.kind\.__class__ is.*" + message
  with pytest.raises(ConfigError, match=words):
    config_json.from_dict(WithKinds, saved)


def double(prompt_XP, response_XT, score):
  return score._replace(reward_X=2 * score.reward_X)


@dataclasses.dataclass(frozen=True)
class WithFunction:
  """A leaf that only code can say."""

  function: Callable[[int, int, int], int] | None = None


def test_functions_are_saved_by_name():
  saved = config_json.to_dict(WithFunction(double))
  assert saved == {"function": f"{__name__}.double"}
  assert config_json.from_dict(WithFunction, saved).function is double
  with pytest.raises(ConfigError, match="define it at the top of a module"):
    config_json.to_dict(WithFunction(lambda prompt: 0))
  assert (
    config_json.from_dict(WithFunction, {"function": None}).function is None
  )


@dataclasses.dataclass(frozen=True)
class Times:
  """A config that is called as a function."""

  factor: int = 3

  def __call__(self, x):
    return self.factor * x


@dataclasses.dataclass(frozen=True)
class Part:
  """What a tuple may hold: its class is told, its function is not."""

  name: str
  function: Callable[[int, int, int], int] = double
  weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Whole:
  """Tuples of configs, and of what only looks like a list of them."""

  parts: tuple[Part, ...] = ()
  pair: tuple[Base, Left] | None = None
  kinds: tuple[Left | Base | None, ...] = ()
  words: tuple[str, ...] = ()
  either: Base | Callable[[int, int, int], int] | None = None


WHOLE = Whole(
  parts=(Part("a"), Part("b", Times(2), math.inf)),
  pair=(Right(right=4), Left(left=5)),
  kinds=(None, Left(), Right(), Base()),
  words=("1,2", "", "none"),
  either=Times(5),
)


def test_tuples_of_configs_read_back_with_the_classes_that_none_tells():
  saved = json.loads(config_json.to_json(WHOLE))
  assert config_json.from_dict(Whole, saved) == WHOLE
  assert not config_json.difference(saved, WHOLE)

  def tag(value):
    return value.get("__class__", "").rpartition(".")[2]

  assert [*map(tag, saved["parts"])] == ["", ""]
  assert saved["parts"][0]["function"] == f"{__name__}.double"
  assert tag(saved["parts"][1]["function"]) == "Times"
  assert [*map(tag, saved["pair"])] == ["Right", ""]
  assert [*map(tag, saved["kinds"][1:])] == ["Left", "Right", "Base"]
  for either in (None, double, Base(2), Right(3)):
    config = Whole(either=either)
    back = config_json.from_dict(Whole, config_json.to_dict(config))
    assert back.either == either


def test_a_difference_within_a_tuple_is_named_by_its_place():
  saved = config_json.to_dict(WHOLE)
  parts = (Part("a", weight=2.0), *WHOLE.parts[1:])
  changed = dataclasses.replace(WHOLE, parts=parts, words=("1",))
  assert config_json.difference(saved, changed) == [
    "parts.0.weight: saved 1.0, now 2.0",
    'words: saved ["1,2", "", "none"], now ["1"]',
  ]
  assert not config_json.difference(saved, changed, ignore=("parts", "words"))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"parts": [3]}, r"config\.parts\.0 is 3, not an object of fields"),
    ({"parts": 3}, r"config\.parts is saved as 3"),
    ({"parts": [{"name": "a"}]}, r"config\.parts\.0 was saved.*function is m"),
    ({"pair": [{"__class__": "x.Y"}] * 2}, r"pair\.0\.__class__ is \"x\.Y\""),
    ({"pair": []}, r"config\.pair is saved as \[\]"),
    ({"kinds": [{"seed": 0}]}, r"config\.kinds\.0.*__class__ is missing"),
    ({"words": "ab"}, r"config\.words is saved as \"ab\""),
    ({"words": [1]}, r"config\.words\.0 is saved as 1, not as a text"),
    ({"either": 3}, r"config\.either is 3, which cannot be imported"),
    ({"either": {}}, r"config\.either was saved.*__class__ is missing"),
    (
      {"either": {"__class__": f"{__name__}.Part", "name": "x"}},
      r"config\.either\.__class__ is .*Part\", which is no Base or Callable",
    ),
  ],
)
def test_what_cannot_be_read_in_a_tuple_is_named(change, message):
  saved = config_json.to_dict(WHOLE) | change
  with pytest.raises(ConfigError, match=message):
    config_json.from_dict(Whole, saved)


def test_abstract_classes_are_no_configs():
  config = config_lib.load("tests/small_experiment.py")
  saved = config_json.to_dict(config)
  saved["task"] = {"__class__": "tsd_jax.tasks.task.TaskConfig"}
  with pytest.raises(ConfigError, match='TaskConfig", which is no TaskConfig'):
    config_json.from_dict(type(config), saved)


def test_what_json_cannot_say_is_named():
  config = Whole(parts=(Part("a", functools.partial(double, 1)),))
  with pytest.raises(ConfigError, match="field function holds partial"):
    config_json.to_dict(config)


def square(x):
  """A term of the loss."""
  return jnp.mean(x.entropy_BGT**2), {}


@dataclasses.dataclass(frozen=True)
class Sharper(PUCT):
  """A rule that no annotation names."""

  power: float = 2.0


@pytest.mark.parametrize(
  "reward",
  [
    None,
    double,
    Length(free=2),
    Sum(
      (TaskReward(), Gate(TaskReward(), Clip(Length(), low=-0.5), closed=-1.0)),
      weights=(1.0, -0.5),
      correct_by=1,
    ),
  ],
)
def test_an_experiment_of_a_users_own_parts_reads_back(reward):
  base = config_lib.load("tests/small_experiment.py")
  terms = (
    LossTerm("square", "samples", square, 0.25),
    LossTerm("cube", "champions", square),
  )
  config = dataclasses.replace(
    base,
    reward=reward,
    loss=dataclasses.replace(base.loss, terms=terms, champion_gate="quantile"),
    search=dataclasses.replace(
      base.search, rule=Sharper(power=3.0), leaf="rollout"
    ),
  )
  saved = json.loads(config_json.to_json(config))
  assert saved["search"]["rule"]["__class__"] == f"{__name__}.Sharper"
  assert saved["loss"]["terms"][0]["fn"] == f"{__name__}.square"
  back = config_json.from_dict(type(config), saved)
  assert back == config and not config_json.difference(saved, back)
  assert back.learner_config() == config.learner_config()


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("os.system", "would run os, .* add --imports=os"),
    ("hostile_module.f", "would run hostile_module"),
    ("/tmp/../tmp/hostile.py:f", "would run .*hostile.py"),
    ("experiments/../hostile.py:f", "would run experiments/../hostile.py"),
    # Within an own module, what that has from elsewhere.
    ("tsd_jax.parallel.supervisor.import_path", "does not take 3 arguments"),
    ("tsd_jax.base.config_json.is_config", "config_json does not define"),
    ("tsd_jax.base.errors.UserError", "no function"),
  ],
)
def test_a_saved_name_leads_only_to_functions_of_trusted_modules(name, message):
  with pytest.raises(ConfigError, match=message):
    config_json.from_dict(WithFunction, {"function": name})


def test_a_module_that_the_user_names_is_imported(tmp_path, monkeypatch):
  (tmp_path / "named_module.py").write_text("def f(a, b, c): return a\n")
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(names, "_allowed", set())
  saved = {"function": "named_module.f"}
  with pytest.raises(ConfigError, match="add --imports=named_module"):
    config_json.from_dict(WithFunction, saved)
  assert "named_module" not in sys.modules
  names.allow(["named_module"])
  assert config_json.from_dict(WithFunction, saved).function(1, 2, 3) == 1


def test_a_function_of_a_config_file_is_found_again(tmp_path, monkeypatch):
  file = tmp_path / "mine.py"
  file.write_text(
    "from tests.config_json_test import WithFunction\n"
    "def f(a, b, c): return b\n"
    "def get_config(): return WithFunction(f)\n"
  )
  monkeypatch.setattr(names, "_allowed", {"tests"})
  config = config_lib.load(str(file))
  saved = config_json.to_dict(config)
  assert saved == {"function": f"{file}:f"}
  # Another process has neither loaded it nor been told of it.
  monkeypatch.setattr(names, "_allowed", set())
  monkeypatch.delitem(sys.modules, str(file))
  with pytest.raises(ConfigError, match="add --imports="):
    config_json.from_dict(WithFunction, saved)
  names.allow([str(file)])
  assert config_json.from_dict(WithFunction, saved).function(1, 2, 3) == 2
