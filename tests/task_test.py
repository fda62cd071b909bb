"""A run's own reward, wrapped around a task."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small_experiment
from tsd_jax.base import config as config_lib
from tsd_jax.models import symbols
from tsd_jax.rewards.abstention import Abstention
from tsd_jax.rewards.reward import Scorer
from tsd_jax.run import directory, load
from tsd_jax.tasks.countdown import Countdown, CountdownConfig
from tsd_jax.tasks.task import Rewarded, Shaped, Task, as_prompts

COUNTDOWN = Countdown(CountdownConfig(numbers=3))
ENCODE = symbols.SymbolTokenizer().encode
PROMPT = np.array(ENCODE("5 12 2 = 58"))
RESPONSE = np.array(ENCODE("12 * 5 60 60 - 2 58 <eos>"))


def no_times(prompts, tokens_BGT, score):
  times_X = jnp.any(tokens_BGT == symbols.TIMES, axis=-1)
  return score._replace(reward_X=jnp.where(times_X, 0.5, 1.0) * score.reward_X)


def rewarded(fn):
  return Rewarded(COUNTDOWN, Shaped(COUNTDOWN.reward, fn))


def test_a_function_around_a_reward_leaves_what_else_it_can():
  """Steps are judged, and "I don't know" is paid, as before."""

  class Judging(type(COUNTDOWN.reward)):
    judges_steps = True

    def progress(self, params, prompts, tokens_BT, mask_BT):
      return jnp.full(len(tokens_BT), 0.25)

  inside = Judging(*(getattr(COUNTDOWN.reward, f.name) for f in
                     dataclasses.fields(COUNTDOWN.reward)))  # fmt: skip
  shaped = Shaped(inside, no_times)
  assert shaped.judges_steps
  np.testing.assert_array_equal(
    shaped.progress((), None, np.zeros((3, 2)), None), [0.25] * 3
  )
  unsure = Shaped(Abstention(inside, mark=5), no_times)
  assert unsure.abstention == Abstention(inside, mark=5).abstention


def scored(task, prompt_BP, response_BT):
  """Scores a response to each prompt."""
  scorer = Scorer(task.reward, task.end_ids)
  return jax.jit(scorer)(
    as_prompts(task, prompt_BP), jnp.asarray(response_BT)[:, None]
  )


def test_the_reward_is_changed_and_the_rest_is_the_tasks():
  task = rewarded(no_times)
  assert isinstance(task, Task) and hash(task) == hash(rewarded(no_times))
  for name in ("vocab_size", "prompt_length", "response_length", "end_ids"):
    assert getattr(task, name) == getattr(COUNTDOWN, name)
  score = scored(task, np.stack([PROMPT] * 3), np.stack([RESPONSE] * 3))
  np.testing.assert_allclose(score.reward_X, 0.5)
  assert np.all(score.correct_X)
  with pytest.raises(AttributeError, match="colour"):
    task.colour  # noqa: B018


@pytest.mark.parametrize(
  ("reward", "words"),
  [
    (lambda p, r, s: s.reward_X, "return score._replace"),
    (
      lambda p, r, s: s._replace(reward_X=s.correct_X),
      r"of bool\[1, 1\]; expected floating\[1, 1\]",
    ),
    (
      lambda p, r, s: s._replace(reward_X=jnp.ones(r.shape)),
      r"float32\[1, 1, 9\]; expected floating\[1, 1\]",
    ),
    (lambda p, r, s: s._replace(correct_X=s.reward_X), "expected bool"),
  ],
)
def test_what_is_no_score_is_refused(reward, words):
  with pytest.raises(ValueError, match=words):
    scored(rewarded(reward), PROMPT[None], RESPONSE[None])


def test_a_run_takes_any_task_config_and_nothing_else():
  config = small_experiment.get_config()
  for other in (config.model, COUNTDOWN, "countdown"):
    with pytest.raises(ValueError, match="no task config: use CountdownConfig"):
      dataclasses.replace(config, task=other)


def test_a_run_goes_on_with_its_task_alone(tmp_path):
  config = small_experiment.get_config()
  directory.prepare(config, tmp_path)
  assert load.read_config(tmp_path) == config
  directory.prepare(config, tmp_path)
  other = config_lib.override(config, {"task.numbers": "4"})
  with pytest.raises(config_lib.UserError, match="task.numbers: saved 3, now"):
    directory.prepare(other, tmp_path)


def test_a_run_of_another_version_is_refused_in_one_line(tmp_path):
  directory.prepare(small_experiment.get_config(), tmp_path)
  file = tmp_path / "config.json"
  saved = json.loads(file.read_text())
  saved["search"]["refill"] = saved["search"].pop("slot_reuse")
  file.write_text(json.dumps(saved))
  with pytest.raises(config_lib.ConfigError) as error:
    load.read_config(tmp_path)
  words = "another version of the code: slot_reuse is missing; refill is unkn"
  assert words in str(error.value) and str(file) in str(error.value)
  assert "\n" not in str(error.value)


def test_no_flag_can_say_a_function():
  with pytest.raises(config_lib.ConfigError, match="set in the config file"):
    config_lib.override(small_experiment.get_config(), {"reward": "mine"})
