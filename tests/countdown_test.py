"""Tests of Countdown: rewards, solver, random expressions.

The oracle reads strings and computes with fractions and lists; it shares no
code with the parser that it checks.
"""

import dataclasses
import itertools
import math
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from tsd_jax.models.symbols import EOS, PAD, SEPARATOR, SymbolTokenizer
from tsd_jax.tasks import countdown_problems as problems_lib
from tsd_jax.tasks import task
from tsd_jax.tasks.countdown import Countdown, CountdownConfig

CONFIGS = {n: CountdownConfig(numbers=n) for n in (3, 4, 5)}
SCORE = {n: jax.jit(Countdown(config).score) for n, config in CONFIGS.items()}
OPERATORS = {
  "+": lambda x, y: x + y,
  "-": lambda x, y: x - y,
  "*": lambda x, y: x * y,
  "/": lambda x, y: x / y if y else Fraction(-1),
}
encode = SymbolTokenizer().encode


def words(tokens):
  """Spells tokens, with `?` for what is outside the vocabulary."""
  names = "+ - * / = <pad> ? <eos>".split()
  return [
    str(t) if 0 <= t < 200 else names[t - 200] if 200 <= t < 208 else "?"
    for t in map(int, tokens)
  ]


def oracle(prompt, response, config):
  """Returns (reward, correct) as the rules say, one response at a time."""
  *numbers, equals, target = words(prompt)
  if equals != "=" or not all(w.isdigit() for w in [*numbers, target]):
    return 0.0, False
  if not all(1 <= int(w) <= config.max_value for w in numbers):
    return 0.0, False
  if not 1 <= int(target) <= config.max_target:
    return 0.0, False
  text = " ".join(words(response))
  head, end, tail = text.partition("<eos>")
  if not end or tail.replace("<pad>", "").strip():
    return 0.0, False
  spelled = head.split()
  steps = [spelled[i : i + 4] for i in range(0, len(spelled), 4)]
  if len(steps) != config.numbers - 1 or len(steps[-1]) != 4:
    return 0.0, False
  for a, op, b, r in steps:
    if op not in tuple("+-*/") or not all(w.isdigit() for w in (a, b, r)):
      return 0.0, False

  available = [Fraction(w) for w in numbers]
  for a, op, b, r in steps:
    x, y, written = Fraction(a), Fraction(b), Fraction(r)
    for used in (x, y):
      if used not in available:
        return config.illegal, False
      available.remove(used)
    value = OPERATORS[op](x, y)
    if value != written or not 0 < value <= config.max_value:
      return config.illegal, False
    available.append(value)
  (last,) = available
  if last == int(target):
    return 1.0, True
  away = float(abs(last - int(target)))
  reward = config.legal + config.near * math.exp(-away / config.near_scale)
  return reward, False


def check(prompt_QP, response_QT, config):
  """Compares the parser with the oracle row by row."""
  score = SCORE[config.numbers](prompt_QP, response_QT)
  expected = [
    oracle(prompt, response, config)
    for prompt, response in zip(prompt_QP, response_QT, strict=True)
  ]
  reward, correct = map(np.array, zip(*expected, strict=True))
  np.testing.assert_allclose(score.reward_X, reward, rtol=0, atol=1e-6)
  np.testing.assert_array_equal(score.correct_X, correct)
  return np.asarray(score.reward_X)


def arrays(prompt, response):
  """Encodes one prompt and one response."""
  return np.array(encode(prompt)), np.array(encode(response))


