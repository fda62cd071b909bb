"""What a search takes against XLA's own figure, and what is refused."""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.benchmarks.shapes import Unsolved
from tests import shipped, small_experiment
from tsd_jax.base import config as config_lib
from tsd_jax.base.errors import UserError
from tsd_jax.learning import iteration, memory
from tsd_jax.models import transformer
from tsd_jax.run import train
from tsd_jax.search import search as search_lib
from tsd_jax.tasks.task import as_prompts

MODEL = transformer.ModelConfig(
  vocab_size=208, d_model=64, num_layers=4, num_heads=4, num_kv_heads=2,
  head_dim=64, d_mlp=128,
)  # fmt: skip
TREES = 32


def configure(**search):
  """A run with prompts for two blocks of trees."""
  config = dataclasses.replace(small_experiment.get_config(), model=MODEL)
  sizes = {"rollout.prompts": TREES, "search.width": 2, "search.trees": TREES}
  rule = {"lazy", "transpositions"}  # Fields of the rule's own.
  sizes |= {
    f"search.{'rule.' * (name in rule)}{name}": value
    for name, value in search.items()
  }
  return config_lib.override(config, {k: str(v) for k, v in sizes.items()})


def inputs(config, rows, task=None):
  graphdef, params = nnx.split(
    nnx.eval_shape(
      lambda: transformer.Transformer(config.model, nnx.Rngs(params=0))
    ),
    nnx.Param,
  )
  task = task or config.make_task()
  prompts = jax.eval_shape(
    lambda: as_prompts(task, jnp.zeros((rows, task.prompt_length), jnp.int32))
  )
  return graphdef, task, (params, prompts, jax.eval_shape(jax.random.key, 0))


@pytest.mark.parametrize(
  "search",
  [
    dict(num_simulations=32, step_tokens=4, num_candidates=4),
    dict(num_simulations=32, slot_reuse=True),
    *(
      pytest.param(search, marks=pytest.mark.slow)
      for search in (
        dict(num_simulations=32),
        dict(
          num_simulations=32, step_tokens=4, num_candidates=4, slot_reuse=True
        ),
        dict(num_simulations=64, step_tokens=4, num_candidates=4),
        dict(num_simulations=32, step_tokens=8, num_candidates=4),
        dict(num_simulations=64, step_tokens=8, lazy=True),
        dict(num_simulations=64, step_tokens=4, lazy=True, slot_reuse=True),
        dict(num_simulations=64, rule="puct", leaf="rollout"),
        dict(num_simulations=32, rule="gumbel", leaf="value"),
        dict(num_simulations=32, rule="puct", leaf="rollout", slot_reuse=True),
      )
    ),
  ],
  ids=lambda search: "-".join(map(str, search.values())),
)
def test_the_estimate_is_within_a_tenth_of_the_compiler(search):
  config = configure(**search)
  said, expected = said_and_expected(config, config.make_task())
  assert expected == pytest.approx(said, rel=0.1)


@pytest.mark.parametrize(
  ("search", "model"),
  [
    ({}, {}),
    pytest.param(
      dict(slot_reuse=True), dict(num_layers=12), marks=pytest.mark.slow
    ),
    pytest.param({}, dict(unroll_layers=4), marks=pytest.mark.slow),
    pytest.param({}, dict(unroll_decode=True), marks=pytest.mark.slow),
    pytest.param({}, dict(d_mlp=1024), marks=pytest.mark.slow),
    pytest.param(
      dict(step_tokens=4, num_candidates=4),
      dict(d_mlp=1024, unroll_layers=4),
      marks=pytest.mark.slow,
    ),
  ],
  ids=str,
)
def test_so_it_is_where_prompts_are_long(search, model):
  config = configure(num_simulations=32, **search)
  config = dataclasses.replace(
    config, model=dataclasses.replace(config.model, **model)
  )
  task = Unsolved(MODEL.vocab_size, prompt_length=96, response_length=8)
  said, expected = said_and_expected(config, task)
  assert expected == pytest.approx(said, rel=0.1)


def said_and_expected(config, task):
  """Bytes by XLA, and by us."""
  graphdef, task, shapes = inputs(config, 2 * TREES, task)
  learner_config = config.learner_config()
  program = iteration.Program(graphdef, None, task, learner_config, None)
  compiled = jax.jit(
    lambda params, prompts, key: iteration.search_shard(
      program, graphdef, (params, ()), prompts, key
    )
  )
  said = shipped.compiled(compiled.lower(*shapes)).memory_analysis()
  expected = memory.estimate_memory(
    config.model, task, config.search, prompts=2 * TREES
  )
  return said.temp_size_in_bytes, expected.total


