"""What a search needs of a device's memory, known before it is compiled."""

import dataclasses
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tsd_jax.base.errors import UserError
from tsd_jax.learning.methods import LearnerConfig
from tsd_jax.models import lora, transformer
from tsd_jax.parallel.sharding import MeshConfig
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


def estimate_memory(
  model: transformer.ModelConfig,
  task: Task,
  config: SearchConfig,
  *,
  prompts: int | None = None,
  tensor: int = 1,
) -> Memory:
  """Bytes that B trees take beside the parameters.

    pool     B N S of the keys and values of a position, 2 L K E numbers
    prompts  H + B (P - H) of them, H of which all prompts share
    tree     B (N + 1) (A (S + 9) + 4 T + 13) numbers, A + 1 more where moves
             are merged, and a node's features where steps are drawn lazily
    work     the largest of what is made at a time, by a simulation or by the
             running of the prompts: see the code, fitted to what XLA keeps on
             CPU

  Args:
    model: shape of the model.
    task: gives the lengths.
    config: the search.
    prompts: B where the search refills; else it is `config.trees`.
    tensor: devices that share the heads and the vocabulary.
  """
  c, R, N = model, config.trees, config.num_simulations
  B = prompts if prompts and config.slot_reuse else R
  A, S = config.num_candidates, config.step_tokens
  T, P, H = task.response_length, task.prompt_length, task.shared_prefix_length
  shared = tensor if c.num_kv_heads % tensor == 0 else 1
  itemsize = jnp.dtype(c.compute_dtype).itemsize
  keys = c.num_kv_heads * c.head_dim // shared
  position = 2 * c.num_layers * keys * itemsize
  path = R * min(T, N * S) * position
  logits = _NUMBER * c.vocab_size // tensor
  # Queries and their answers, keys and values, the MLP's halves, features.
  heads = c.num_heads * c.head_dim // tensor
  mlp = c.d_mlp // tensor
  row = 2 * (heads + keys + mlp + c.d_model) * itemsize
  own_prompts = B * (P - H) * position

  def sampled(rows, length):
    """Gathered paths, transposed once; the rows' own keys, a layer at a time.

    Of logits there are three: their logarithms, and the sums that a draw reads.
    """
    own = length * (position + position // c.num_layers)
    return 2 * path + rows * (own + 3 * logits + row)

  def prefilled():
    """The rows of a layer: their scores twice, or their MLP; unrolled, both."""
    scores = 2 * _NUMBER * P * c.num_heads // tensor
    attention = scores + (c.d_model + heads + 2 * keys) * itemsize
    feed = 3 * (mlp + c.d_model) * itemsize
    most = scores + feed if c.unrolled else max(attention, feed)
    return B * (P - H) * most

  # A layer's paths, transposed once, and where the search refills the keys of
  # the prompts whose trees grow, half of them transposed.
  grown = 2 * path // c.num_layers + B * logits
  if config.slot_reuse:
    grown += 3 * R * (P - H) * position // 2
  parts = [grown]
  # Rows for which steps are drawn at a time.
  draws = R if config.lazy else B * A if S > 1 else 0
  if draws:
    parts.append(sampled(draws, S))
  if config.leaf in ("rollout", "mix"):
    parts.append(sampled(R, T))
  # Layers that are written out are taken out of their stacks before the loop.
  weights = 2 * c.d_model * (heads + keys) + 3 * c.d_model * mlp
  weights *= c.num_layers * itemsize if c.unrolled or c.unroll_decode else 0
  if c.unroll_decode and not c.unrolled:
    weights += H * position + own_prompts
  # Zeros that the sampling of steps begins with are there from the beginning.
  steps = draws * S * position
  merged = A + 1 if config.merges(task) else 0
  node = _NUMBER * (A * (S + 9) + 4 * T + 13 + merged)
  node += c.d_model * itemsize if config.lazy else 0
  return Memory(
    pool=B * N * S * position,
    prompts=H * position + own_prompts,
    tree=B * (N + 1) * node,
    work=max(weights + max(parts), steps + prefilled()),
  )


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
    A line of text; an empty one for a run without a search.

  Raises:
    UserError: it does not fit; names the most simulations and trees that do.
  """
  if not config.searches:
    return ""
  there = device_bytes(mesh) if there is None else there
  own = config.prompts // mesh.shards
  search = dataclasses.replace(
    config.search, trees=min(config.search.trees, own)
  )
  count = transformer.count_parameters(model)
  trained = lora.count(model, config.lora) if config.lora.rank else count
  floats = trained * _COPIES + count
  read = count
  if search_model is not None:
    searching = transformer.count_parameters(search_model)
    floats += searching - trained
    read = max(count, searching)
  held = floats * _NUMBER // (mesh.fsdp * mesh.tensor)
  # The copy that search and rollouts read, one after the other.
  serves = mesh.size // mesh.shards
  held += read * jnp.dtype(model.compute_dtype).itemsize // serves
  held *= runs

  def need(**changes):
    smaller = dataclasses.replace(search, **changes)
    one = estimate_memory(
      search_model or model, task, smaller, prompts=own, tensor=mesh.tensor
    )
    return Memory(*(runs * part for part in one))

  def most(field, values):
    fitting = (v for v in values if held + need(**{field: v}).total <= there)
    return max(fitting, default=0)

  now, block = need(), search.block(own)
  line = (
    f"search: {_size(now.total)} a device for {runs * block} trees "
    f"of {search.num_simulations} nodes (keys of the nodes {_size(now.pool)}), "
    f"beside {_size(held)} of parameters; there are {_size(there)}"
  )
  if held + now.total <= there:
    return line
  nodes = most("num_simulations", range(1, search.num_simulations))
  trees = most("trees", (b for b in range(1, own + 1) if own % b == 0))
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
