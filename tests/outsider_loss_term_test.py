"""A user's terms of the loss: of the samples, and of the champions.

All that it takes are two functions; nothing of the library is changed.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests import small_game
from tests.few_iterations import run
from tsd_jax.base.types import Responses
from tsd_jax.learning import iteration, losses, methods
from tsd_jax.learning.loss_terms import LossTerm
from tsd_jax.learning.update import Batch, FixedParams, loss_fn
from tsd_jax.run import load, train
from tsd_jax.run.experiment import initial_params
from tsd_jax.tasks import data


def entropy_square(x):
  """Mean squared entropy of the states in which the policy chose."""
  loss = losses.masked_mean(x.entropy_BGT**2, x.responses.chosen_BGT)
  return loss, {"entropy_square": loss}


def surprise(x):
  """How far the champions' least likely token is from certain."""
  least_CM = jnp.min(jnp.where(x.use_CMT, x.log_prob_CMT, 0.0), axis=-1)
  loss = losses.masked_mean(-least_CM, jnp.any(x.use_CMT, axis=-1))
  return loss, {"surprise": loss}


def experiment(*weights, champion=None, **changes):
  """The run with the first term, or without, and with the second."""
  base = small_game.get_config()
  terms = tuple(
    LossTerm("entropy_square", "samples", entropy_square, weight)
    for weight in weights
  )
  if champion is not None:
    terms += (LossTerm("surprise", "champions", surprise, champion),)
  loss = dataclasses.replace(base.loss, terms=terms)
  return dataclasses.replace(base, loss=loss, **changes)


def one_step(config):
  """An iteration's loss is then that of its only minibatch."""
  optimizer = dataclasses.replace(config.optimizer, minibatches=1)
  return dataclasses.replace(config, optimizer=optimizer)


@pytest.fixture(scope="module")
def with_term():
  return run(one_step(experiment(0.3)))


def test_its_metric_is_in_every_row_and_its_weight_in_the_loss(with_term):
  found = with_term.metrics["entropy_square"]
  # Nearly uniform over 8 tokens at the start.
  assert found[0] == pytest.approx(np.log(8) ** 2, rel=0.05)
  without = run(one_step(experiment())).metrics
  assert "entropy_square" not in without
  more = with_term.metrics["loss"][0] - without["loss"][0]
  assert more == pytest.approx(0.3 * found[0], rel=1e-5)


def test_a_weight_of_zero_removes_it():
  """It is not computed: the numbers are those without it, bit for bit."""
  zero, without = (run(one_step(experiment(*w))) for w in ((0.0,), ()))
  assert zero.metrics.keys() == without.metrics.keys()
  jax.tree.map(
    np.testing.assert_array_equal, zero.state.params, without.state.params
  )


def only_the_term(weight):
  """Every other term of the loss off."""
  config = experiment(weight)
  loss = dataclasses.replace(
    config.loss, policy_weight=0.0, champion_weight=0.0, success_weight=0.0
  )
  return dataclasses.replace(config, loss=loss)


def batch_of(config, model):
  """A minibatch of real samples."""
  task = config.make_task()
  prompts = data.load_problems(config.task, "train")[:8]
  prompts = jax.tree.map(jnp.asarray, prompts)
  samples, _ = config.rollout(model, task, prompts, jax.random.key(1))
  shape = samples.tokens_BGT.shape
  responses = Responses(
    **samples._asdict(), reward_BG=jnp.zeros(shape[:2]), correct_BG=None
  )
  zero_BGT = jnp.zeros(shape)
  return Batch(
    prompts, responses, zero_BGT, zero_BGT, jnp.zeros(shape[:2]), None
  )


def by_hand(graphdef, params, batch):
  """The term, from one full forward over prompts and responses."""
  model = nnx.merge(graphdef, params)
  tokens_BGT = batch.responses.tokens_BGT
  B, G, T = tokens_BGT.shape
  prompt_RP = jnp.repeat(batch.prompts.tokens_BP, G, axis=0)
  tokens_RS = jnp.concatenate([prompt_RP, tokens_BGT.reshape(-1, T)], axis=1)
  logits_RTV = model(tokens_RS)[:, prompt_RP.shape[1] - 1 : -1]
  log_prob_RTV = jax.nn.log_softmax(logits_RTV)
  entropy_RT = -jnp.sum(jnp.exp(log_prob_RTV) * log_prob_RTV, axis=-1)
  mask_RT = batch.responses.mask_BGT.reshape(B * G, T)
  return jnp.sum(jnp.where(mask_RT, entropy_RT**2, 0.0)) / jnp.sum(mask_RT)


def test_its_gradient_is_that_by_hand_and_by_finite_differences():
  config = only_the_term(0.3)
  learner = config.learner_config()
  graphdef, params = initial_params(config)
  params = jax.tree.map(lambda a: 2.0 * a, params)  # Not uniform any more.
  batch = batch_of(config, nnx.merge(graphdef, params))
  hyper = {k: jnp.float32(v) for k, v in learner.hyper.items()}

  @jax.jit
  def loss(params):
    # Compiled for a weight of 1: the number comes with `hyper`.
    return loss_fn(
      params, FixedParams(params), graphdef, batch, hyper, learner.static
    )[0]

  value, gradient = jax.value_and_grad(loss)(params)
  expected, slope = jax.value_and_grad(
    lambda params: 0.3 * by_hand(graphdef, params, batch)
  )(params)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    gradient,
    slope,
  )
  assert_slope(loss, params, gradient)


