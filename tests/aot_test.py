"""What launch.aot computes by itself; tpu_test.py compiles."""

import dataclasses
import math
from typing import NamedTuple

import jax
import numpy as np
import pytest

from experiments import countdown
from experiments.benchmarks import aot_table
from tests import iteration_test as tiny
from tests import small_experiment
from tsd_jax.base import config as config_lib
from tsd_jax.base.errors import UserError
from tsd_jax.parallel import sharding
from tsd_jax.planning import aot, roofline
from tsd_jax.search.best_first import BestFirst


@pytest.mark.slow
@pytest.mark.parametrize(
  "steps",
  [{}, dict(step_tokens=3), dict(step_tokens=3, rule=BestFirst(lazy=True))],
)
def test_a_run_spends_at_most_the_counted_tokens(steps):
  # A task that runs in seconds: the same formulas, other lengths.
  learner = tiny.configure(search=dataclasses.replace(tiny.SEARCH, **steps))

  class Stand:
    """What an experiment holds."""

    rollout, search, optimizer = (
      learner.rollout,
      learner.search,
      learner.optimizer,
    )
    mesh = small_experiment.get_config().mesh
    make_task = staticmethod(lambda: tiny.TASK)
    learner_config = staticmethod(lambda: learner)

  counts = roofline.counts(Stand)
  _, metrics = tiny.run(learner, tiny.prompts(1))
  spent = {k: int(v[0]) for k, v in metrics["tokens"]._asdict().items()}
  assert spent["update"] * 3 == counts["update"]["tokens"]
  searched, sampled = (
    spent["search"] + tiny.S * tiny.P,
    spent["rollout"] + tiny.B * tiny.P,
  )
  most = counts["searching"]["tokens"]
  # Steps and answers may end early.
  assert most / (6 if steps else 2) < searched <= most
  assert 0 < sampled <= counts["sampling"]["tokens"]


def test_the_compilers_refusals_are_read():
  # As libtpu 0.0.42 says it.
  temporaries = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
    "for HLO temporaries (32.00G) exceeds available HBM (15.75G)."
  )
  there = int(15.75 * 2**30)
  assert aot.memory_in_error(temporaries, 5) == (2**35 + 5, there)
  whole = "Ran out of memory in memory space hbm. Used 512.0M of 15.75G hbm."
  assert aot.memory_in_error(whole, 5) == (2**29, there)
  assert aot.memory_in_error("INTERNAL: something else", 5) is None


def test_the_largest_batch_fills_the_room():
  config = small_experiment.get_config()  # 8 prompts, 2 minibatches.
  parts = dict(total=1100, temporary=1000, limit=600)
  compiled = aot.Compiled(parts, None, 1.0)
  # 100 held, 500 of 1000 left: half of the prompts.
  assert aot.largest_prompts(config, {8: compiled}) == 4
  smaller = aot.with_prompts(config, 4)
  assert (smaller.loss.distilled_prompts, smaller.search.trees) == (4, 4)
  assert smaller.rollout.baseline_prompts == 4
  parts["limit"] = 99
  assert aot.largest_prompts(config, {8: compiled}) == 0


# Room for 800 of temporary memory, 10 a prompt and something that stays.
@pytest.mark.parametrize(
  ("fixed", "tries"), [(0, [80]), (160, [70, 64]), (800, [48])]
)
def test_what_stays_is_found_by_a_second_try(monkeypatch, fixed, tries):
  config = config_lib.override(
    small_experiment.get_config(),
    {"rollout.prompts": "128", "loss.distilled_prompts": "128"},
  )
  compiled = []

  def memory(config):
    temporary = fixed + 10 * config.rollout.prompts
    parts = dict(temporary=temporary, total=100 + temporary, limit=900)
    return aot.Compiled(parts, None, 1.0)

  def compile_iteration(config, mesh, effort):
    compiled.append(config.rollout.prompts)
    return memory(config)

  monkeypatch.setattr(aot, "compile_iteration", compile_iteration)
  found = aot.largest(config, memory(config), None, "quick")
  assert compiled == tries
  assert found["fits"] == (fixed < 800)
  if found["fits"]:
    assert found["rollout.prompts"] == (800 - fixed) // 10
    assert found["bytes_per_device"]["total"] == 900


def test_every_argument_is_placed_and_prompts_are_split():
  config = config_lib.override(
    small_experiment.get_config(), {"mesh.fsdp": "2"}
  )
  mesh = sharding.make_mesh(config.mesh)
  _, shapes = aot.arguments(config, mesh)
  assert all(a.sharding is not None for a in jax.tree.leaves(shapes))
  prompts = jax.tree.leaves(shapes[1])
  whole = sum(math.prod(a.shape) * a.dtype.itemsize for a in prompts)
  assert aot.part_bytes(shapes[1]) * 2 == whole


def test_a_mesh_of_another_size_is_refused(monkeypatch):
  monkeypatch.setattr(aot, "devices", lambda *_: [object()] * 16)
  with pytest.raises(UserError, match=r"1 devices.*16.*config.mesh.fsdp=16"):
    aot.plan(small_experiment.get_config(), "v5e:4x4")
  with pytest.raises(UserError, match=r"mesh.slice=2 --config.mesh.fsdp=8"):
    aot.plan(small_experiment.get_config(), "v5e:4x2", slices=2)
  with pytest.raises(UserError, match="of V5E no peaks are known"):
    aot.plan(small_experiment.get_config(), "V5E:4x4")


class Device(NamedTuple):
  """What a mesh asks of a device."""

  process_index: int
  slice_index: int
  platform: str = "tpu"


@pytest.mark.parametrize(
  ("mesh", "devices", "words"),
  [
    (
      {},
      [Device(i // 4, 0) for i in range(8)],
      "use all of them, for instance",
    ),
    (
      {"fsdp": 8},
      [Device(i // 4, i // 4) for i in range(8)],
      "mesh.slice=1 must be the 2 slices",
    ),
  ],
)
def test_a_mesh_that_leaves_out_a_host_or_a_slice_is_refused(
  mesh, devices, words
):
  with pytest.raises(UserError, match=words):
    sharding.make_mesh(sharding.MeshConfig(**mesh), devices)


def test_a_smaller_batch_trains_on_as_large_a_share():
  changes = {"rollout.prompts": "64", "rollout.trained_prompts": "32"}
  config = config_lib.override(countdown.get_config(), changes)
  smaller = aot.with_prompts(config, 32)
  assert smaller.rollout.trained_prompts == 16
  assert (
    aot.with_prompts(countdown.get_config(), 8).rollout.trained_prompts == 0
  )


@pytest.mark.parametrize("name", aot_table.TOPOLOGIES)
def test_a_planned_shape_fills_its_slice(name):
  config = config_lib.load(f"experiments/pods/{name}.py")
  kind, _, shape = aot_table.TOPOLOGIES[name].partition(":")
  assert kind in roofline.CHIPS
  assert config.mesh.size == math.prod(map(int, shape.split("x")))
  assert config.model.compute_dtype == "bfloat16"


def test_peaks_are_of_the_right_order():
  for chip in roofline.CHIPS.values():
    # Every TPU since v4 multiplies 150 to 700 times a byte it reads.
    assert 150 < chip.flops / chip.hbm < 700
    assert np.isfinite(chip.ici) and chip.ici < chip.hbm
  # Both ways together: a v5p has six links where a v6e has four such.
  assert roofline.CHIPS["v5p"].ici * 4 == roofline.CHIPS["v6e"].ici * 6
  assert roofline.CHIPS["v4"].ici * 4 == roofline.CHIPS["v5e"].ici * 6
