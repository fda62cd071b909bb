"""What a search needs of a device's memory, known before it is compiled."""

import bisect
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tsd_jax.base.errors import UserError, divisors
from tsd_jax.learning.config import LearnerConfig
from tsd_jax.models import lora, transformer
from tsd_jax.parallel.sharding import HERE, Layout, MeshConfig
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.task import Task

_NUMBER = 4  # Bytes of an int32 and of a float32.
# What a run holds of what it trains, in float32, beside its first parameters:
# itself, two moments, the search model's.
_COPIES = 4


class Memory(NamedTuple):
  """Bytes of one device while it searches some trees."""

  pool: int  # Keys and values of the nodes.
  prompts: int  # Keys and values of the prompts.
  tree: int  # The nodes and their edges.
  work: int  # What a simulation, or running the prompts, makes and forgets.

  @property
  def total(self) -> int:
    """All of it."""
    return sum(self)


class _Part(NamedTuple):
  """What a device has of a model, and the bytes that follow."""

  model: transformer.ModelConfig
  tensor: int  # Devices that share the heads and the vocabulary.
  itemsize: int  # Bytes of a number that is multiplied or kept.
  heads: int  # Features of the queries.
  keys: int  # Features of the keys.
  mlp: int  # Its hidden features.
  position: int  # Bytes of a position's keys and values, all layers.
  logits: int  # Bytes of a row of logits.


def _part(model: transformer.ModelConfig, tensor: int) -> _Part:
  c = model
  shared = tensor if c.num_kv_heads % tensor == 0 else 1
  itemsize = jnp.dtype(c.compute_dtype).itemsize
  keys = c.num_kv_heads * c.head_dim // shared
  return _Part(
    c,
    tensor,
    itemsize,
    heads=c.num_heads * c.head_dim // tensor,
    keys=keys,
    mlp=c.d_mlp // tensor,
    position=2 * c.num_layers * keys * itemsize,
    logits=_NUMBER * c.vocab_size // tensor,
  )


def estimate_memory(
  model: transformer.ModelConfig,
  task: Task,
  config: SearchConfig,
  *,
  prompts: int | None = None,
  tensor: int = 1,
) -> Memory:
  """Bytes that B trees take beside the parameters.

    pool     B N U of the keys and values of a position, 2 L K E numbers
    prompts  h + B (P - h) of them, h of which all prompts share
    tree     B (N + 1) (A (U + 9) + 4 T + 13) numbers, A + 1 more where moves
             are merged, a node's features where steps are drawn lazily, and A
             bytes and a number more where some may not be made
    work     the largest of what is made at a time, by a simulation, by the
             running of the prompts, or by the metrics, B (N + 1)^2 bytes: see
             the code, fitted to what XLA keeps on CPU

  Args:
    model: shape of the model.
    task: gives the lengths.
    config: the search.
    prompts: B where slots are used again; else it is `config.trees`.
    tensor: devices that share the heads and the vocabulary.
  """
  part, R, N = _part(model, tensor), config.trees, config.num_simulations
  B = prompts if prompts and config.slot_reuse else R
  A, U, T = (
    config.num_candidates,
    config.move_tokens(task),
    task.response_length,
  )
  shared = task.shared_prefix_length
  own = task.prompt_length - shared
  position = part.position
  path = R * min(T, N * U) * position
  # A layer's paths, transposed once, and where slots are used again the keys
  # of the prompts whose trees grow, half of them transposed.
  grown = 2 * path // model.num_layers + B * part.logits
  if config.slot_reuse:
    grown += 3 * R * own * position // 2
  works = [grown]
  # Rows for which steps are drawn at a time.
  draws = R if config.lazy else B * A if config.step_tokens > 1 else 0
  # Gathered paths are transposed once.
  if draws:
    works.append(2 * path + draws * _sampled_row(part, U))
  if config.leaf in ("rollout", "mix"):
    works.append(2 * path + R * _sampled_row(part, T))
  prompt_bytes = (shared + B * own) * position
  weights = _written_out(part)
  if model.unroll_decode and not model.unrolled:
    weights += prompt_bytes
  # Zeros that the sampling of steps begins with are there from the beginning.
  steps = draws * U * position
  prefilled = B * own * _prefilled_position(part, task.prompt_length)
  # Of every two nodes of a tree, whether they hold the same answer.
  pairs = B * (N + 1) ** 2
  merged = A + 1 if config.merges(task) else 0
  # Whether each move may be made is a byte.
  ruled = 0 if task.reward.forbidden is None else _NUMBER + A
  node = _NUMBER * (A * (U + 9) + 4 * T + 13 + merged) + ruled
  node += model.d_model * part.itemsize if config.lazy else 0
  return Memory(
    pool=B * N * U * position,
    prompts=prompt_bytes,
    tree=B * (N + 1) * node,
    work=max(weights + max(works), steps + prefilled, pairs),
  )


