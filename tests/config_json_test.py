"""config.json of a run reads back as the config that wrote it."""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsd_jax.base import config_json
from tsd_jax.base.errors import ConfigError


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


def test_a_field_without_a_default_must_be_there():
  with pytest.raises(ConfigError, match="inner is missing"):
    config_json.from_dict(Outer, {"seed": 1})


@pytest.mark.parametrize("late", ["other", "seed", "inner.rate", "inner.many"])
def test_a_field_that_came_later_takes_its_default(late, caplog):
  config = Outer(Inner(count=3), seed=0)
  saved = config_json.to_dict(config)
  *path, last = late.split(".")
  del (saved[path[0]] if path else saved)[last]
  assert config_json.from_dict(Outer, saved) == config
  assert f"before it had {last}" in caplog.text
  assert config_json.difference(saved, config) == []


def test_a_later_field_of_another_value_is_a_difference():
  saved = config_json.to_dict(Outer(Inner()))
  del saved["inner"]["rate"], saved["other"]
  config = Outer(Inner(rate=0.5), other=Inner(count=9))
  assert config_json.difference(saved, config) == [
    "inner.rate: saved 0.1, now 0.5",
    *(
      f"other.{name}: not saved, now {json.dumps(value)}"
      for name, value in config_json.to_dict(Inner(count=9)).items()
    ),
    "other: saved null, now absent",
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
  """A field of any kind; without a name it is the first."""

  kind: Left | Base


@pytest.mark.parametrize("kind", [Left(left=3), Right(right=4), Base(5)])
def test_a_class_that_the_field_does_not_tell_is_saved_by_name(kind):
  saved = config_json.to_dict(WithKinds(kind))
  assert saved["kind"]["__class__"] == f"{__name__}.{type(kind).__name__}"
  assert config_json.from_dict(WithKinds, saved).kind == kind
  assert not config_json.difference(saved, WithKinds(kind))


def test_a_config_from_before_the_name_is_of_the_first_class():
  saved = {"kind": {"seed": 0, "left": 7}}
  assert config_json.from_dict(WithKinds, saved).kind == Left(left=7)
  assert not config_json.difference(saved, WithKinds(Left(left=7)))
  assert config_json.difference(saved, WithKinds(Right())) == [
    "kind.right: not saved, now 2",
    "kind.left: saved 7, now absent",
  ]


@pytest.mark.parametrize(
  ("tag", "message"),
  [
    (f"{__name__}.Inner", r"Inner\", which is no Left or Base"),
    (f"{__name__}.double", "which is no Left or Base"),
    ("nowhere.Game", "which cannot be imported"),
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

  function: Callable[[int], int] | None = None


def test_functions_are_saved_by_name():
  saved = config_json.to_dict(WithFunction(double))
  assert saved == {"function": f"{__name__}.double"}
  assert config_json.from_dict(WithFunction, saved).function is double
  local = config_json.to_dict(WithFunction(lambda: 0))
  with pytest.raises(ConfigError, match="cannot be imported: define"):
    config_json.from_dict(WithFunction, local)
  assert (
    config_json.from_dict(WithFunction, {"function": None}).function is None
  )
