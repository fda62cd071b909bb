"""Rewards made of rewards: ranges, orders, gates, parts."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_experiment import get_config
from tsd_jax.base import config as config_lib
from tsd_jax.base.types import Prompts
from tsd_jax.models.phrases import Phrases
from tsd_jax.rewards import algebra
from tsd_jax.rewards.abstention import Abstention
from tsd_jax.rewards.algebra import (
  Clip,
  Gate,
  Lexicographic,
  Product,
  Scale,
  Sum,
  TaskReward,
)
from tsd_jax.rewards.constrained import Constrained
from tsd_jax.rewards.reward import Reward, Score, Scorer, check_range
from tsd_jax.rewards.terms import Length
from tsd_jax.tasks.task import OwnReward, Shaped

N = 8  # Responses of a prompt; the first token of each is its number.
EOS, T = 99, 5


@dataclasses.dataclass(frozen=True)
class Table(Reward):
  """Says of response n what stands in place n; its values are parameters."""

  values: tuple[float, ...]
  low: float = 0.0
  high: float = 1.0
  right: tuple[bool, ...] | None = None
  operations: float = 1.0

  @property
  def knows_correct(self):
    return self.right is not None

  def load(self):
    return {"values_J": np.array(self.values, np.float32)}

  def flops(self, prompt_length, response_length):
    return self.operations * prompt_length * response_length

  def __call__(self, params, prompts, tokens_BGT, mask_BGT):
    place_BG = tokens_BGT[..., 0]
    reward_BG = params["values_J"][place_BG]
    right_BG = None
    if self.right is not None:
      right_BG = jnp.array(self.right)[place_BG]
    return Score(reward_BG, right_BG, {"double": 2 * reward_BG})


def responses():
  tokens_BGT = np.full((2, N, T), EOS, np.int32)
  tokens_BGT[:, :, 0] = np.arange(N)
  prompts = Prompts(jnp.zeros((2, 3), jnp.int32), jnp.full(2, 3), jnp.arange(2))
  return prompts, jnp.asarray(tokens_BGT)


def score(reward, jit=False):
  """What a reward says of the N responses to the first of two prompts."""

  def call(params, prompts, tokens_BGT):
    return Scorer(reward, (EOS,), params)(prompts, tokens_BGT)

  params = jax.tree.map(jnp.asarray, reward.load())
  found = (jax.jit(call) if jit else call)(params, *responses())
  for leaf in jax.tree.leaves(found):
    np.testing.assert_array_equal(leaf[0], leaf[1])
  return jax.tree.map(lambda a: np.asarray(a[0]), found)


finite = st.floats(-9, 9, width=16)


@st.composite
def tables(draw):
  """Rewards that keep within their range, and some that do not."""
  low = draw(finite)
  high = low + draw(st.sampled_from([0.25, 1.0, 3.5]))
  size = dict(min_size=N, max_size=N)
  unit = draw(st.lists(st.floats(-0.5, 1.5, width=16), **size))
  right = draw(st.none() | st.lists(st.booleans(), **size).map(tuple))
  values = tuple(low + (high - low) * u for u in unit)
  return Table(values, low, high, right)


def combined(inner):
  """Any reward made of `inner` ones."""
  several = st.lists(inner, min_size=1, max_size=3).map(tuple)
  return st.one_of(
    several.flatmap(
      lambda r: st.tuples(*[finite.filter(bool)] * len(r)).map(
        lambda w: Sum(r, w)
      )
    ),
    several.map(Product),
    several.map(Lexicographic),
    inner.map(Clip),
    st.tuples(inner, finite.filter(bool), finite).map(lambda a: Scale(*a)),
    st.tuples(inner, inner, st.floats(0, 3)).map(
      lambda a: Gate(a[0], a[1], a[1].low - a[2], threshold=a[0].low)
    ),
  )


rewards = st.recursive(tables(), combined, max_leaves=5)


def below(a, b, scale=0.0):
  """a <= b up to the rounding of float32 at a scale."""
  slack = 4 * np.finfo(np.float32).eps * max(abs(a), abs(b), scale)
  return a <= b + slack


@settings(max_examples=60, deadline=None)
@given(rewards)
def test_a_range_holds_all_values_before_anything_is_clipped(reward):
  check_range(reward)
  inputs = *responses(), jnp.ones((2, N, T), bool)
  raw = reward(reward.load(), *inputs)
  if not isinstance(reward, Table):  # It is what overshoots.
    scale = max(map(abs, every_end(reward)))
    assert below(reward.low, float(raw.reward_X.min()), scale)
    assert below(float(raw.reward_X.max()), reward.high, scale)
  kept = score(reward).reward_X
  assert np.all(kept >= np.float32(reward.low))
  assert np.all(kept <= np.float32(reward.high))


def every_end(reward):
  """The ends of the ranges of a reward and all in it."""
  ends = [reward.low, reward.high, 1.0]
  for member in getattr(reward, "members", ()):
    ends += every_end(member)
  return ends


@settings(max_examples=30, deadline=None)
@given(rewards)
def test_any_nesting_is_hashable_jittable_and_has_its_parts(reward):
  assert hash(reward) == hash(dataclasses.replace(reward))
  plain, compiled = score(reward), score(reward, jit=True)
  assert plain.parts.keys() == compiled.parts.keys()
  # What a compiler rounds otherwise may move a value to the next level.
  if "Lexicographic" not in repr(reward) and "Gate" not in repr(reward):
    scale = max(map(abs, every_end(reward)))
    np.testing.assert_allclose(
      plain.reward_X, compiled.reward_X, rtol=1e-5, atol=1e-5 * scale
    )

  def leaves(reward):
    members = getattr(reward, "members", ())
    return 1 + sum(map(leaves, members))

  own = {n for n in plain.parts if n.rpartition(".")[2] in ("double", "open")}
  assert len(plain.parts.keys() - own) == leaves(reward) - 1
  assert len(own) == repr(reward).count("Table(") + repr(reward).count("Gate(")
  assert (plain.correct_X is not None) == reward.knows_correct


def table(*values, low=0.0, high=1.0, right=None):
  spare = N - len(values)
  right = None if right is None else (*right, *[False] * spare)
  return Table((*values, *[low] * spare), low, high, right)


A = table(0.0, 0.5, 1.0, 0.25)
B = table(-1.0, 2.0, 0.5, 3.0, low=-1.0, high=3.0)
KNOWS = table(0.0, 1.0, right=(False, True))


def test_a_weighted_sum_is_one():
  both = Sum((A, B), (0.5, -2.0))
  assert (both.low, both.high) == (-6.0, 2.5)
  np.testing.assert_allclose(
    score(both).reward_X[:4], [2.0, -3.75, -0.5, -5.875]
  )
  assert (Sum((A, B)).low, Sum((A, B)).high) == (-1.0, 4.0)


def test_a_product_is_one_whatever_the_signs():
  both = Product((A, B))
  assert (both.low, both.high) == (-1.0, 3.0)
  np.testing.assert_allclose(score(both).reward_X[:4], [0.0, 1.0, 0.5, 0.75])
  square = Product((B, B))
  assert (square.low, square.high) == (-3.0, 9.0)


def test_clip_and_scale_are_theirs():
  assert (Clip(B).low, Clip(B, high=2.0).high) == (0.0, 2.0)
  np.testing.assert_array_equal(
    score(Clip(B, -0.5, 1.0)).reward_X[:4], [-0.5, 1.0, 0.5, 1.0]
  )
  turned = Scale(B, -2.0, 1.0)
  assert (turned.low, turned.high) == (-5.0, 3.0)
  np.testing.assert_array_equal(
    score(turned).reward_X[:4], [3.0, -3.0, 0.0, -5.0]
  )


def test_members_are_kept_within_their_ranges_first():
  wild = table(7.0, -7.0, 0.5)
  np.testing.assert_array_equal(
    score(Sum((wild,), (2.0,))).reward_X[:3], [2.0, 0.0, 1.0]
  )


@settings(max_examples=60, deadline=None)
@given(rewards, rewards, st.none() | st.floats(0, 3), st.booleans(), st.data())
def test_no_closed_gate_beats_an_open_one(condition, reward, gap, by, data):
  """Whatever is behind it likes."""
  threshold = None
  if by or not condition.knows_correct:
    part = data.draw(st.floats(0, 1))
    threshold = condition.low + part * (condition.high - condition.low)
    # XLA takes a subnormal number for 0, NumPy does not.
    if abs(threshold) < np.finfo(np.float32).tiny:
      threshold = 0.0
  closed = None if gap is None else reward.low - gap
  gate = Gate(condition, reward, closed, threshold)
  found, first = score(gate), score(condition)
  opened = first.correct_X
  if threshold is not None:
    opened = first.reward_X >= threshold
  np.testing.assert_array_equal(found.parts["open"] > 0, opened)
  inside = score(reward).reward_X
  np.testing.assert_array_equal(found.reward_X[opened], inside[opened])
  np.testing.assert_array_equal(found.reward_X[~opened], np.float32(gate.low))
  if opened.any() and not opened.all():
    assert found.reward_X[~opened].max() <= found.reward_X[opened].min()


def test_a_liked_wrong_answer_never_beats_a_right_one():
  judge = table(0.0, 0.0, 1.0, 1.0, right=[False, False, True, True])
  likes = table(0.9, 1.0, 0.1, 0.0)
  found = score(Gate(judge, likes))
  np.testing.assert_allclose(found.reward_X[:4], [0.0, 0.0, 0.1, 0.0])
  found = score(Gate(judge, likes, closed=-1.0))
  np.testing.assert_allclose(found.reward_X[:4], [-1.0, -1.0, 0.1, 0.0])
  np.testing.assert_array_equal(found.correct_X[:4], [0, 0, 1, 1])
  np.testing.assert_array_equal(found.parts["open"][:4], [0, 0, 1, 1])


@st.composite
def levelled(draw):
  """Levels, rewards of that many values, and the places of N responses."""
  levels = tuple(draw(st.lists(st.integers(2, 100), min_size=1, max_size=3)))
  places = tuple(
    tuple(draw(st.lists(st.integers(0, n - 1), min_size=N, max_size=N)))
    for n in levels
  )
  found = []
  for count, place in zip(levels, places, strict=True):
    low = draw(finite)
    span = draw(st.sampled_from([0.5, 1.0, 7.0]))
    values = tuple(low + span * k / (count - 1) for k in place)
    found.append(Table(values, low, low + span))
  return levels, tuple(found), list(zip(*places, strict=True))


@settings(max_examples=40, deadline=None)
@given(levelled(), st.sampled_from([False, False, False, True]))
def test_the_order_is_that_of_tuples(case, jit):
  levels, rewards, places = case
  reward = Lexicographic(rewards, levels)
  # As it is, as a search sees it, and as a sum around it leaves it.
  negated = Sum((reward,), (-3.0,))
  found = score(negated, jit).reward_X
  for value in (
    score(reward, jit).reward_X, -found, -Scorer(negated, (EOS,)).unit(found)
  ):  # fmt: skip
    for i in range(N):
      for j in range(N):
        assert (value[i] < value[j]) == (places[i] < places[j])
        assert (value[i] == value[j]) == (places[i] == places[j])


def test_every_one_of_2_to_the_20_ranks_is_told_from_the_next():
  """Also by what a search makes of it."""
  step = 2**20 - 1
  rank_J = np.arange(2**20)
  made = jax.jit(lambda rank_J: rank_J / jnp.float32(step))(rank_J)
  assert np.all(np.diff(np.asarray(made)) > 0)
  scaled = jax.jit(lambda x_J: (-3.0 * x_J + 0.7 - 0.7) / -3.0)(made)
  assert np.all(np.diff(np.asarray(scaled)) > 0)


def test_levels_that_were_not_said_are_as_many_as_fit():
  sizes = {n: Lexicographic((A,) * n).all_levels for n in range(1, 21)}
  assert sizes[1] == (2**20,) and sizes[2] == (1024, 1024)
  assert sizes[3] == (101,) * 3 and sizes[20] == (2,) * 20
  for n, levels in sizes.items():
    assert levels[0] ** n <= 2**20 < (levels[0] + 1) ** n


def test_other_values_are_cut_into_levels():
  coarse = table(0.0, 0.4, 0.6, 1.0)
  ties = table(0.0, 1.0, 0.0, 0.0)
  found = score(Lexicographic((coarse, ties), (2, 2))).reward_X[:4]
  np.testing.assert_allclose(found, [0, 1 / 3, 2 / 3, 2 / 3])


def test_parts_have_names_that_tell_them_apart():
  class_named = Sum((A, Length(), Product((A, B))), (1.0, 0.1, 1.0))
  assert set(score(class_named).parts) == {
    "table", "table.double", "length", "product", "product.table_1",
    "product.table_2", "product.table_1.double", "product.table_2.double",
  }  # fmt: skip
  names = algebra.part_names((A, Length(), B, OwnReward(None), TaskReward()))
  assert names == ("table_1", "length", "table_2", "own", "task")


def test_what_is_correct_is_the_first_to_know_or_the_one_that_is_named():
  one = table(0.0, 0.0, right=[True, False])
  two = table(0.0, 0.0, right=[False, True])
  np.testing.assert_array_equal(score(Sum((A, one, two))).correct_X[:2], [1, 0])
  named = Product((A, one, two), correct_by=2)
  np.testing.assert_array_equal(score(named).correct_X[:2], [0, 1])
  assert score(Sum((A, B))).correct_X is None
  gate = Gate(A, one, threshold=0.5)
  np.testing.assert_array_equal(score(gate).correct_X[:2], [1, 0])


def test_parameters_are_the_members_and_operations_add_up():
  reward = Sum((A, Gate(B, Product((A, Length())), threshold=0.0)))
  params = reward.load()
  assert jax.tree.structure(params) == jax.tree.structure(
    (A.load(), (B.load(), (A.load(), ())))
  )
  assert reward.flops(3, 5) == 45.0


def test_length_costs_what_it_says():
  tokens_BGT = np.full((2, 4, T), 1, np.int32)
  for g, n in enumerate((1, 2, 4)):
    tokens_BGT[:, g, n - 1 :] = EOS
  prompts, _ = responses()
  for free, expected in (
    (0, [-0.2, -0.4, -0.8, -1.0]),
    (2, [0.0, 0.0, -2 / 3, -1.0]),
    (9, [0.0, 0.0, 0.0, 0.0]),
  ):
    found = Scorer(Length(free), (EOS,))(prompts, jnp.asarray(tokens_BGT))
    np.testing.assert_allclose(found.reward_X[0], expected, rtol=1e-6)
    assert found.correct_X is None


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: Sum([A]), "needs a tuple of rewards"),
    (lambda: Sum(()), "needs a tuple of rewards"),
    (lambda: Product((A, 1.0)), "Product holds 1.0, which is no reward"),
    (lambda: Sum((A, B), (1.0,)), "2 rewards has 1 weights"),
    (lambda: Sum((A,), (math.inf,)), "must be finite"),
    (lambda: Gate(A, B), "set Gate.threshold"),
    (lambda: Gate(A, B, 0.0, 0.5), "Gate.closed=0.0 exceeds -1.0"),
    (lambda: Lexicographic((A, B), (2,)), "2 rewards has 1 levels"),
    (lambda: Lexicographic((A,), (1,)), "each must be at least 2"),
    (lambda: Lexicographic((A, B), (1025, 1024)), "at most 1048576"),
    (lambda: Lexicographic((A,) * 21), "at least 2"),
    (lambda: Sum((A,), correct_by=0), "knows correct answers"),
    (lambda: Sum((A,), correct_by=3), "knows correct answers"),
    (lambda: Length(-1), "must not be negative"),
    (
      lambda: Sum((Abstention(KNOWS, mark=5), Length())),
      "Sum holds Abstention, whose abstention nobody would hear: put it outer",
    ),
    (
      lambda: Gate(A, Constrained(A, Phrases(("no",)))),
      "Gate holds Constrained, whose forbidden nobody would hear",
    ),
    (lambda: Scorer(Sum((A,), (0.0,)), (EOS,)), "low=0.0 and high=0.0"),
    (lambda: Scorer(Clip(A, 1.0, 0.0), (EOS,)), "low=1.0 and high=0.0"),
    (lambda: Scorer(TaskReward(), (EOS,)), "low=nan"),
  ],
)
def test_what_does_not_fit_is_refused(make, words):
  with pytest.raises(ValueError, match=words):
    make()


# --- In an experiment ---------------------------------------------------------


def shorter(prompts, response_BGT, own):
  return own._replace(reward_X=own.reward_X / 2)


COMBINED = Gate(
  TaskReward(), Sum((TaskReward(), Length(), Shaped(TaskReward(), shorter)))
)


def test_the_tasks_own_reward_takes_the_place_of_what_stands_for_it():
  config = dataclasses.replace(get_config(), reward=COMBINED)
  config = config_lib.override(config, {"task.near": "0.2"})
  own = config.task.make().reward
  assert own != get_config().task.make().reward
  gate = config.make_task().reward
  assert gate.condition == own and gate.reward.rewards[0] == own
  assert gate.reward.rewards[2] == Shaped(own, shorter)
  assert gate.reward.rewards[1] == Length()
  assert (gate.low, gate.high) == (-1.0, 2.0)
  assert Length().bind(own) is not None and A.bind(own) is A


def test_a_function_of_a_reward_keeps_its_range_and_what_it_knows():
  shaped = Shaped(B, shorter)
  assert (shaped.low, shaped.high) == (B.low, B.high)
  assert not shaped.knows_correct
  assert score(shaped).correct_X is None


def test_a_range_that_is_none_is_refused_before_anything_runs():
  with pytest.raises(ValueError, match="low=0.0 and high=0.0"):
    dataclasses.replace(get_config(), reward=Sum((TaskReward(),), (0.0,)))


def test_flags_reach_into_a_reward():
  reward = Sum((TaskReward(), Length()), (1.0, 0.1))
  config = dataclasses.replace(get_config(), reward=reward)
  changed = config_lib.override(config, {"reward.weights": "1,0.5"})
  assert changed.reward.weights == (1.0, 0.5)


def test_fields_are_of_a_shape_that_json_has():
  plain = dataclasses.asdict(Sum((Lexicographic((A, B)), Clip(A)), (1.0, 2.0)))
  assert json.loads(json.dumps(plain))["weights"] == [1.0, 2.0]