@pytest.mark.parametrize(
  "response, reward",
  [
    ("3 * 4 12 12 + 5 17 <eos>", 1.0),
    ("4 * 3 12 5 + 12 17 <eos>", 1.0),
    ("5 - 4 1 3 / 1 3 <eos>", 0.1 + 0.3 * math.exp(-14 / 5)),
    ("3 * 5 15 15 + 4 19 <eos>", 0.1 + 0.3 * math.exp(-2 / 5)),
    ("3 * 4 11 11 + 5 16 <eos>", 0.05),  # Wrong result.
    ("3 * 4 12 12 + 4 16 <eos>", 0.05),  # 4 is used up.
    ("3 * 4 12 5 + 5 10 <eos>", 0.05),  # The only 5, twice.
    ("3 * 4 12 13 + 5 18 <eos>", 0.05),  # 13 was never there.
    ("4 - 4 0 0 + 5 5 <eos>", 0.05),  # One 4 only.
    ("3 / 4 0 0 + 5 5 <eos>", 0.05),  # Not an integer.
    ("5 / 4 1 1 + 3 4 <eos>", 0.05),  # Not an integer either.
    ("3 / 0 0 0 + 5 5 <eos>", 0.05),  # Division by zero.
    ("3 * 4 + 12 + 5 17 <eos>", 0.0),  # A symbol where a number belongs.
    ("3 4 4 12 12 + 5 17 <eos>", 0.0),  # A number where a symbol belongs.
    ("3 = 4 12 12 + 5 17 <eos>", 0.0),
    ("3 * 4 12 12 + 5 17 <pad>", 0.0),  # Unfinished.
    ("3 * 4 12 12 + 5 17 17", 0.0),
    ("3 * 4 12 <eos> <pad> <pad> <pad> <pad>", 0.0),  # Ends too early.
    ("3 * 4 12 <eos> + 5 17 <eos>", 0.0),
    ("3 * 4 12 12 + 5 <eos> <eos>", 0.0),
  ],
)
def test_rewards_by_example(response, reward):
  """One line for each rule, prompt 3 4 5 = 17."""
  prompt_P, response_T = arrays("3 4 5 = 17", response)
  got = check(prompt_P[None], response_T[None], CONFIGS[3])
  np.testing.assert_allclose(got, [reward], atol=1e-6)


def test_equal_numbers_are_used_as_often_as_given():
  """A multiset, not a set; a zero result is illegal even where exact."""
  prompt = "4 4 5 = 40"
  for response, reward in (
    ("4 + 4 8 8 * 5 40 <eos>", 1.0),
    ("4 - 4 0 0 * 5 0 <eos>", 0.05),
    ("4 + 4 8 8 * 4 32 <eos>", 0.05),
  ):
    prompt_P, response_T = arrays(prompt, response)
    got = check(prompt_P[None], response_T[None], CONFIGS[3])
    np.testing.assert_allclose(got, [reward])


def test_max_value_bounds_every_result():
  """The limit itself is allowed, one more is not."""
  score = Countdown(CountdownConfig(max_value=20, max_target=20)).score
  for prompt, response, legal in (
    ("4 5 10 = 10", "4 * 5 20 20 - 10 10 <eos>", True),
    ("4 5 10 = 10", "5 * 10 50 50 - 4 46 <eos>", False),
    ("6 5 10 = 10", "10 + 5 15 15 + 6 21 <eos>", False),
  ):
    reward = score(*arrays(prompt, response)).reward_X
    assert (reward > 0.05 + 1e-6) == legal


@pytest.mark.parametrize("numbers", [3, 4, 5])
def test_mutated_responses_agree_with_the_oracle(numbers):
  """Legal responses with up to four tokens replaced, prompts included."""
  config = CONFIGS[numbers]
  rng = np.random.default_rng(numbers)
  count = 12_000
  prompt_QP, response_QT = config.warm_start(rng, count, 0.5)
  both = np.concatenate([prompt_QP, response_QT], axis=1)
  first = rng.choice([0, prompt_QP.shape[1]], count, p=[0.1, 0.9])
  odd = np.array([-1, 0, 1, 2, 199, *range(200, 209), 2**31 - 1, -(2**31)])
  for changes in range(4):
    rows = np.flatnonzero(rng.integers(0, 5, count) > changes)
    at = rng.integers(first[rows], both.shape[1])
    kinds = [
      both[rows, at] + rng.integers(-2, 3, rows.size),
      both[rows, rng.integers(0, both.shape[1], rows.size)],
      rng.choice(odd, rows.size),
      rng.integers(0, 208, rows.size),
    ]
    kind = rng.integers(0, len(kinds), rows.size)
    both[rows, at] = np.stack(kinds)[kind, np.arange(rows.size)]
  prompt_QP, response_QT = np.split(both, [prompt_QP.shape[1]], axis=1)
  reward_Q = check(prompt_QP, response_QT, config)
  # Every level was really tested: 0, 0.05, [0.1, 1), 1.
  counts, _ = np.histogram(reward_Q, bins=[0, 0.04, 0.08, 0.99, 1.01])
  assert np.all(counts > 300)


