"""What stops a run: numbers that broke, rewards that never came."""

import math

import jax.numpy as jnp
import pytest

from tsd_jax.base.errors import UserError
from tsd_jax.learning.iteration import TrainState
from tsd_jax.run import checks

KEPT = "the checkpoint of iteration 4 is kept"


def state(weight=1.0, moment=0.0):
  return TrainState(
    {"embedding_VD": jnp.array([[0.5, weight]])},
    ({"mu": jnp.array([moment], jnp.bfloat16), "count": jnp.int32(3)},),
    (),
    jnp.int32(4),
  )


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"weight": float("nan")}, r"\['params'\]\['embedding_VD'\] became nan"),
    ({"weight": float("-inf")}, "embedding_VD.* became inf"),
    ({"weight": -3e38}, r"embedding_VD.* became 3e\+38"),
    ({"moment": float("nan")}, r"\['opt_state'\].*mu.* became nan"),
  ],
)
def test_a_broken_state_is_named_with_what_is_kept(fields, words):
  with pytest.raises(UserError, match=words) as raised:
    checks.check_state(state(**fields), 7, "runs/x", KEPT)
  text = str(raised.value)
  assert "runs/x, iteration 7" in text and KEPT in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(3,), (64, 64), (2, 208, 96)])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_one_broken_number_is_found_wherever_it_is(shape, value, dtype):
  """XLA's maximum on CPU passes over NaN in arrays that it vectorises."""
  size = math.prod(shape)
  for at in {0, 1, size // 2, size - 1}:
    weight = jnp.ones(size, dtype).at[at].set(float(value)).reshape(shape)
    broken = state()._replace(params={"up_DF": weight})
    with pytest.raises(UserError, match=f"up_DF.* became {value.lstrip('-')}"):
      checks.check_state(broken, 7, "runs/x", KEPT)


def test_a_sound_state_may_have_large_moments():
  checks.check_state(state(weight=70_000.0, moment=1e9), 7, "runs/x", KEPT)


def test_a_broken_metric_is_named_with_what_is_kept():
  rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": float("inf"), "a": 0.0}]
  with pytest.raises(UserError, match="iteration 2: loss became inf; no such"):
    checks.check_rows(rows, "runs/x", "no such")
  checks.check_rows(rows[:1], "runs/x", "no such")


@pytest.mark.parametrize("name", ["reward", "search_reward", "champion_reward"])
def test_a_reward_that_breaks_is_blamed_and_not_the_rate(name):
  """It breaks what is learned from it too, and that comes first by name."""
  row = {"step": 1, "approx_kl": math.nan, name: math.nan, "steady": 1.0}
  with pytest.raises(UserError, match="See what the reward gives"):
    checks.check_rows([row], "runs/x", KEPT)
  row |= {name: 1.0}
  with pytest.raises(UserError, match="lower --config.optimizer"):
    checks.check_rows([row], "runs/x", KEPT)


def test_a_number_that_breaks_in_an_evaluation_is_named():
  found = {"mean@16": {"accuracy": 0.5, "reward": math.nan}}
  row = {"step": 0, "seconds": 0.0, "eval": found}
  words = "eval.mean@16.reward became nan; .* See what the reward gives"
  with pytest.raises(UserError, match=words):
    checks.check_rows([row], "runs/x", KEPT)


def rows(reward, count=1, **more):
  return [{"step": 0}] + [{"step": 1, "reward": reward} | more] * count


def test_a_run_without_reward_is_told_once(caplog):
  outcome = checks.Outcome(-1.0)
  outcome.see(rows(-1.0, 9))
  assert not caplog.records
  outcome.see(rows(-1.0, 1))
  outcome.see(rows(-1.0, 30), last=True)
  (record,) = caplog.records
  assert "no response in 10 iterations" in record.message
  assert "-1" in record.message


def test_a_short_run_without_reward_is_told_at_its_end(caplog):
  checks.Outcome(0.0).see(rows(0.0, 2), last=True)
  assert "no response in 2 iterations" in caplog.text


@pytest.mark.parametrize(
  "found", [rows(0.1), rows(0.0, search_reward=0.1), [{"step": 0}]]
)
def test_a_run_with_some_reward_is_told_nothing(caplog, found):
  outcome = checks.Outcome(0.0)
  outcome.see(found)
  outcome.see(rows(0.0, 50) if len(found) > 1 else [], last=True)
  assert not caplog.records


def test_a_run_whose_reward_calls_all_failed_is_an_error():
  outcome = checks.Outcome(0.0)
  outcome.see(rows(0.0, host_rewards={"graded": 6, "raised": 5, "died": 1}))
  with pytest.raises(UserError, match="none of 6 calls .*5 raised, 1 died"):
    outcome.check()
  outcome.see(rows(0.0, host_rewards={"graded": 2, "raised": 1}))
  outcome.check()  # One call came to something.
  checks.Outcome(0.0).check()  # A reward without calls on the host.
