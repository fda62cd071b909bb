"""Low-rank adapters: what they change, and a run that trains nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import small_experiment
from tsd_jax.base import config as config_lib
from tsd_jax.learning import memory
from tsd_jax.models import lora, presets, transformer, weights
from tsd_jax.run import directory, evaluation, load, train
from tsd_jax.run.experiment import initial_params
from tsd_jax.tasks import data

MODEL = dataclasses.replace(
  small_experiment.get_config().model, num_layers=2, qkv_bias=True
)
CONFIG = lora.LoraConfig(rank=2, alpha=6.0)
WITH_8 = lora.LoraConfig(rank=8)
GRAPHDEF, PARAMS = transformer.create(MODEL, 0)
PROJECTIONS = {
  "query_LDHE": 1, "key_LDKE": 1, "value_LDKE": 1, "output_LHED": 2,
  "gate_LDF": 1, "up_LDF": 1, "down_LFD": 1,
}  # fmt: skip


def drawn(seed=1):
  """Adapters of which no number is zero."""
  trained = lora.init(PARAMS, CONFIG, jax.random.key(0))
  leaves, structure = jax.tree.flatten(trained)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  leaves = [
    0.1 * jax.random.normal(k, a.shape)
    for k, a in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(structure, leaves)


def as_matrices(name, array):
  """A projection as one matrix a layer, on the side of its letters."""
  reads = PROJECTIONS[name]
  rows = int(np.prod(array.shape[1 : 1 + reads]))
  return np.asarray(array, np.float64).reshape(array.shape[0], rows, -1)


def test_fresh_adapters_change_nothing():
  trained = lora.init(PARAMS, CONFIG, jax.random.key(0))
  merged = lora.merge(PARAMS, trained, CONFIG)
  assert jax.tree.structure(merged) == jax.tree.structure(PARAMS)
  for got, expected in zip(
    jax.tree.leaves(merged), jax.tree.leaves(PARAMS), strict=True
  ):
    np.testing.assert_array_equal(got, expected)


def test_merged_weights_are_the_paper_s():
  trained = drawn()
  before, after = map(
    weights.flatten, (PARAMS, lora.merge(PARAMS, trained, CONFIG))
  )
  for name, weight in before.items():
    short = name.split(".")[-1]
    if short in PROJECTIONS:
      pair = trained[short.rsplit("_", 1)[0]]
      (a,) = (v for k, v in pair.items() if k.startswith("a_"))
      (b,) = (v for k, v in pair.items() if k.startswith("b_"))
      letters = short.rsplit("_", 1)[1]
      cut = 1 + PROJECTIONS[short]
      assert set(pair) == {f"a_{letters[:cut]}X", f"b_LX{letters[cut:]}"}
      A = np.asarray(a, np.float64).reshape(2, -1, 2)
      B = np.asarray(b, np.float64).reshape(2, 2, -1)
      expected = as_matrices(short, weight) + 6.0 / 2 * A @ B
      got = as_matrices(short, after[name])
      np.testing.assert_allclose(got, expected, atol=1e-6)
    elif short in trained:
      np.testing.assert_array_equal(after[name], trained[short])
    else:
      np.testing.assert_array_equal(after[name], weight)


def test_gradients_are_those_of_a_model_with_the_adapters_beside():
  """x W + (alpha / r) (x A) B, written out for the gate of a layer."""
  x_RD = jax.random.normal(jax.random.key(3), (5, MODEL.d_model))
  W_DF = weights.by_name(PARAMS)["layers.gate_LDF"][1]

  def merged(trained):
    params = weights.by_name(lora.merge(PARAMS, trained, CONFIG))
    return jnp.sum(jnp.sin(x_RD @ params["layers.gate_LDF"][1]))

  def beside(pair):
    low_RX = x_RD @ pair["a_LDX"][1]
    return jnp.sum(jnp.sin(x_RD @ W_DF + 3.0 * low_RX @ pair["b_LXF"][1]))

  got = jax.grad(merged)(drawn())["gate"]
  expected = jax.grad(beside)(drawn()["gate"])
  for name, gradient in expected.items():
    np.testing.assert_allclose(got[name], gradient, rtol=1e-4, atol=1e-5)


def test_count_is_what_is_trained():
  trained = lora.init(PARAMS, CONFIG, jax.random.key(0))
  numbers = sum(a.size for a in jax.tree.leaves(trained))
  assert lora.count(MODEL, CONFIG) == numbers
  assert numbers < transformer.count_parameters(MODEL) / 2


@pytest.mark.parametrize(
  ("field", "value"), [("rank", -1), ("alpha", 0.0), ("alpha", np.inf)]
)
def test_impossible_settings_are_refused(field, value):
  with pytest.raises(ValueError, match=f"lora.{field}="):
    lora.LoraConfig(**{field: value})


def small(**changes):
  changes = {
    "lora.rank": "2", "optimizer.learning_rate": "1e-2", "iterations": "4",
    "refresh_every": "2", "search.trees": "4",
  } | changes  # fmt: skip
  return config_lib.override(small_experiment.get_config(), changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A run with adapters of rank 2."""
  folder = tmp_path_factory.mktemp("lora")
  train.train(small(), folder)
  return folder


