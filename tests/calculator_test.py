"""The calculator and its judge, against fractions and strings."""

import functools
import pathlib
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import countdown_test
from tests.countdown_test import OPERATORS, encode, words
from tsd_jax.models import presets, transformer, weights
from tsd_jax.models.symbols import EOS, PAD
from tsd_jax.run import evaluation
from tsd_jax.tasks.calculator import Calculator, CalculatorConfig
from tsd_jax.tasks.task import (
  as_prompts,
  chosen,
  environment_tokens,
  next_observation,
)

CONFIGS = {n: CalculatorConfig(numbers=n) for n in (3, 4)}
SCORE = {n: jax.jit(Calculator(config).score) for n, config in CONFIGS.items()}


@functools.partial(jax.jit, static_argnums=0)
def following(task, prompt_BP, response_BT, length_B):
  """What is written next; -1: nothing."""
  token_B1, count_B = next_observation(
    task, as_prompts(task, prompt_BP), response_BT, length_B
  )
  return jnp.where(count_B > 0, token_B1[:, 0], -1)


START = pathlib.Path(__file__).parent.parent / (
  "experiments/starts/warm_start_calculator.safetensors"
)


def calculator(tokens, config):
  """What is written after some tokens of a response; None: nothing."""
  *_, a, op, b, equals = ["?"] * 4 + words(tokens)
  if equals != "=" or op not in OPERATORS:
    return None
  if not (a.isdigit() and b.isdigit()):
    return None
  value = OPERATORS[op](Fraction(a), Fraction(b))
  whole = value.denominator == 1 and 1 <= value <= config.max_value
  return int(value) if whole else None


def replay(tokens, config):
  """Which tokens the calculator wrote; fails where it wrote another."""
  written = [calculator(tokens[:t], config) for t in range(len(tokens))]
  for token, expected in zip(tokens, written, strict=True):
    assert expected is None or token == expected
  return [expected is not None for expected in written]


def judge(prompt, response, config):
  """Returns (reward, correct): Countdown's rules on operations with `=`."""
  spelled = words(response)
  steps = [spelled[i : i + 5] for i in range(0, len(spelled) - 1, 5)]
  if any(step[3] != "=" for step in steps):
    return 0.0, False
  without = [t for i, t in enumerate(response) if i % 5 != 3]
  return countdown_test.oracle(prompt, without, config)


@pytest.mark.parametrize(
  "response, answer",
  [
    ("3 * 4 =", 12),
    ("3 * 4 = 12 12 + 5 =", 17),
    ("12 / 4 =", 3),
    ("99 + 100 =", 199),
    ("100 + 100 =", None),  # No token says it.
    ("4 - 4 =", None),
    ("3 - 4 =", None),
    ("3 / 4 =", None),
    ("3 / 0 =", None),
    ("3 * 4", None),
    ("= 3 * 4", None),
    ("* 4 =", None),
    ("=", None),
    ("", None),
    ("+ * 4 =", None),
    ("3 * - =", None),
    ("3 4 4 =", None),
    ("3 = 4 =", None),
    ("1 + 1 3 * 4 =", 12),  # Whatever stands before.
    ("3 * 4 = 12", None),  # One answer a question.
  ],
)
def test_the_calculator_by_example(response, answer):
  task = Calculator(CONFIGS[3])
  tokens = encode(response)
  response_T = np.full(task.response_length, PAD)
  response_T[: len(tokens)] = tokens
  prompt_P = np.array(encode("3 4 5 = 17"))
  (got,) = following(
    task, prompt_P[None], response_T[None], np.array([len(tokens)])
  )
  assert int(got) == (-1 if answer is None else answer)
  assert calculator(tokens, CONFIGS[3]) == answer


def mutated(config, count):
  """Legal responses, of which most have some tokens replaced."""
  rng = np.random.default_rng(config.numbers)
  prompt_QP, response_QT = config.warm_start(rng, count, 0.5)
  for changes in range(3):
    rows = np.flatnonzero(rng.integers(0, 4, count) > changes)
    at = rng.integers(0, response_QT.shape[1], rows.size)
    kinds = [
      response_QT[rows, at] + rng.integers(-2, 3, rows.size),
      response_QT[rows, rng.integers(0, response_QT.shape[1], rows.size)],
      rng.integers(0, 208, rows.size),
    ]
    kind = rng.integers(0, len(kinds), rows.size)
    response_QT[rows, at] = np.stack(kinds)[kind, np.arange(rows.size)]
  return prompt_QP, response_QT