tokens = st.one_of(
  st.integers(0, 14), st.integers(200, 207), st.integers(-3, 300)
)


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(st.data())
def test_any_tokens_agree_with_the_oracle(data):
  """Arbitrary strings, with the shape of a response or without."""
  numbers = data.draw(st.sampled_from([3, 4, 5]))
  config = CONFIGS[numbers]
  small = st.integers(1, 5)
  prompt = data.draw(
    st.one_of(
      st.tuples(*[small] * numbers, st.just(SEPARATOR), small),
      st.lists(tokens, min_size=numbers + 2, max_size=numbers + 2),
    )
  )
  step = st.tuples(small, st.integers(200, 203), small, st.integers(0, 9))
  shaped = st.tuples(*[step] * (numbers - 1)).map(
    lambda steps: [*itertools.chain(*steps), EOS]
  )
  length = 4 * (numbers - 1) + 1
  free = st.lists(tokens, min_size=length, max_size=length)
  response = data.draw(st.one_of(shaped, free))
  check(np.array([prompt]), np.array([response]), config)


def test_levels_are_monotone():
  """Unparsable < illegal < legal-far <= ... <= legal-near < exact."""
  config = CONFIGS[3]
  table = config.reward_by_distance()
  assert table.dtype == np.float32
  assert 0 < np.float32(config.illegal) < table[-1]
  assert np.all(np.diff(table) <= 0)
  assert table[0] == 1.0 > table[1]
  # The farthest legal response there can be still beats an illegal one.
  prompt_P, far_T = arrays("1 13 13 = 1", "13 * 13 169 169 + 1 170 <eos>")
  illegal_T = arrays("1", "13 * 13 169 169 + 1 1 <eos>")[1]
  far, illegal = check(
    np.stack([prompt_P] * 2), np.stack([far_T, illegal_T]), config
  )
  assert far > illegal


levels = st.floats(0, 2, allow_subnormal=True)


@hypothesis.given(levels, levels, levels, st.floats(0, 1e300), st.integers())
def test_accepted_levels_are_always_monotone(illegal, legal, near, scale, size):
  """Whatever settings are accepted, rounding does not break the order."""
  try:
    small = dict(max_number=1, max_target=1, max_value=1 + size % 199)
    settings = dict(illegal=illegal, legal=legal, near=near, near_scale=scale)
    config = CountdownConfig(**small, **settings)
  except ValueError as error:
    assert "CountdownConfig." in str(error)
    return
  table = config.reward_by_distance()
  assert np.all(np.isfinite(table)) and np.all(np.diff(table) <= 0)
  assert 0 < np.float32(illegal) < table[-1] and table[1] < table[0] == 1


def test_jit_vmap_and_leading_axes_agree():
  """The same score, whichever way it is called, without rank promotion."""
  config = CONFIGS[3]
  game = Countdown(config)
  rng = np.random.default_rng(0)
  prompt_QP, response_QT = config.warm_start(rng, 24, 0.5)
  response_QT[::3, 3] += 1
  with jax.numpy_rank_promotion("raise"):
    plain = game.score(prompt_QP, response_QT)
    others = [
      jax.jit(game.score)(prompt_QP, response_QT),
      jax.jit(jax.vmap(game.score))(prompt_QP, response_QT),
      game.score(prompt_QP.reshape(4, 6, -1), response_QT.reshape(4, 6, -1)),
      game.score(prompt_QP.astype(np.uint8), response_QT.astype(np.uint8)),
      jax.lax.map(lambda pair: game.score(*pair), (prompt_QP, response_QT)),
    ]
  assert plain.reward_X.dtype == np.float32
  assert plain.correct_X.dtype == bool
  assert 0 < plain.correct_X.sum() < 24
  for other in others:
    np.testing.assert_array_equal(np.ravel(other.reward_X), plain.reward_X)
    np.testing.assert_array_equal(np.ravel(other.correct_X), plain.correct_X)
  empty = game.score(np.zeros((2, 0, 5), int), np.zeros((2, 0, 9), int))
  assert empty.reward_X.shape == (2, 0)