def test_a_run_moves_weights_by_little_rank_and_nothing_else(folder):
  _, base = initial_params(small())
  run = load.open_run(folder)
  before, after = weights.flatten(base), weights.flatten(run.params)
  moved = 0
  for name, weight in before.items():
    short = name.split(".")[-1]
    change = after[name].astype(np.float64) - weight
    if short in PROJECTIONS:
      for matrix in as_matrices(short, change):
        values = np.linalg.svd(matrix, compute_uv=False)
        assert values[2:].max(initial=0) < 1e-6
        moved += values[0] > 1e-4
    elif not short.startswith("value_"):
      np.testing.assert_array_equal(change, 0.0)
  assert moved >= 4


def test_it_is_measured_as_the_merged_model(folder):
  config, run = small(), load.open_run(folder)
  found = evaluation.evaluate(
    run.graphdef, run.params, config.make_task(),
    data.load_problems(config.task, "validation"), "greedy",
    seed=config.seed, temperature=1.0,
  )["greedy"]  # fmt: skip
  last = directory.read_rows(folder)[-1]["eval"]["greedy"]
  assert found["reward"] == pytest.approx(last["reward"])
  logits = nnx.merge(run.graphdef, run.params)(jnp.arange(5)[None])
  assert bool(jnp.isfinite(logits).all())


def test_it_goes_on_from_a_checkpoint(folder, tmp_path):
  train.train(small(iterations="2"), tmp_path)
  train.train(small(), tmp_path)
  whole, resumed = load.open_run(folder), load.open_run(tmp_path)
  for a, b in zip(
    jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True
  ):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_adapters_on_a_mesh_are_those_of_one_device(tmp_path):
  # With a large eps Adam's step is as smooth as the gradient: where that is all
  # but zero, rounding would decide its sign.
  smooth = {"optimizer.eps": "1", "optimizer.learning_rate": "1"}
  found = []
  gathered = {"fsdp": 2, "gather": "true", "serving": "2d"}
  for axes in ({}, {"fsdp": 2}, {"data": 2, "tensor": 2}, gathered):
    mesh = {f"mesh.{axis}": str(size) for axis, size in axes.items()}
    folder = tmp_path / "-".join(axes or ["one"])
    train.train(small(iterations="1", **smooth, **mesh), folder)
    found.append(jax.tree.leaves(load.open_run(folder).params))
  one, *others = found
  _, start = initial_params(small())
  assert (
    max(
      float(jnp.abs(a - b).max())
      for a, b in zip(one, jax.tree.leaves(start), strict=True)
    )
    > 1e-3
  )
  for many in others:
    for a, b in zip(one, many, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5)


def test_memory_counts_what_is_trained():
  model, config = presets.SMOLLM2_135M, small()

  def held(rank):
    learner = dataclasses.replace(
      config.learner_config(), lora=lora.LoraConfig(rank=rank)
    )
    return memory.check(model, config.make_task(), learner, config.mesh, 2**40)

  numbers = transformer.count_parameters(model)
  for rank, trained in ((0, numbers), (8, lora.count(model, WITH_8))):
    # What stays, what is trained with moments and a copy, what is multiplied.
    gib = (4 * (numbers + 4 * trained) + 4 * numbers) / 2**30
    assert f"beside {gib:.1f} GiB of parameters" in held(rank)