def _sampled_row(part: _Part, length: int) -> int:
  """Bytes of a row that samples so many tokens.

  Its own keys, a layer at a time; queries and their answers, keys and values,
  the MLP's halves, features. Of logits there are three: their logarithms, and
  the sums that a draw reads.
  """
  width = part.heads + part.keys + part.mlp + part.model.d_model
  own = length * (part.position + part.position // part.model.num_layers)
  return own + 3 * part.logits + 2 * width * part.itemsize


def _prefilled_position(part: _Part, length: int) -> int:
  """Bytes of a position of prompts of some length, in a layer that runs them.

  Its scores twice, or its MLP; unrolled, both.
  """
  c, itemsize = part.model, part.itemsize
  scores = 2 * _NUMBER * length * c.num_heads // part.tensor
  attention = scores + (c.d_model + part.heads + 2 * part.keys) * itemsize
  feed = 3 * (part.mlp + c.d_model) * itemsize
  return scores + feed if c.unrolled else max(attention, feed)


def _written_out(part: _Part) -> int:
  """Bytes of layers that are taken out of their stacks before the loop."""
  c = part.model
  if not (c.unrolled or c.unroll_decode):
    return 0
  features = 2 * (part.heads + part.keys) + 3 * part.mlp
  return c.num_layers * c.d_model * features * part.itemsize


def check(
  model: transformer.ModelConfig,
  task: Task,
  config: LearnerConfig,
  mesh: MeshConfig,
  there: int | None = None,
  *,
  search_model: transformer.ModelConfig | None = None,
  runs: int = 1,
) -> str:
  """Says what a run's search needs of a device.

  Args:
    model: shape of the model.
    task: gives the lengths.
    config: the run.
    mesh: what it is split over.
    there: bytes of a device; `device_bytes` by default.
    search_model: shape of a search model of its own.
    runs: runs of that kind in one program.

  Returns:
    A line of text.

  Raises:
    UserError: it does not fit; names the most simulations and trees that do.
  """
  there = device_bytes(mesh) if there is None else there
  own = config.prompts // mesh.shards
  search = dataclasses.replace(
    config.search, trees=min(config.search.trees, own)
  )
  held = runs * _held(model, config, mesh, search_model)
  if not config.searches:
    return f"parameters: {_size(held)} a device; there are {_size(there)}"

  def need(**changes):
    smaller = dataclasses.replace(search, **changes)
    one = estimate_memory(
      search_model or model, task, smaller, prompts=own, tensor=mesh.tensor
    )
    return Memory(*(runs * part for part in one))

  def most(field, values):
    return _most(values, there, lambda v: held + need(**{field: v}).total)

  now, block = need(), search.block(own)
  line = (
    f"search: {_size(now.total)} a device for {runs * block} trees "
    f"of {search.num_simulations} nodes (keys of the nodes {_size(now.pool)}), "
    f"beside {_size(held)} of parameters; there are {_size(there)}"
  )
  if held + now.total <= there:
    return line
  nodes = most("num_simulations", range(1, search.num_simulations))
  trees = most("trees", divisors(own, own))
  ways = [
    f"search.{field}={value}"
    for field, value in (("num_simulations", nodes), ("trees", trees))
    if value
  ]
  blocks = own % search.trees == 0
  if (
    search.slot_reuse
    and blocks
    and held + need(slot_reuse=False).total <= there
  ):
    ways.append("search.slot_reuse=false")
  remedy = f"use {' or '.join(ways)}" if ways else "not even one tree fits"
  raise UserError(f"{line}, which is not enough: {remedy}")


def check_trees(
  model: transformer.ModelConfig,
  task: Task,
  config: SearchConfig,
  trees: int,
  layout: Layout = HERE,
  there: int | None = None,
) -> None:
  """Refuses trees, beside a model alone, that a device has no room for.

  Args:
    model: shape of the model.
    task: gives the lengths.
    config: the search.
    trees: how many grow at a time.
    layout: the devices that share them.
    there: bytes of a device; `device_bytes` by default.

  Raises:
    UserError: they do not fit; names the most simulations that do.
  """
  there = device_bytes(layout.config) if there is None else there
  own, tensor = layout.prompts_of(trees), layout.config.tensor
  held = _served(model, layout.config)

  def need(simulations):
    smaller = dataclasses.replace(
      config, num_simulations=simulations, trees=own, slot_reuse=False
    )
    return held + estimate_memory(model, task, smaller, tensor=tensor).total

  nodes = config.num_simulations
  said = f"num_simulations={nodes} for {trees} trees at a time needs"
  _check_count(said, nodes, there, need)


def check_samples(
  model: transformer.ModelConfig,
  task: Task,
  prompts: int,
  samples: int,
  layout: Layout = HERE,
  there: int | None = None,
) -> None:
  """Refuses samples, beside a model alone, that a device has no room for.

  Args:
    model: shape of the model.
    task: gives the lengths.
    prompts: how many there are.
    samples: of each, all drawn at a time.
    layout: the devices that share the prompts.
    there: bytes of a device; `device_bytes` by default.

  Raises:
    UserError: they do not fit; names the most samples that do.
  """
  there = device_bytes(layout.config) if there is None else there
  part, own = _part(model, layout.config.tensor), layout.prompts_of(prompts)
  held = _served(model, layout.config)
  prompt = task.prompt_length * part.position  # Its rows read it in place.
  row = _sampled_row(part, task.response_length)

  def need(samples: int) -> int:
    return held + own * (prompt + samples * row)

  said = f"{samples} samples of each of {prompts} prompts need"
  _check_count(said, samples, there, need, sign="@")


def _check_count(
  said: str, count: int, there: int, need: Callable[[int], int], sign: str = ""
) -> None:
  """Refuses more of something than fits, and names the most that does."""
  if need(count) <= there:
    return
  most = _most(range(1, count), there, need)
  remedy = f"{sign}{most} would fit" if most else "not even one would fit"
  raise UserError(
    f"{said} {_size(need(count))}, and there are {_size(there)}: {remedy}"
  )


def _most(values: Sequence[int], there: int, need: Callable[[int], int]) -> int:
  """The largest value that fits; more of it never takes less. 0: none does."""
  count = bisect.bisect_right(values, there, key=need)
  return values[count - 1] if count else 0


def _served(model: transformer.ModelConfig, mesh: MeshConfig) -> int:
  """Bytes of a device's part of a model in float32."""
  parts = mesh.tensor * (mesh.fsdp if mesh.serving == "2d" else 1)
  return _NUMBER * transformer.count_parameters(model) // parts


def _held(
  model: transformer.ModelConfig,
  config: LearnerConfig,
  mesh: MeshConfig,
  search_model: transformer.ModelConfig | None,
) -> int:
  """Bytes of all that a run keeps of its parameters on a device."""
  count = transformer.count_parameters(model)
  trained = lora.count(model, config.lora) if config.lora.rank else count
  floats, read = trained * _COPIES + count, count
  if search_model is not None:
    searching = transformer.count_parameters(search_model)
    floats += searching - trained
    read = max(count, searching)
  # The copy that search and rollouts read, one after the other.
  serves = mesh.size // mesh.shards
  copy = read * jnp.dtype(model.compute_dtype).itemsize // serves
  return floats * _NUMBER // (mesh.fsdp * mesh.tensor) + copy


def device_bytes(mesh: MeshConfig) -> int:
  """Memory of a device, or its share of the host's where it has none."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if "bytes_limit" in stats:
    return stats["bytes_limit"]
  host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return host // min(mesh.size, jax.local_device_count())


def _size(count: int) -> str:
  """Bytes in MiB or GiB."""
  if count < 2**30:
    return f"{count / 2**20:,.1f} MiB"
  return f"{count / 2**30:,.1f} GiB"