@pytest.mark.parametrize(
  "search",
  [
    {},
    dict(step_tokens=4),
    dict(step_tokens=4, lazy=True),
    dict(transpositions=True),
  ],
  ids=str,
)
def test_the_bytes_of_a_tree_are_those_of_its_arrays(search):
  config = configure(**search)
  graphdef, task, shapes = inputs(config, TREES)

  def grow(params, prompts, key):
    model = nnx.merge(graphdef, params)
    return search_lib.search(model, task, prompts, key, config.search).tree

  tree = jax.eval_shape(grow, *shapes)
  tree = tree.replace(root_invalid_actions=None)
  total = sum(
    int(np.prod(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree)
  )
  assert memory.estimate_memory(MODEL, task, config.search).tree == total


def test_keys_grow_with_nodes_and_their_tokens_alone():
  task = small_experiment.get_config().make_task()

  def pool(**search):
    return memory.estimate_memory(MODEL, task, configure(**search).search).pool

  # Keys and values of 2 heads of 64 float32 in 4 layers, for each tree.
  position = TREES * 2 * 4 * 2 * 64 * 4
  assert pool(num_simulations=10) == 10 * position
  assert pool(num_simulations=20, step_tokens=3) == 60 * position


def check(config, **there):
  return memory.check(
    config.model, config.make_task(), config.learner_config(), config.mesh,
    **there,
  )  # fmt: skip


def test_what_does_not_fit_is_refused_with_what_does():
  config = configure(num_simulations=64, num_candidates=4, step_tokens=4)
  line = check(config)
  assert line.startswith("search: ") and "32 trees of 64 nodes" in line
  there = 30 * 2**20
  with pytest.raises(UserError, match="not enough: use search.num_sim") as info:
    check(config, there=there)
  for field, value in re.findall(r"search\.(\w+)=(\d+)", str(info.value)):
    smaller = configure(
      **{"num_simulations": 64, "num_candidates": 4, "step_tokens": 4}
      | {field: int(value)}
    )
    assert check(smaller, there=there)
    more = {"num_simulations": int(value) + 1, "trees": 2 * int(value)}
    larger = dataclasses.replace(smaller.search, **{field: more[field]})
    with pytest.raises(UserError):
      check(dataclasses.replace(smaller, search=larger), there=there)
  with pytest.raises(UserError, match="not even one tree fits"):
    check(config, there=2**20)


def test_a_run_that_does_not_fit_is_refused_and_leaves_nothing(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(memory, "device_bytes", lambda mesh: 2**20)
  with pytest.raises(UserError, match=r"there are 1\.0 MiB, which is not"):
    train.train(configure(), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_weights_that_are_served_by_both_axes_take_less():
  def beside(serving):
    changes = {"mesh.fsdp": "4", "mesh.serving": serving}
    line = check(config_lib.override(configure(), changes))
    return float(re.search(r"beside ([\d.]+) MiB of parameters", line)[1])

  served = 4 * transformer.count_parameters(MODEL) / 2**20
  # Three quarters of the copy stay on other devices.
  saved = beside("tensor") - beside("2d")
  np.testing.assert_allclose(saved, 0.75 * served, atol=0.11)
  assert saved > 0.3


def test_a_run_without_a_search_is_told_its_parameters():
  line = check(config_lib.override(configure(), {"algorithm": "grpo"}))
  assert re.fullmatch(r"parameters: [\d.]+ MiB a device; there are .*", line)


def test_a_thousand_million_simulations_are_refused_at_once():
  """What fits is bisected, not counted up to."""
  config = configure()
  huge = dataclasses.replace(config.search, num_simulations=10**9)
  start = time.monotonic()
  with pytest.raises(UserError, match="use search.num_simulations=") as info:
    check(dataclasses.replace(config, search=huge), there=2**33)
  assert time.monotonic() - start < 2
  most = int(re.search(r"num_simulations=(\d+)", str(info.value))[1])
  assert 1_000 < most < 10**9


def test_the_metrics_comparison_of_nodes_is_counted():
  """A byte for every two nodes of a tree: are their answers the same?"""
  task = small_experiment.get_config().make_task()
  search = dataclasses.replace(
    configure().search, num_simulations=8_000, trees=8
  )
  small = dataclasses.replace(MODEL, num_layers=1, num_kv_heads=1, head_dim=4)
  found = memory.estimate_memory(small, task, search)
  assert found.total > 8 * 8_000**2 > found.pool + found.tree


def test_samples_outside_of_a_run_are_refused_too():
  task = configure().make_task()

  def fits(samples, there=2**30):
    memory.check_samples(MODEL, task, 8, samples, there=there)

  fits(16)
  with pytest.raises(UserError, match="9999999 samples of each of 8 ") as e:
    fits(9_999_999)
  most = int(re.search(r"@(\d+) would fit", str(e.value))[1])
  fits(most)
  with pytest.raises(UserError, match=f"@{most} would fit"):
    fits(most + 1)
  with pytest.raises(UserError, match="not even one would fit"):
    fits(16, there=0)


def test_trees_outside_of_a_run_are_refused_too():
  """Those of search@N, and of a search of one prompt."""
  config = configure()
  task, there = config.make_task(), 2**30

  def fits(simulations):
    search = config.search.exhaustive(simulations)
    memory.check_trees(MODEL, task, search, 8, there=there)

  fits(16)
  with pytest.raises(
    UserError, match=r"=1000000000 for 8 trees .*: \d+ w"
  ) as e:
    fits(10**9)
  most = int(re.search(r"(\d+) would fit", str(e.value))[1])
  fits(most)
  with pytest.raises(UserError, match=f"{most} would fit"):
    fits(most + 1)
  there = 0
  with pytest.raises(UserError, match="not even one would fit"):
    fits(16)
