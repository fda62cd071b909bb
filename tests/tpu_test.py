"""The search and the whole loop compile for a TPU topology, without a TPU."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests import small_experiment
from tsd_jax.base import config as config_lib
from tsd_jax.models import transformer
from tsd_jax.parallel import sharding
from tsd_jax.planning import aot, hlo
from tsd_jax.search import search as search_lib
from tsd_jax.tasks.task import as_prompts

pytestmark = pytest.mark.slow
QUICK = {"xla_optimization_level": "EFFORT_O0"}


@functools.cache
def mesh():
  """Eight chips of a v5e slice."""
  pytest.importorskip("libtpu", reason="needs TSD_JAX_EXTRAS=tpu")
  return sharding.make_mesh(sharding.MeshConfig(data=8), aot.devices("v5e:2x4"))


def placed(tree, place):
  return jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), tree
  )


def collectives(compiled):
  """Kind and result type of each, such as `f32[64,9,8]{...}` or a tuple."""
  kinds = "all-gather|all-reduce|all-to-all|collective-permute"
  found = re.findall(rf"= (\(.*?\)|\S+) ({kinds})[-(]", compiled.as_text())
  return [(kind, result) for result, kind in found]


def describe(**overrides):
  config = config_lib.override(small_experiment.get_config(), overrides)
  graphdef, shapes = nnx.split(
    nnx.eval_shape(
      lambda: transformer.Transformer(config.model, nnx.Rngs(params=0))
    ),
    nnx.Param,
  )
  return config, graphdef, placed(shapes, sharding.replicated(mesh()))


@pytest.mark.parametrize(
  "settings",
  [
    {"search.rule": "best_first"},
    {"search.rule": "puct", "search.leaf": "rollout"},
    {"search.rule": "gumbel", "search.leaf": "rollout"},
  ],
  ids=lambda s: s["search.rule"],
)
def test_a_search_compiles_for_tpu(settings):
  config, graphdef, params = describe(
    **settings, **{"model.compute_dtype": "bfloat16"}
  )
  task = config.make_task()

  def search(params, prompt_BP):
    model, prompts = nnx.merge(graphdef, params), as_prompts(task, prompt_BP)
    key = jax.random.key(0)
    return search_lib.search(model, task, prompts, key, config.search)

  prompt_BP = jax.ShapeDtypeStruct(
    (64, task.prompt_length), jnp.int32, sharding=sharding.over_prompts(mesh())
  )
  compiled = jax.jit(search).lower(params, prompt_BP).compile(QUICK)
  assert compiled.memory_analysis().temp_size_in_bytes < 2**30
  # Trees are the prompts' own. Where the compiler splits the search by itself
  # it sends indices and edges of trees (three axes), in no more than a few
  # places; pools and caches (four axes and more) never leave their chips.
  used = collectives(compiled)
  assert {kind for kind, _ in used} <= {"all-gather", "all-reduce"}
  shapes = re.findall(r"\w\[([\d,]*)\]", " ".join(r for _, r in used))
  assert max(shape.count(",") for shape in shapes) <= 2
  assert len(used) <= 16


def test_the_whole_loop_compiles_for_tpu():
  pytest.importorskip("libtpu", reason="needs TSD_JAX_EXTRAS=tpu")
  config = config_lib.override(
    small_experiment.get_config(), {"mesh.fsdp": "2", "mesh.tensor": "2"}
  )
  result = aot.plan(config, "v5e:2x2", effort="quick")
  assert result["fits"]
  parts = result["bytes_per_device"]
  # float32 parameters over two axes; two moments as large.
  count = transformer.count_parameters(config.model)
  assert count <= parts["parameters"] < 2 * count
  assert (
    2 * parts["parameters"] <= parts["optimizer"] < 2.1 * parts["parameters"]
  )
  named = {k: v for k, v in parts.items() if k not in ("total", "limit")}
  assert sum(named.values()) == parts["total"]
  assert parts["total"] < 2**30
  # Gradients are summed over the chips, weights gathered.
  assert {"all-reduce", "all-gather"} <= set(result["collectives"])
  for phase in ("searching", "sampling", "update"):
    assert 0 < result["roofline"][phase]["seconds"] < 1
  assert "it fits" in aot.table(result)


@pytest.mark.parametrize(
  ("topology", "count"), [("v5e:1x1", 1), ("v6e:1x1", 1), ("v5e:2x2", 4)]
)
def test_slices_of_a_host_or_less_are_known(topology, count):
  pytest.importorskip("libtpu", reason="needs TSD_JAX_EXTRAS=tpu")
  assert len(aot.devices(topology)) == count


def sampling_on(count):
  """GRPO, which has no search to compile, on so many prompts."""
  names = (
    "rollout.prompts",
    "rollout.baseline_prompts",
    "loss.distilled_prompts",
  )
  return config_lib.override(
    small_experiment.get_config(),
    {"algorithm": "grpo"} | dict.fromkeys(names, f"{count}"),
  )


def test_a_batch_that_the_compiler_refuses_does_not_fit():
  pytest.importorskip("libtpu", reason="needs TSD_JAX_EXTRAS=tpu")
  config = sampling_on(2**17)
  devices = sharding.make_mesh(config.mesh, aot.devices("v5e:1x1"))
  compiled = aot.compile_iteration(config, devices, "quick")
  parts = compiled.bytes_per_device
  assert compiled.program is None and not compiled.fits
  assert parts["limit"] == int(15.75 * 2**30) < parts["temporary"]


def test_a_batch_that_does_not_fit_is_cut_to_one_that_does(monkeypatch):
  pytest.importorskip("libtpu", reason="needs TSD_JAX_EXTRAS=tpu")
  # A small device, for small programs compile fast.
  limit = 256 * 2**20
  monkeypatch.setattr(aot, "memory_limit", lambda _: limit)
  config = sampling_on(2048)
  result = aot.plan(config, "v5e:1x1", effort="quick")
  assert not result["fits"]
  largest = result["largest"]
  assert largest["fits"]
  # It fills the device, as far as the closed form goes.
  assert 0.8 * limit < largest["bytes_per_device"]["total"] <= limit
  text = aot.table(result)
  assert "it does not fit: " in text
  # What is printed is a run: the flags go together.
  flags = dict(re.findall(r"--config\.(\S+)=(\d+)", text))
  smaller = config_lib.override(config, flags)
  assert smaller.rollout.prompts == largest["rollout.prompts"] < 2048
  assert smaller.rollout.baseline_prompts == smaller.rollout.prompts


def test_what_is_held_counts_beside_what_is_made():
  pytest.importorskip("libtpu", reason="needs TSD_JAX_EXTRAS=tpu")
  # 10 GiB of weights and 9 GiB that an iteration makes: the compiler takes it,
  # for it counts the second alone.
  config = config_lib.override(
    small_experiment.get_config(),
    {
      "algorithm": "grpo",
      "model.vocab_size": f"{2**21}",
      "model.d_model": "256",
    },
  )
  mesh = sharding.make_mesh(config.mesh, aot.devices("v5e:1x1"))
  compiled = aot.compile_iteration(config, mesh, "quick")
  parts = compiled.bytes_per_device
  assert parts["temporary"] < parts["limit"] < parts["total"]
  assert compiled.program is not None and not compiled.fits


def test_smollm2_fits_four_chips():
  pytest.importorskip("libtpu", reason="needs TSD_JAX_EXTRAS=tpu")
  config = config_lib.load("experiments/pods/smollm2_135m.py")
  result = aot.plan(config, "v5e:2x2", effort="quick")
  assert result["fits"]
  parts = result["bytes_per_device"]
  count = transformer.count_parameters(config.model)
  # Weights, two moments, search model and reference over four chips.
  held = sum(
    parts[part]
    for part in ("parameters", "optimizer", "search_model", "reference")
  )
  assert 5 * count <= held < 5.01 * count
  assert parts["total"] < 16 * 2**30


def test_counted_loops_of_a_tpus_program_are_counted():
  def layers(w_LDD, x_BD):
    return jax.lax.scan(lambda x_BD, w: (jnp.tanh(x_BD @ w), None), x_BD, w_LDD)

  def shape(*sizes, spec):
    place = jax.sharding.NamedSharding(
      mesh(), jax.sharding.PartitionSpec(*spec)
    )
    return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=place)

  shapes = (
    shape(30, 128, 128, spec=(None, "data")),
    shape(64, 128, spec=("data",)),
  )
  compiled = jax.jit(layers).lower(*shapes).compile(QUICK)
  sent = hlo.Program(compiled.as_text()).totals()["all-gather"]
  # A layer's weights at a time.
  assert sent == dict(instructions=1, runs=30, bytes=30 * 4 * 128 * 128)
