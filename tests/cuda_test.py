"""An iteration lowers for CUDA on a machine that has none.

Lowering settles what JAX can say without the GPU: every operation has a rule
for CUDA, and no call goes to code that only a CPU has.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from experiments import countdown
from tsd_jax.base import config as config_lib
from tsd_jax.models import presets
from tsd_jax.parallel import sharding
from tsd_jax.planning import aot

SMOLLM2 = dataclasses.replace(
  countdown.get_config(), init=None, model=presets.SMOLLM2_135M
)
SPLIT = {
  "mesh.data": "2", "mesh.fsdp": "2", "mesh.tensor": "2",
  "rollout.prompts": "32",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
  "config",
  [
    countdown.get_config(),
    config_lib.override(countdown.get_config(), SPLIT),
    SMOLLM2,
  ],
  ids=["default", "default on 2x2x2", "SmolLM2"],
)
def test_an_iteration_lowers_for_cuda(config):
  train_loop, shapes = aot.arguments(config, sharding.make_mesh(config.mesh))
  exported = jax.export.export(train_loop, platforms=["cuda"])(*shapes)
  assert exported.platforms == ("cuda",)
  assert exported.nr_devices == config.mesh.size
  assert [a.shape for a in exported.in_avals] == [
    a.shape for a in jax.tree.leaves(shapes)
  ]
  program = exported.mlir_module()
  assert "searching" in program and "sampling" in program
  # What is not JAX's own: marks of shardings, nothing that runs.
  calls = set(re.findall(r"custom_call @(\w+)", program))
  assert calls <= {"Sharding"}, calls


def test_what_only_a_cpu_has_does_not_lower():
  # As an iteration would fail: LAPACK's routine has no rule for CUDA.
  schur = jax.jit(jax.scipy.linalg.schur)
  with pytest.raises(NotImplementedError, match="schur.* platform cuda"):
    jax.export.export(schur, platforms=["cuda"])(jnp.eye(4))
