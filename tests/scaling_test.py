"""How the compiled iteration grows: with nothing but the devices' work."""

import functools
import re

import pytest

from experiments.benchmarks import scaling
from tests import small_experiment
from tsd_jax.base import config as config_lib
from tsd_jax.models import transformer
from tsd_jax.models.flops import flops_per_token
from tsd_jax.parallel import sharding
from tsd_jax.planning import aot, roofline

# What is changed, and the program that it is held against.
# Twice the prompts, for twice the devices.
MORE = (("rollout.prompts", "16"), ("loss.distilled_prompts", "16"))
LONGER = {
  "layers": ((("model.num_layers", "7"),), 1, ()),
  # Trees of up to twice a response's tokens are read in place, others gathered;
  # with fewer than those tokens paths are cut: an operation more.
  "simulations in place": (
    (("search.num_simulations", "18"),),
    1,
    (("search.num_simulations", "9"),),
  ),
  "simulations": (
    (("search.num_simulations", "64"),),
    1,
    (("search.num_simulations", "20"),),
  ),
  "iterations": ((), 9, ()),
  # Copies of the weights and parts of them are programs of their own.
  "copies": ((*MORE, ("mesh.data", "4")), 1, (("mesh.data", "2"),)),
  "parts": ((*MORE, ("mesh.fsdp", "4")), 1, (("mesh.fsdp", "2"),)),
}


def configure(overrides):
  # One layer is no loop over layers, and two have an index of their own.
  base = {"model.num_layers": "3"} | dict(overrides)
  return config_lib.override(small_experiment.get_config(), base)


@functools.cache
def operations(overrides, iterations):
  """How many the program has that JAX hands to the compiler."""
  config = configure(overrides)
  mesh = sharding.make_mesh(config.mesh)
  train_loop, shapes = aot.arguments(config, mesh, iterations)
  text = train_loop.lower(*shapes).as_text()
  return len(re.findall(r"^\s*%\S+ = ", text, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.parametrize("name", LONGER)
def test_the_program_is_as_long_for_any_number(name):
  overrides, iterations, shorter = LONGER[name]
  assert operations(overrides, iterations) == operations(shorter, 1) > 1000


@pytest.mark.slow
def test_devices_share_the_work_evenly():
  config = config_lib.override(
    small_experiment.get_config(), {"model.d_model": "64", "model.d_mlp": "64"}
  )
  one = scaling.measure(config)
  # The closed form leaves out the value outputs, norms and softmax.
  counts = roofline.counts(config).values()
  tokens = sum(count["tokens"] for count in counts)
  context = roofline.context(config.make_task())
  expected = tokens * flops_per_token(config.model, context)
  assert 0.8 * expected < one["flops"] < 1.1 * expected
  assert one["sent_bytes"] == 0

  two = scaling.measure(scaling.split(config, {"data": 2}, weak=False))
  assert one["flops"] / 2 <= two["flops"] < 1.02 * one["flops"] / 2
  # Little more than every minibatch's gradient, once.
  weights = transformer.count_parameters(config.model)
  gradients = 4 * weights * config.optimizer.minibatches
  assert gradients <= two["sent_bytes"] < 1.2 * gradients
  # In the loops one number a simulation, and the counts at their ends.
  assert two["sent_in_loops_bytes"] <= 100 * config.search.num_simulations