def test_score_refuses_what_does_not_fit():
  """Errors print the shapes."""
  game = Countdown()
  prompt, response = np.zeros((2, 5), int), np.zeros((2, 9), int)
  with pytest.raises(ValueError, match=r"prompt_XP .* axis of 5.*\(2, 6\)"):
    game.score(np.zeros((2, 6), int), response)
  with pytest.raises(ValueError, match=r"response_XT .* axis of 9.*\(2, 5\)"):
    game.score(prompt, prompt)
  with pytest.raises(ValueError, match=r"leading axes differ.*\(3, 9\)"):
    game.score(prompt, np.zeros((3, 9), int))
  with pytest.raises(ValueError, match="integer tokens"):
    game.score(prompt, response.astype(float))


def test_task_protocol():
  """Countdown offers what a task must, and can be a static argument."""
  game = Countdown(CONFIGS[4])
  assert isinstance(game, task.Task)
  assert (game.prompt_length, game.response_length) == (6, 13)
  assert (game.vocab_size, game.eos_id, game.pad_id) == (208, EOS, PAD)
  assert hash(game) == hash(Countdown(CountdownConfig(numbers=4)))
  assert game != Countdown()


@pytest.mark.parametrize(
  "response, end",
  [
    ("3 * 4 12 12 + 5 17 <eos>", "| 3*4=12 12+5=17 | exact 1.000"),
    ("3 * 5 15 15 + 4 19 <eos>", "| 3*5=15 15+4=19 | off by 2 0.301"),
    ("3 * 4 11 11 + 5 17 <eos>", "| 3*4=11 11+5=17 | illegal 0.050"),
    ("3 * <eos>" + " <pad>" * 6, "| 3 * <eos> | unparsable 0.000"),
    ("3 * 4 12 12 + 5 17 17", "| 3 * 4 12 12 + 5 17 17 | unfinished 0.000"),
  ],
)
def test_describe(response, end):
  """A person reads the numbers, the steps and the verdict in one line."""
  line = Countdown().describe(*arrays("3 4 5 = 17", response))
  assert line == f"3 4 5 = 17 {end}"


def test_describe_survives_any_tokens():
  """A padded vocabulary can yield ids that are no symbols."""
  line = Countdown().describe(np.full(5, 250), np.full(9, -7))
  assert "<250>" in line and "<-7>" in line and "unfinished" in line


@pytest.mark.parametrize(
  "field, value, remedy",
  [
    ("numbers", 6, "use 3, 4 or 5"),
    ("numbers", 3.0, "use 3, 4 or 5"),
    ("max_number", 0, r"1\.\.max_value=199"),
    ("max_number", True, r"1\.\.max_value=199"),
    ("max_target", 200, r"1\.\.max_value=199"),
    ("max_value", 200, r"1\.\.199"),
    ("validation_size", -1, "0 or more"),
    ("test_size", 1.5, "0 or more"),
    ("seed", -1, r"0\.\.2\*\*32-1"),
    ("illegal", 0.0, r"in \(0, 1\)"),
    ("illegal", 1e-50, r"in \(0, 1\)"),
    ("legal", 0.05, "above illegal=0.05"),
    ("near", 1.2, "near miss"),
    ("near", -0.1, "near miss"),
    ("near_scale", 0.0, "above 0"),
    ("near_scale", math.nan, "above 0"),
  ],
)
def test_config_errors_name_field_value_and_remedy(field, value, remedy):
  """A message says what to change."""
  with pytest.raises(ValueError, match=remedy) as error:
    CountdownConfig(**{field: value})
  assert str(error.value).startswith(f"CountdownConfig.{field}={value!r}: ")


def brute_force(numbers, max_value):
  """Returns every reachable target of three numbers, by plain nesting."""
  found = set()
  for a, b, c in itertools.permutations(map(Fraction, numbers)):
    for first, second in itertools.product(OPERATORS.values(), repeat=2):
      inner = first(a, b)
      if inner in range(1, max_value + 1):
        found |= {second(inner, c), second(c, inner)}
  return found & set(range(1, max_value + 1))


