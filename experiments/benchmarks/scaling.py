"""How one iteration splits over devices, read from the compiled program.

Weak scaling gives every device 8 prompts to sample on (and 128 to search), as
many as the recipe gives each of 8; strong scaling splits the recipe's 64. Per
device: operations of all multiplications and bytes of all collectives, every
loop at its longest; beside them the compiled program's instructions, and the
CPU seconds and the host's memory that compiling took. Devices are virtual:
nothing is run, and no time of an iteration can be read off here. Without fsdp a
minibatch's gradient is sent once over data and slice; all else is sent as a
CPU's compiler chooses, in each of the four passes that use a weight.

The layers are a loop, as those of larger models are. The compiler writes
unoptimised machine code, which changes nothing that is counted and halves the
seconds.

Command (10 minutes): python -m experiments.benchmarks.scaling --output=FILE
"""

import dataclasses
import functools
import json
import os
import time
from typing import Any

from absl import flags

from experiments.benchmarks import host_memory, table
from tsd_jax.base import config as config_lib

# A test process imports several scripts with flags of these names.
_CONFIG = flags.DEFINE_string(
  "config",
  "experiments/countdown_balanced.py",
  "Experiment file.",
  allow_override=True,
)
_DEVICES = flags.DEFINE_integer("devices", 512, "Most virtual devices.")
_OUTPUT = config_lib.path_flag(
  "output", None, "JSON file to write.", allow_override=True
)

PROMPTS = 8  # Of a device, in weak scaling: one a minibatch.
WEAK = (
  *(dict(data=n) for n in (1, 2, 4, 8)),
  dict(slice=8, data=16, fsdp=4),
)
STRONG = (
  *(dict(data=n) for n in (1, 2, 4, 8)),
  dict(fsdp=8),
  dict(tensor=4),
)


def split(config, axes: dict[str, int], *, weak: bool):
  """The run on a mesh; in weak scaling its prompts grow with the devices."""
  from tsd_jax.parallel import sharding

  mesh = sharding.MeshConfig(**axes)
  if not weak:
    return dataclasses.replace(config, mesh=mesh)
  prompts = PROMPTS * mesh.batch_size
  distilled = config.loss.distilled_prompts * prompts // config.rollout.prompts
  return dataclasses.replace(
    config,
    mesh=mesh,
    rollout=dataclasses.replace(config.rollout, prompts=prompts),
    loss=dataclasses.replace(config.loss, distilled_prompts=distilled),
  )


@functools.cache
def measure(config) -> dict[str, Any]:
  """Compiles one iteration and counts."""
  from tsd_jax.parallel import sharding
  from tsd_jax.planning import aot, hlo, roofline

  train_loop, shapes = aot.arguments(config, sharding.make_mesh(config.mesh))
  start = time.process_time()
  lowered = train_loop.lower(*shapes)
  compiled = lowered.compile({"xla_backend_optimization_level": 0})
  seconds = time.process_time() - start
  program, trips = hlo.Program(compiled.as_text()), roofline.trips(config)

  def sent(scope: str) -> int:
    kinds = program.totals(trips, scope).values()
    return sum(kind["bytes"] for kind in kinds)

  return {
    "flops": program.flops(trips),
    "sent_bytes": sent(""),
    "sent_in_loops_bytes": sent("searching") + sent("sampling"),
    "instructions": program.instructions,
    "compile_seconds": round(seconds, 1),
    "host_mib": host_memory.peak() // 2**20,
  }


def rows(config, most: int) -> list[dict[str, Any]]:
  """Every mesh of at most so many devices, held against one device."""
  result = []
  for scaling, meshes in (("weak", WEAK), ("strong", STRONG)):
    one = None
    for axes in meshes:
      run = split(config, axes, weak=scaling == "weak")
      if run.mesh.size > most:
        continue
      found = measure(run)
      one = one or found["flops"]
      share = 1 if scaling == "weak" else run.mesh.size
      result.append(
        {
          "scaling": scaling,
          "mesh": " ".join(f"{k}={v}" for k, v in axes.items()),
          "devices": run.mesh.size,
          "prompts": run.learner_config().prompts,
          "flops a device": found["flops"],
          "over its even share": round(found["flops"] * share / one, 3),
          "sent bytes a device": found["sent_bytes"],
          "of them in loops": found["sent_in_loops_bytes"],
          "instructions": found["instructions"],
          "compile CPU s": found["compile_seconds"],
          "host MiB": found["host_mib"],
        }
      )
      print(json.dumps(result[-1]), flush=True)
  return result


def main(overrides):
  """Compiles, counts, writes."""
  os.environ["JAX_PLATFORMS"] = "cpu"
  # Read from the cache, a program has no compile time.
  os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
  os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={_DEVICES.value}"
  )
  config = config_lib.from_flags(
    _CONFIG.value, {"model.unroll_layers": "1"} | overrides
  )
  content = table.origin(
    "python -m experiments.benchmarks.scaling --output=FILE"
  )
  content["about"] = __doc__.split("\n\n")[1].replace("\n", " ")
  content["rows"] = rows(config, _DEVICES.value)
  table.write(_OUTPUT.value, content)


if __name__ == "__main__":
  config_lib.run(main)