def assert_slope(loss, params, gradient):
  """A gradient against central differences along random directions."""
  leaves, structure = jax.tree.flatten(params)

  def at(way, step):
    return float(loss(jax.tree.map(lambda a, w: a + step * w, params, way)))

  for seed in range(3):
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    way = structure.unflatten(
      [jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
    )
    norm = float(optax.tree.norm(way))
    way = jax.tree.map(lambda w, norm=norm: w / norm, way)
    products = jax.tree.map(jnp.vdot, gradient, way)
    along = sum(map(float, jax.tree.leaves(products)))
    step = 3e-3
    measured = (at(way, step) - at(way, -step)) / (2 * step)
    assert measured == pytest.approx(along, rel=0.02, abs=5e-4)


def test_it_alone_is_a_loss_that_trains():
  ran = run(only_the_term(1.0), 20)
  found = ran.metrics["entropy_square"]
  assert np.all(np.diff(found[::5]) < 0) and found[-1] < 0.9 * found[0]
  assert ran.metrics["loss"][0] == pytest.approx(found[0], rel=1e-5)


def test_a_sweep_of_weights_is_one_program(with_term):
  """The weight is an argument of the compiled loop."""
  graphdef = with_term.graphdef

  def program(weight):
    config = one_step(experiment(weight))
    return iteration.make_train_loop(
      graphdef, config.make_task(), config.learner_config()
    )

  assert program(0.3) is program(5.0) is not program(0.0)
  before = program(0.3)._cache_size()
  other = run(one_step(experiment(5.0))).metrics
  assert program(5.0)._cache_size() == before
  assert other["entropy"][1] < with_term.metrics["entropy"][1]


@pytest.mark.slow
def test_runs_of_several_weights_share_a_program_and_are_read_back(tmp_path):
  configs = [experiment(0.3, champion=0.2), experiment(3.0, champion=0.7)]
  folders = [tmp_path / "0", tmp_path / "1"]
  train.train_vmapped(configs, folders)
  alone = run(configs[1])
  lines = (folders[1] / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines][1:]
  for name in ("loss", "entropy_square", "surprise", "reward"):
    np.testing.assert_allclose(
      [row[name] for row in rows], alone.metrics[name], rtol=2e-3, atol=2e-4
    )
  for config, folder in zip(configs, folders, strict=True):
    assert load.read_config(folder) == config


def own_kl(x):
  """KL to the reference, as a user would write it."""
  loss = losses.masked_mean(x.kl_to_reference(), x.responses.chosen_BGT)
  return loss, {"own_kl": loss}


def test_the_reference_that_a_term_reads_is_in_the_ledger():
  base = one_step(experiment())

  def with_terms(*terms, **loss):
    loss = dataclasses.replace(base.loss, terms=terms, **loss)
    return run(dataclasses.replace(base, loss=loss)).metrics

  term = LossTerm("own", "samples", own_kl, 0.1, reads_reference=True)
  built_in, ours = with_terms(kl_weight=0.1), with_terms(term)
  np.testing.assert_array_equal(
    ours["tokens"].rescore, built_in["tokens"].rescore
  )
  assert ours["tokens"].rescore[0] > 0
  np.testing.assert_allclose(ours["loss"], built_in["loss"], rtol=1e-6)
  assert not with_terms()["tokens"].rescore.any()
  silent = dataclasses.replace(term, reads_reference=False)
  with pytest.raises(ValueError, match="reads_reference=True"):
    with_terms(silent)


def test_two_terms_of_a_name_and_negative_weights_are_refused():
  with pytest.raises(ValueError, match="called entropy_square"):
    experiment(0.1, 0.2)
  with pytest.raises(ValueError, match="loss.entropy_square_weight=-1.0"):
    experiment(-1.0)


@pytest.mark.parametrize("algorithm", methods.ALGORITHMS)
def test_every_method_keeps_the_terms_that_read_what_it_has(algorithm):
  loss = (
    experiment(0.3, champion=0.2, algorithm=algorithm).learner_config().loss
  )
  kept = {term.name for term in loss.terms}
  samples = {"entropy_square"} if loss.policy_weight else set()
  champions = {"surprise"} if loss.distils else set()
  assert kept == samples | champions and kept


def test_a_baseline_has_the_term_in_its_loss():
  config = one_step(experiment(0.3, champion=0.7, algorithm="grpo"))
  found = run(config).metrics
  without = run(one_step(experiment(algorithm="grpo"))).metrics
  assert "surprise" not in found
  more = found["loss"][0] - without["loss"][0]
  assert more == pytest.approx(0.3 * found["entropy_square"][0], rel=1e-4)
