"""The search and the whole loop compile for a TPU topology, without a TPU."""

import collections
import functools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from tests import small_experiment
from tsd_jax import config as config_lib
from tsd_jax import decode, learner, sharding
from tsd_jax.models import transformer
from tsd_jax.search import tree as tree_lib

pytestmark = pytest.mark.slow
QUICK = {"xla_optimization_level": "EFFORT_O0"}


@functools.cache
def mesh():
  """Eight chips of a v5e slice."""
  pytest.importorskip("libtpu", reason="needs TSD_JAX_EXTRAS=tpu")
  from jax.experimental import topologies

  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  slice_ = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
  return Mesh(np.array(slice_.devices), ("data",))


def placed(tree, place):
  return jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), tree
  )


def collectives(compiled):
  text = compiled.as_text()
  return re.findall(
    r"= \S+ (all-gather|all-reduce|all-to-all|collective-permute)", text
  )


def describe(**overrides):
  config = config_lib.override(small_experiment.get_config(), overrides)
  graphdef, shapes = nnx.split(
    nnx.eval_shape(
      lambda: transformer.Transformer(config.model, nnx.Rngs(params=0))
    ),
    nnx.Param,
  )
  return config, graphdef, placed(shapes, sharding.replicated(mesh()))


@pytest.mark.parametrize("pool", ["ref", "carry"])
@pytest.mark.parametrize(
  "settings",
  [
    {"search.rule": "best_first"},
    {"search.rule": "puct", "search.leaf": "rollout"},
    {"search.rule": "gumbel", "search.leaf": "rollout"},
  ],
  ids=lambda s: s["search.rule"],
)
def test_a_search_compiles_for_tpu(pool, settings):
  config, graphdef, params = describe(
    **settings, **{"search.pool": pool, "model.compute_dtype": "bfloat16"}
  )
  task = config.make_task()

  def search(params, prompt_BP):
    model = nnx.merge(graphdef, params)
    prefix = decode.prefill(model, prompt_BP)
    return tree_lib.search(
      model, task, prompt_BP, prefix, jax.random.key(0), config.search
    )

  prompt_BP = jax.ShapeDtypeStruct(
    (64, task.prompt_length), jnp.int32, sharding=sharding.over_prompts(mesh())
  )
  compiled = jax.jit(search).lower(params, prompt_BP).compile(QUICK)
  assert compiled.memory_analysis().temp_size_in_bytes < 2**30
  # Trees are the prompts' own: chips only agree on when to stop, and the pool
  # (its batch is the third axis) never leaves its chip.
  used = collections.Counter(collectives(compiled))
  assert not used["all-to-all"] and not used["collective-permute"]
  assert used.total() <= 10


def test_the_whole_loop_compiles_for_tpu():
  config, graphdef, params = describe()
  task, learner_config = config.make_task(), config.learner_config()
  state = jax.eval_shape(
    functools.partial(learner.init_state, learner_config), params
  )
  everywhere = sharding.replicated(mesh())
  chunk = learner.make_train_chunk(graphdef, task, learner_config)
  prompt_CBP = jax.ShapeDtypeStruct(
    (2, 64, task.prompt_length),
    jnp.int32,
    sharding=sharding.over_prompts(mesh(), leading=1),
  )
  hyper = {
    k: jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
    for k in learner_config.hyper
  }
  key = placed(jax.eval_shape(lambda: jax.random.key(0)), everywhere)
  compiled = chunk.lower(
    placed(state, everywhere), prompt_CBP, params, hyper, key
  ).compile(QUICK)
  # Gradients are summed over the chips.
  assert "all-reduce" in collectives(compiled)
