"""What a run is said to cost before it begins."""

import dataclasses

import pytest

from tests import small_experiment
from tsd_jax.run import costs

CONFIG = small_experiment.get_config()


@pytest.mark.parametrize(
  ("seconds", "text"),
  [
    (0.42, "0.4 s"), (12.4, "12 s"), (119, "119 s"), (420, "7 min"),
    (7_000, "117 min"), (11_160, "3.1 hours"),
  ],
)  # fmt: skip
def test_a_time_is_said_as_a_person_says_it(seconds, text):
  assert costs.duration(seconds) == text


def test_a_forecast_has_tokens_and_on_a_cpu_time():
  tokens = costs.iteration_tokens(CONFIG)
  start = f"tokens: up to {tokens:,.0f} an iteration, {6 * tokens:,.0f} in 6"
  assert costs.forecast(CONFIG, cpu=False) == start
  line = costs.forecast(CONFIG, cpu=True)
  assert line.startswith(start + "; on ") and "WARNING" not in line


def test_a_reference_model_reads_the_samples_as_well():
  """As the ledger counts it (`rescore`), once an epoch."""
  kl = dataclasses.replace(
    CONFIG,
    loss=dataclasses.replace(CONFIG.loss, kl_weight=0.1),
    optimizer=dataclasses.replace(CONFIG.optimizer, epochs=2),
  )
  plain = dataclasses.replace(CONFIG, optimizer=kl.optimizer)
  r, task = CONFIG.rollout, CONFIG.make_task()
  own = r.prompts * (task.prompt_length + r.group * (task.response_length - 1))
  more = costs.iteration_tokens(kl) - costs.iteration_tokens(plain)
  assert more == 2 * own


def test_a_run_of_hours_is_warned_of():
  long = dataclasses.replace(CONFIG, iterations=10**9)
  assert "hours; fewer prompts" in costs.forecast(long, cpu=True)
  assert costs.remaining(61, 59) == (
    "an iteration takes 61 s: 59 more take 60 min, without evaluation"
  )
  assert "WARNING: the run takes 61 min" in costs.remaining(61, 60)
