"""Compiles a whole iteration for a TPU slice that is not there.

libtpu compiles without a TPU: what a run needs of each device, what devices
send to each other and whether it fits are known before a slice is rented.
"""

import dataclasses
import functools
import math
import os
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tsd_jax.base.errors import UserError
from tsd_jax.base.types import Prompts
from tsd_jax.learning import iteration
from tsd_jax.learning.update import FixedParams
from tsd_jax.models import transformer
from tsd_jax.parallel import sharding
from tsd_jax.planning import hlo, roofline
from tsd_jax.rewards import callback
from tsd_jax.run.experiment import Experiment

CHIPS_PER_HOST = 4  # Smaller slices are part of one host, and must say so.
# Levels of effort that the compiler offers; the quick one overstates memory.
EFFORTS = {"quick": {"xla_optimization_level": "EFFORT_O0"}, "full": {}}


def devices(topology: str, slices: int = 1) -> list:
  """Stand-ins for the devices of a slice.

  Args:
    topology: kind and shape, "v5e:4x4".
    slices: how many such slices are joined.

  Raises:
    UserError: if libtpu is missing, or knows no such topology.
  """
  try:
    import libtpu  # noqa: F401
  except ImportError:
    raise UserError(
      "the TPU compiler is missing; it needs no TPU: pip install 'jax[tpu]'"
    ) from None
  from jax.experimental import topologies

  # Another process of this machine may compile as well.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
  shape = [int(n) for n in re.findall(r"\d+", topology.partition(":")[2])]
  if math.prod(shape) < CHIPS_PER_HOST:
    options["chips_per_host_bounds"] = (*shape, 1, 1)[:3]
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=topology, **options
    )
  except Exception as error:  # Any: the compiler's own errors have many types.
    first = str(error).strip().split("\n")[0]
    raise UserError(
      f"--topology={topology} is unknown to the compiler ({first}); say kind "
      f"and shape, as in v5e:4x4 or v5p:4x4x4; kinds: "
      f"{', '.join(roofline.CHIPS)}"
    ) from error
  return list(found.devices)


def arguments(
  config: Experiment, mesh, iterations: int = 1
) -> tuple[Any, tuple]:
  """The compiled loop and the shapes that it is compiled for."""
  graphdef, params = transformer.abstract(config.shape)
  search_graphdef, search_params = None, None
  if config.search_model is not None:
    search_graphdef, search_params = transformer.abstract(config.search_model)
  task, learner_config = config.make_task(), config.learner_config()
  everywhere = sharding.replicated(mesh)

  def placed(tree, places):
    return jax.tree.map(
      lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
      tree,
      places,
    )

  def all_placed(tree, place):
    return placed(tree, jax.tree.map(lambda _: place, tree))

  state = jax.eval_shape(
    functools.partial(iteration.init_state, learner_config),
    params,
    search_params=search_params,
  )
  lead = (iterations, learner_config.prompts)
  lengths = jax.ShapeDtypeStruct(lead, jnp.int32)
  tokens = lengths.update(shape=(*lead, task.prompt_length))
  prompts = jax.eval_shape(Prompts, tokens, lengths, lengths)
  fixed = FixedParams(params, jax.eval_shape(task.reward.load))
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  train_loop = iteration.make_train_loop(
    graphdef, task, learner_config, mesh, search_graphdef=search_graphdef
  )
  return train_loop, (
    placed(state, sharding.of_params(state, mesh)),
    all_placed(prompts, sharding.over_prompts(mesh, leading=1)),
    placed(fixed, sharding.of_params(fixed, mesh)),
    all_placed(dict.fromkeys(learner_config.hyper, scalar), everywhere),
    all_placed(jax.eval_shape(lambda: jax.random.key(0)), everywhere),
  )