@pytest.mark.parametrize("numbers", [3, 4])
def test_any_response_is_answered_and_judged_as_by_hand(numbers):
  config = CONFIGS[numbers]
  task = config.make()
  prompt_QP, response_QT = mutated(config, 4_000)
  score = SCORE[numbers](prompt_QP, response_QT)
  expected = [
    judge(*row, config) for row in zip(prompt_QP, response_QT, strict=True)
  ]
  reward_Q, correct_Q = map(np.array, zip(*expected, strict=True))
  np.testing.assert_allclose(score.reward_X, reward_Q, atol=1e-6)
  np.testing.assert_array_equal(score.correct_X, correct_Q)
  counts, _ = np.histogram(reward_Q, bins=[0, 0.04, 0.08, 0.99, 1.01])
  assert np.all(counts > 100)

  T = task.response_length
  for t in range(T + 1):
    before_NT = np.where(np.arange(T) < t, response_QT, PAD)
    length_N = np.full(len(response_QT), t)
    said_N = following(task, prompt_QP, before_NT, length_N)
    by_hand = [calculator(tokens_T[:t], config) for tokens_T in response_QT]
    np.testing.assert_array_equal(
      said_N, [-1 if x is None else x for x in by_hand]
    )


def test_of_examples_the_results_alone_are_not_the_models():
  config = CONFIGS[4]
  task = config.make()
  prompt_QP, response_QT = config.warm_start(np.random.default_rng(0), 500, 0.5)
  given = jax.jit(functools.partial(environment_tokens, task))
  prompts = as_prompts(task, prompt_QP)
  observed_NT = np.asarray(given(prompts, response_QT[:, None]))[:, 0]
  np.testing.assert_array_equal(
    observed_NT, np.broadcast_to(np.arange(16) % 5 == 4, observed_NT.shape)
  )
  for tokens_T in response_QT:
    assert np.flatnonzero(replay(list(tokens_T), config)).tolist() == [4, 9, 14]
  mask_N1T = np.ones((500, 1, 16), bool)
  np.testing.assert_array_equal(
    chosen(task, prompts, response_QT[:, None], mask_N1T)[:, 0], ~observed_NT
  )


def test_problems_and_splits_are_countdowns():
  ours, theirs = CONFIGS[3], countdown_test.CONFIGS[3]
  assert ours.problems() == theirs.problems()
  assert ours.dataset == theirs.dataset
  problem = ours.problems()[1000]
  prompt_P, response_T, _ = ours.pose(problem, np.random.default_rng(5))
  other_P, other_T, _ = theirs.pose(problem, np.random.default_rng(5))
  np.testing.assert_array_equal(prompt_P, other_P)
  assert judge(prompt_P, response_T, ours) == (1.0, True)
  np.testing.assert_array_equal(np.delete(response_T, [3, 8]), other_T)


def test_a_warm_started_model_uses_the_calculator():
  config = CONFIGS[3]
  task = config.make()
  graphdef, params = transformer.create(presets.TINY, 0)
  params, _ = weights.load(START, params)
  rng = np.random.default_rng(0)
  problems = config.problems()
  prompt_BP = np.stack(
    [
      config.pose(problems[i], rng)[0]
      for i in rng.integers(0, len(problems), 64)
    ]
  )
  tokens_BGT, reward_BG, correct_BG, _ = jax.device_get(
    evaluation.draw(
      graphdef,
      params,
      task,
      as_prompts(task, prompt_BP),
      jax.random.key(0),
      1.0,
      samples=4,
    )
  )
  answers = 0
  for b, g in np.ndindex(64, 4):
    tokens = tokens_BGT[b, g].tolist()
    end = tokens.index(EOS) + 1 if EOS in tokens else len(tokens)
    answers += sum(replay(tokens[:end], config))
    reward, correct = judge(prompt_BP[b], tokens, config)
    assert reward_BG[b, g] == pytest.approx(reward, abs=1e-6)
    assert correct_BG[b, g] == correct
  assert answers > 400  # Of two an answer.
