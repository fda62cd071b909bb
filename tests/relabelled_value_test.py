"""The value taught by relabelling: what it learns and what it leaves alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.recipes import relabelled_value
from tests import small_experiment
from tsd_jax.base import config as config_lib
from tsd_jax.inference import scoring
from tsd_jax.learning import supervised
from tsd_jax.models import symbols
from tsd_jax.run.experiment import initial_params
from tsd_jax.tasks import data
from tsd_jax.tasks.task import as_prompts

SIZES = dict(steps=150, batch=128, learning_rate=3e-3)


@functools.cache
def taught():
  """A small model before and after, and what both say of other examples."""
  experiment = small_experiment.get_config()
  graphdef, params = initial_params(experiment)
  new = relabelled_value.teach(graphdef, params, experiment.task, **SIZES)
  config = experiment.task
  prompt_BP, response_BT = config.warm_start(
    np.random.default_rng(99), 1_000, 0.5, supervised.held_out(config)
  )

  task = config.make()
  prompts = as_prompts(task, prompt_BP)

  @jax.jit
  def read(params):
    model = nnx.merge(graphdef, params)
    x_BTD = scoring.hidden_states(model, prompts, response_BT[:, None])[:, 0]
    return jax.nn.log_softmax(model.logits(x_BTD)), model.values(x_BTD)[1]

  right_B = task.score(prompt_BP, response_BT).correct_X
  return read(params), read(new), np.asarray(right_B), response_BT


def separation(logit_B, right_B):
  """Chance that a right response has the higher value than a wrong one."""
  right, wrong = np.asarray(logit_B)[right_B], np.asarray(logit_B)[~right_B]
  return np.mean(right[:, None] > wrong[None])


def test_a_whole_answer_is_known_to_be_right():
  _, (_, logit_BT), right_B, response_BT = taught()
  end_B = np.argmax(response_BT == symbols.EOS, axis=1)
  last_B = np.asarray(logit_BT)[np.arange(len(end_B)), end_B]
  assert 0.3 < right_B.mean() < 0.7
  assert separation(last_B, right_B) > 0.75
  # The prompt alone says less.
  assert separation(logit_BT[:, 0], right_B) < 0.78


def test_the_policy_stays():
  (old_BTV, _), (new_BTV, _), _, response_BT = taught()
  kl_BT = jnp.sum(jnp.exp(old_BTV) * (old_BTV - new_BTV), axis=-1)
  use_BT = response_BT != symbols.PAD
  assert 0 < float(jnp.sum(kl_BT * use_BT) / use_BT.sum()) < 0.05


def test_held_out_problems_are_never_asked(monkeypatch):
  asked = []
  monkeypatch.setattr(
    supervised, "fit", lambda params, phases, *_: asked.extend(phases[0])
  )
  config = small_experiment.get_config().task
  relabelled_value.teach(None, None, config, steps=20, batch=64)
  ((prompt_IBP, _),) = asked
  held = {
    config.canonical(p)
    for split in ("validation", "test")
    for p in data.load_problems(config, split).tokens_BP
  }
  assert held and len(prompt_IBP) == 20
  assert not held & {
    config.canonical(p) for p in prompt_IBP.reshape(-1, prompt_IBP.shape[-1])
  }


def test_its_file_may_value_leaves(tmp_path):
  file = str(tmp_path / "value.safetensors")
  experiment = small_experiment.get_config()
  valued = config_lib.override(experiment, {"search.leaf": "value"})
  graphdef, params = initial_params(experiment)
  with pytest.raises(config_lib.UserError, match="search.leaf=value"):
    initial_params(valued)
  relabelled_value.save(file, params, experiment, 1, 1)
  initial_params(config_lib.override(valued, {"init": file}))
  del graphdef


def test_forwards_are_counted():
  task = small_experiment.get_config().make_task()
  tokens = task.prompt_length + task.response_length - 1
  assert relabelled_value.forwards(task, 3, 5) == 3 * 5 * tokens * 4