@pytest.mark.parametrize("max_value", [20, 199])
def test_solver_finds_exactly_what_brute_force_finds(max_value):
  """All multisets of three numbers."""
  for numbers in itertools.combinations_with_replacement(range(1, 14), 3):
    reached = problems_lib.reachable(numbers, max_value)
    assert set(reached) == brute_force(numbers, max_value), numbers


def test_solver_reads_numbers_in_any_order():
  """The caller's order does not matter, nor what it does to the answer."""
  answer = problems_lib.reachable((5, 3, 4))
  answer.clear()
  assert problems_lib.reachable((4, 5, 3))[17]
  with pytest.raises(ValueError, match="numbers"):
    problems_lib.reachable((0, 1, 2))


@pytest.mark.parametrize("numbers, count", [(3, 5_757), (4, 88_353)])
def test_every_problem_is_solved(numbers, count):
  """The solver's answers are exact for the parser, and for the oracle."""
  config = CONFIGS[numbers]
  problems = config.problems()
  assert len(problems) == len(set(problems)) == count
  assert all(list(given) == sorted(given) for given, _ in problems)
  prompts = [[*given, SEPARATOR, target] for given, target in problems]
  responses = [
    [*itertools.chain(*problems_lib.reachable(given)[target]), EOS]
    for given, target in problems
  ]
  prompts, responses = np.array(prompts), np.array(responses)
  assert SCORE[numbers](prompts, responses).correct_X.all()
  some = slice(None, None, count // 5_000)
  assert np.all(check(prompts[some], responses[some], config) == 1)


@pytest.mark.parametrize("numbers", [3, 4, 5])
def test_random_expressions(numbers):
  """Always legal, on the target as often as asked, and reproducible."""
  config = dataclasses.replace(CONFIGS[numbers], max_value=120)

  def draw(seed, fraction):
    rng = np.random.default_rng(seed)
    return config.warm_start(rng, 4_000, fraction)

  prompt_QP, response_QT = draw(0, 0.3)
  assert prompt_QP.shape == (4_000, numbers + 2)
  assert response_QT.shape == (4_000, 4 * numbers - 3)
  assert prompt_QP.dtype == response_QT.dtype == np.int32
  score = Countdown(config).score(prompt_QP, response_QT)
  assert np.all(score.reward_X >= np.float32(config.legal))
  assert 0.28 < score.correct_X.mean() < 0.35  # Chance hits are few.
  assert len(np.unique(response_QT[:, 1])) == 4  # All operators occur.
  for again, first in zip(draw(0, 0.3), (prompt_QP, response_QT), strict=True):
    np.testing.assert_array_equal(again, first)
  assert not np.array_equal(draw(1, 0.3)[0], prompt_QP)
  assert Countdown(config).score(*draw(2, 1.0)).correct_X.all()


def test_excluded_problems_are_never_drawn():
  """Not as solved examples and not as prompts, in any order of numbers."""
  config = CONFIGS[3]
  problems = config.problems()
  excluded = set(problems[::2])
  rng = np.random.default_rng(0)
  prompt_QP, _ = config.warm_start(rng, 20_000, 0.5, excluded)
  drawn = {(tuple(sorted(p[:3])), p[-1]) for p in prompt_QP.tolist()}
  assert not drawn & excluded
  assert len(drawn & set(problems)) > 1_000
  with pytest.raises(ValueError, match="exclude fewer"):
    config.warm_start(rng, 10, 1.0, problems)


def test_random_expressions_refuses_bad_arguments():
  """And gives nothing when asked for nothing."""
  rng = np.random.default_rng(0)
  with pytest.raises(ValueError, match="relabel_fraction=1.5"):
    CONFIGS[3].warm_start(rng, 1, 1.5)
  with pytest.raises(ValueError, match="count=-1"):
    CONFIGS[3].warm_start(rng, -1, 0.5)
  prompt_QP, response_QT = CONFIGS[4].warm_start(rng, 0, 0.5)
  assert (prompt_QP.shape, response_QT.shape) == ((0, 6), (0, 13))