def part_bytes(tree: Any) -> int:
  """Bytes of a tree of placed shapes on one device."""
  return sum(
    int(np.prod(a.sharding.shard_shape(a.shape), dtype=np.int64))
    * a.dtype.itemsize
    for a in jax.tree.leaves(tree)
  )


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What the compiler said of one program.

  Attributes:
    bytes_per_device: by part; `temporary` is all that an iteration makes,
      `total` all parts, `limit` what there is.
    program: its collectives; None where the compiler refused it.
    seconds: the compilation took.
  """

  bytes_per_device: dict[str, int]
  program: hlo.Program | None
  seconds: float

  @property
  def fits(self) -> bool:
    """Whether all of it fits: the compiler refuses for its own part alone."""
    return self.bytes_per_device["total"] <= self.bytes_per_device["limit"]


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def memory_in_error(text: str, held: int) -> tuple[int, int] | None:
  """Reads how much memory a program needs that the compiler refused.

  Args:
    text: the error, with "HLO temporaries (32.00G) exceeds available HBM
      (15.75G)" or "Used 20.5G of 15.75G hbm" in it.
    held: bytes that are there before anything is computed; the first form
      leaves them out.

  Returns:
    Bytes needed and bytes there; None for another error.
  """
  number = r"([\d.]+)([KMGT]?)i?B?"
  forms = (
    (rf"temporaries \({number}\) exceeds available HBM \({number}\)", held),
    (rf"Used {number} of {number} hbm", 0),
  )
  for form, more in forms:
    if found := re.search(form, text):
      need, need_unit, there, there_unit = found.groups()
      return (
        int(float(need) * _UNITS[need_unit]) + more,
        int(float(there) * _UNITS[there_unit]),
      )
  return None


@functools.cache
def memory_limit(device) -> int:
  """Bytes that a program finds on a device, as the compiler says it.

  It only does when it refuses, so it is asked for 1 TiB.
  """
  place = jax.sharding.SingleDeviceSharding(device)
  x_X = jax.ShapeDtypeStruct((2**19,), jnp.float32, sharding=place)

  def large(x_X):
    return jnp.sum(jax.lax.optimization_barrier(jnp.outer(x_X, x_X)))

  try:
    jax.jit(large).lower(x_X).compile(EFFORTS["quick"])
  except Exception as error:  # jaxlib's own type; only its text tells.
    if memory := memory_in_error(str(error), 0):
      return memory[1]
    raise
  raise AssertionError(f"{device} has more than 1 TiB of memory")


def compile_iteration(config: Experiment, mesh, effort: str) -> Compiled:
  """Compiles search, rollouts and update; rewards of the host are left out.

  Args:
    config: the run.
    mesh: devices that need not exist.
    effort: a key of `EFFORTS`.

  Raises:
    UserError: if the compiler fails for another reason than memory.
  """
  train_loop, shapes = arguments(config, mesh)
  state, prompts, fixed, *_ = shapes
  parts = {
    "parameters": part_bytes(state.params),
    "optimizer": part_bytes(state.opt_state),
    "search_model": part_bytes(state.search_params),
    "reference": part_bytes(fixed.reference),
    "reward_model": part_bytes(fixed.reward),
    "prompts": part_bytes(prompts),
  }
  held = sum(parts.values())
  limit = memory_limit(mesh.devices.flat[0])
  start = time.monotonic()
  with callback.left_out():
    lowered = train_loop.lower(*shapes)
  try:
    compiled = lowered.compile(EFFORTS[effort])
  except Exception as error:  # jaxlib's own type; only its text tells.
    memory = memory_in_error(str(error), held)
    if memory is None:
      raise UserError(f"the compiler failed: {str(error)[:2000]}") from error
    need, _ = memory
    parts |= {"temporary": need - held, "total": need, "limit": limit}
    return Compiled(parts, None, time.monotonic() - start)
  seconds = time.monotonic() - start
  memory = compiled.memory_analysis()
  parts["temporary"] = memory.temp_size_in_bytes
  parts["code"] = memory.generated_code_size_in_bytes
  # The new state takes the place of the old one.
  parts["total"] = held + parts["temporary"] + parts["code"]
  parts["limit"] = limit
  return Compiled(parts, hlo.Program(compiled.as_text()), seconds)


# What `with_prompts` changes.
BATCH = (
  "rollout.prompts",
  "rollout.trained_prompts",
  "rollout.baseline_prompts",
  "loss.distilled_prompts",
  "search.trees",
)
TRIES = 3  # Smaller batches that are compiled before it is given up.


def largest_prompts(config: Experiment, tried: dict[int, Compiled]) -> int:
  """How many prompts an iteration may have, where those tried do not fit.

  What an iteration makes grows with its prompts, champions and trees, what it
  holds does not. After one try all of it is taken to grow, which overstates B';
  after more, the line through the two smallest says what stays:
    temporary(B) = a + b B,  B' = (limit - held - a) / b.

  Args:
    config: the run.
    tried: prompts -> what the compiler said.

  Returns:
    B', a multiple of the minibatches; 0 where not one prompt a device fits.
  """
  temporary = {
    prompts: compiled.bytes_per_device["temporary"]
    for prompts, compiled in tried.items()
  }
  small, *others = sorted(temporary)
  large, above = (others[0], temporary[others[0]]) if others else (0, 0)
  slope = (above - temporary[small]) / (large - small)
  parts = tried[small].bytes_per_device
  over = parts["total"] - parts["limit"]
  step = config.mesh.batch_size * config.optimizer.minibatches
  prompts = int(small - over / slope) if slope > 0 else 0
  return max(0, prompts // step * step)


def with_prompts(config: Experiment, prompts: int) -> Experiment:
  """The run with fewer prompts, and champions and trees in proportion."""
  step = config.mesh.batch_size * config.optimizer.minibatches
  share = prompts / config.rollout.prompts
  trained = config.rollout.trained_prompts

  def part(count):
    return max(step, int(count * share) // step * step)

  trees = max(1, int(config.search.trees * share))
  if not config.search.slot_reuse:  # Blocks of trees, all of one size.
    trees = math.gcd(prompts * config.search.width // config.mesh.shards, trees)
  return dataclasses.replace(
    config,
    rollout=dataclasses.replace(
      config.rollout,
      prompts=prompts,
      trained_prompts=trained and min(part(trained), prompts),
      baseline_prompts=part(config.rollout.baseline_prompts),
    ),
    loss=dataclasses.replace(
      config.loss, distilled_prompts=part(config.loss.distilled_prompts)
    ),
    search=dataclasses.replace(config.search, trees=trees),
  )


def largest(
  config: Experiment, compiled: Compiled, mesh, effort: str
) -> dict[str, Any]:
  """The largest batch that fits, compiled; for a run that does not fit.

  Returns:
    The settings of `BATCH` with their values (none where no batch fits), fits,
    and bytes_per_device of the last that was compiled.
  """
  tried = {config.rollout.prompts: compiled}
  while len(tried) <= TRIES and (prompts := largest_prompts(config, tried)):
    smaller = with_prompts(config, prompts)
    again = tried[prompts] = compile_iteration(smaller, mesh, effort)
    if again.fits:
      settings = {n: functools.reduce(getattr, n.split("."), smaller)
                  for n in BATCH}  # fmt: skip
      return settings | {
        "fits": True,
        "bytes_per_device": again.bytes_per_device,
      }
  return {"fits": False}


def plan(
  config: Experiment, topology: str, *, slices: int = 1, effort: str = "full"
) -> dict[str, Any]:
  """Says what a run would need of a TPU slice.

  Args:
    config: the run; its mesh must have as many devices as the slice.
    topology: kind and shape, "v5e:4x4".
    slices: how many such slices are joined.
    effort: a key of `EFFORTS`.

  Returns:
    What `launch.aot` writes: fits, bytes_per_device, collectives,
    compile_seconds, roofline; `largest` where it does not fit.

  Raises:
    UserError: for a mesh of another size, and what `devices` raises.
  """
  kind, _, shape = topology.partition(":")
  if kind not in roofline.CHIPS:  # The compiler knows more.
    raise UserError(
      f"--topology={topology}: of {kind} no peaks are known; kinds: "
      f"{', '.join(roofline.CHIPS)}"
    )
  there = devices(topology, slices)
  if config.mesh.size != len(there):
    raise UserError(
      f"config.mesh has {config.mesh.size} devices, {slices} x {topology} has "
      f"{len(there)}: set config.mesh.slice, data, fsdp and tensor to it, for "
      f"instance --config.mesh.slice={slices} "
      f"--config.mesh.fsdp={len(there) // slices}"
    )
  mesh = sharding.make_mesh(config.mesh, there)
  compiled = compile_iteration(config, mesh, effort)
  result = {
    "topology": topology,
    "slices": slices,
    "effort": effort,
    "fits": compiled.fits,
    "bytes_per_device": compiled.bytes_per_device,
    "collectives": {},
    "compile_seconds": round(compiled.seconds, 1),
  }
  if compiled.program is None or not compiled.fits:
    result["largest"] = largest(config, compiled, mesh, effort)
    return result
  # A chip may show as two devices.
  share = len(there) / slices / math.prod(map(int, shape.split("x")))
  peaks = dataclasses.asdict(roofline.CHIPS[kind])
  chip = roofline.Chip(**{k: v / share for k, v in peaks.items()})
  result["collectives"] = compiled.program.totals(roofline.trips(config))
  result["instructions"] = compiled.program.instructions
  result["roofline"] = roofline.estimate(
    config, chip, len(there), compiled.program
  )
  return result


def table(result: dict[str, Any]) -> str:
  """The plan as lines of text."""
  lines = ["memory of a device"]
  for part, size in result["bytes_per_device"].items():
    lines.append(f"  {part:<14} {size / 2**20:>12,.1f} MiB")
  if not result["fits"]:
    parts, best = result["bytes_per_device"], result["largest"]
    over = (parts["total"] - parts["limit"]) / 2**20
    lines.append(f"it does not fit: {over:,.1f} MiB too much")
    if best["fits"]:
      total = best["bytes_per_device"]["total"] / 2**20
      flags = " ".join(f"--config.{name}={best[name]}" for name in BATCH)
      lines.append(f"  largest batch, which needs {total:,.1f} MiB: {flags}")
    else:
      lines.append("  no smaller batch fits: take more devices for the weights")
      lines.append("  (--config.mesh.fsdp, tensor; or serving=2d with fsdp)")
    return "\n".join(lines)
  lines.append("it fits; sent between devices in an iteration")
  for kind, total in result["collectives"].items():
    lines.append(
      f"  {kind:<20} {total['runs']:>9,} times {total['bytes'] / 2**20:>12,.1f}"
      " MiB a device"
    )
  lines.append("least seconds of an iteration, at the chip's published peaks")
  for phase, row in result["roofline"].items():
    lines.append(f"  {phase:<14} {row['seconds']:>12.6f}")
  return "\n".join([*lines, f"compiled in {result['compile_seconds']} s"])
