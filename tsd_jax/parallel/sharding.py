"""One mesh, and one table from what an axis means to where it is split.

Prompts are split over `slice`, `data` and `fsdp`; parameters and optimiser over
`fsdp` and `tensor` while they are trained, over `tensor` alone while a search
or a rollout reads them, so that no weight is gathered in those loops; with
`serving=2d` they stay split over both, and devices along fsdp serve the same
prompts. A parameter's axes are the last part of its name (`query_LDHE`).
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import (
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
  SingleDeviceSharding,
)

from tsd_jax.base.errors import UserError
from tsd_jax.base.types import Array

REPLICA_AXES = ("slice", "data")  # Parameters are copied along them.
BATCH_AXES = (*REPLICA_AXES, "fsdp")
AXES = (*BATCH_AXES, "tensor")

# Logical axis -> mesh axis. One that is not divisible stays whole, and a mesh
# axis splits the first that names it.
SERVED: Mapping[str, str] = {
  "H": "tensor",
  "K": "tensor",
  "F": "tensor",
  "V": "tensor",
}
TRAINED: Mapping[str, str] = {**SERVED, "D": "fsdp"}

# What search and rollouts read: weights split over tensor, or over fsdp too.
Serving = Literal["tensor", "2d"]

_AXES_OF_NAME = re.compile(r"_([A-Z0-9]+)$")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each mesh axis."""

  slice: int = 1  # TPU slices, joined by the slower data-centre network.
  data: int = 1  # Prompts; parameters are copied along it.
  fsdp: int = 1  # Prompts; parameters and optimiser are split along it.
  tensor: int = 1  # Heads, hidden units of the MLP, vocabulary.
  # Whole weights over fsdp for each minibatch: sends less where one has several
  # times more tokens than the model features; needs room for weights, gradient.
  gather: bool = False
  # 2d: no weight is moved to be served, features are instead, and all devices
  # along fsdp serve the same prompts (arXiv:2211.05102, section 3.2.2).
  serving: Serving = "tensor"

  def __post_init__(self):
    """Refuses an empty mesh, and what it has no use for."""
    for axis in AXES:
      if getattr(self, axis) < 1:
        raise ValueError(f"mesh.{axis}={getattr(self, axis)} must be >= 1")
    if self.gather and self.fsdp == 1:
      raise ValueError(
        "mesh.gather=true gathers weights that are split over fsdp: set "
        "mesh.fsdp > 1, or leave it out"
      )
    if self.serving == "2d" and self.fsdp == 1:
      raise ValueError(
        "mesh.serving=2d serves weights that are split over fsdp: set "
        "mesh.fsdp > 1, or mesh.serving=tensor"
      )

  @property
  def size(self) -> int:
    """Number of devices."""
    return self.batch_size * self.tensor

  @property
  def batch_size(self) -> int:
    """Number of parts that prompts are split into."""
    return self.slice * self.data * self.fsdp

  @property
  def shards(self) -> int:
    """Number of parts that search and roll out apart from each other."""
    return self.batch_size // (self.fsdp if self.serving == "2d" else 1)


ONE_DEVICE = MeshConfig()


def make_mesh(config: MeshConfig, devices=None) -> Mesh:
  """A mesh over the first devices.

  Args:
    config: devices along each axis.
    devices: all there are; those of this machine or pod by default.

  Raises:
    UserError: if there are fewer devices, a process would have none of them, or
      they lie in another number of slices.
  """
  devices = jax.devices() if devices is None else list(devices)
  if config.size > len(devices):
    shape = " x ".join(f"{a}={getattr(config, a)}" for a in AXES)
    raise UserError(
      f"config.mesh ({shape}) exceeds the {len(devices)} "
      f"{devices[0].platform} devices here"
    )
  there, devices = devices, devices[: config.size]
  if _processes(there) != _processes(devices):
    raise UserError(
      f"config.mesh has {config.size} devices, and the processes that train "
      f"together have {len(there)}: use all of them, for instance "
      f"--config.mesh.fsdp={len(there)}"
    )
  shape = tuple(getattr(config, axis) for axis in AXES)
  slices = len({getattr(d, "slice_index", 0) for d in devices})
  if slices > 1 and config.slice != slices:
    raise UserError(
      f"config.mesh.slice={config.slice} must be the {slices} slices that the "
      f"devices lie in: use --config.mesh.slice={slices}, and divide the rest "
      "of the mesh by it"
    )
  if slices > 1:
    grid = mesh_utils.create_hybrid_device_mesh(
      (1, *shape[1:]), (config.slice, 1, 1, 1), devices
    )
  else:
    grid = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _processes(devices) -> set[int]:
  """Those whose devices they are."""
  return {device.process_index for device in devices}


def replicated(mesh: Mesh) -> NamedSharding:
  """One copy a device."""
  return NamedSharding(mesh, PartitionSpec())


def over_prompts(mesh: Mesh, leading: int = 0) -> NamedSharding:
  """Splits the prompt axis, which follows `leading` others."""
  return NamedSharding(mesh, PartitionSpec(*([None] * leading), BATCH_AXES))


def spec(
  name: str, shape: tuple[int, ...], mesh: Mesh, table: Mapping[str, str]
) -> PartitionSpec:
  """How an array is split whose name ends with its axes."""
  axes = _AXES_OF_NAME.search(name)
  if axes is None or len(axes[1]) != len(shape):
    return PartitionSpec()
  parts: list[str | None] = []
  for letter, size in zip(axes[1], shape, strict=True):
    axis = table.get(letter)
    free = axis is not None and axis not in parts
    parts.append(axis if free and size % mesh.shape[axis] == 0 else None)
  return PartitionSpec(*parts)


def of_params(tree: Any, mesh: Mesh, table: Mapping[str, str] = TRAINED) -> Any:
  """Shardings of a tree of parameters, or of anything that holds such trees.

  Args:
    tree: arrays or their shapes; a parameter's name is the last part of its
      path that ends with axes. What has no such name is replicated.
    mesh: the devices.
    table: where an axis goes.

  Returns:
    The same tree of NamedShardings.
  """

  def place(path, leaf):
    names = (str(getattr(k, "key", getattr(k, "name", ""))) for k in path)
    named = [n for n in names if _AXES_OF_NAME.search(n)]
    name = named[-1] if named else ""
    return NamedSharding(mesh, spec(name, np.shape(leaf), mesh, table))

  return jax.tree_util.tree_map_with_path(place, tree)


def place(tree: Any, mesh: Mesh) -> Any:
  """Puts parameters, or a state that holds them, where they are trained."""
  return jax.device_put(tree, of_params(tree, mesh))


def serving_copy(
  params: Any, dtype: Any, mesh: Mesh | None, serving: Serving = "tensor"
) -> Any:
  """Parameters as the search and rollout loops read them.

  Cast once to the dtype that they are multiplied in, and split as they are
  served. What the model reads in float32 (its last norm and value outputs)
  stays in it.

  Args:
    params: the trained parameters.
    dtype: of matrix multiplications.
    mesh: the devices; None leaves the placement alone.
    serving: `tensor` gathers them from fsdp, `2d` leaves them there.
  """

  def cast(path, leaf):
    text = jax.tree_util.keystr(path)
    inside = "layers" in text or "embedding_VD" in text
    return leaf.astype(dtype) if inside else leaf

  params = jax.tree_util.tree_map_with_path(cast, params)
  if mesh is None:
    return params
  table = TRAINED if serving == "2d" else SERVED
  return jax.lax.with_sharding_constraint(
    params, of_params(params, mesh, table)
  )


def constrain(state: Any, metrics: Any, mesh: Mesh | None) -> tuple[Any, Any]:
  """Keeps a state where it is trained, and metrics readable on every host."""
  if mesh is None:
    return state, metrics
  places = of_params(state, mesh), replicated(mesh)
  return jax.lax.with_sharding_constraint((state, metrics), places)


def split_minibatches(minibatches: Any, mesh: Mesh | None) -> Any:
  """Splits the prompts of stacked minibatches over the devices."""
  if mesh is None:
    return minibatches
  return jax.lax.with_sharding_constraint(
    minibatches, over_prompts(mesh, leading=1)
  )


def _shard_axes() -> tuple[str, ...]:
  """The axes whose devices run the code at hand on prompts of their own."""
  manual = jax.sharding.get_abstract_mesh().manual_axes
  return tuple(axis for axis in BATCH_AXES if axis in manual)


def per_replica(
  fn: Callable, mesh: Mesh | None, gather: bool = False
) -> Callable:
  """Runs a function of prompts on each copy of the parameters, and adds up.

  The compiler would send a weight's gradient once for each use of the weight;
  this sends the sum of them, once. Parameters that are split over fsdp are left
  to the compiler, which sends activations of all prompts instead, or they are
  gathered first: then every device has a copy for the time of the call.

  Args:
    fn: (shared, batch) -> numbers that are sums over prompts, gradients among
      them; every leaf of the batch leads with its prompts.
    mesh: the devices; None runs it on all prompts at once. Its tensor axis is
      left to the compiler.
    gather: makes copies of parameters that are split over fsdp.

  Returns:
    The same function of all prompts; its gradients are split as parameters are.
  """
  axes = BATCH_AXES if gather else REPLICA_AXES
  if mesh is None or not (gather or mesh.shape["fsdp"] == 1):
    return fn
  if all(mesh.shape[axis] == 1 for axis in axes):
    return fn
  whole, split = PartitionSpec(), PartitionSpec(axes)
  add = jax.shard_map(
    lambda shared, batch: jax.lax.psum(fn(shared, batch), axes),
    mesh=mesh,
    in_specs=(whole, split),
    out_specs=whole,
    axis_names=set(axes),
    check_vma=False,
  )
  if not gather:
    return add

  def split_sum(shared, batch):
    total = add(shared, batch)
    return jax.lax.with_sharding_constraint(total, of_params(total, mesh))

  return split_sum


def sum_replicas(count: Array) -> Array:
  """Sums a count of this copy's prompts over all; elsewhere it is the sum."""
  return jax.lax.psum(count, _shard_axes()) if _shard_axes() else count


def per_shard(
  fn: Callable, mesh: Mesh | None, serving: Serving = "tensor"
) -> Callable:
  """Runs a function of prompts on each device's own, apart from all others.

  Args:
    fn: (params, prompt_BP, key) -> (arrays that lead with B, counts, means).
    mesh: the devices; None runs it on all prompts at once.
    serving: with `2d` devices along fsdp share the prompts of all of them.

  Returns:
    The same function of all prompts: counts are summed over the parts, means
    averaged. Collectives inside `fn` are those of the axes that serve weights.
  """
  # The name shows in profiles and in the compiled program.
  fn = jax.named_scope(fn.__name__)(fn)
  if mesh is None:
    return fn

  axes = REPLICA_AXES if serving == "2d" else BATCH_AXES
  whole, split = PartitionSpec(), PartitionSpec(axes)

  def shared(tree):
    """Rows that all devices of a part work on, not each on some."""
    if serving == "tensor":
      return tree
    return jax.lax.with_sharding_constraint(tree, whole)

  def part(params, prompt_BP, key):
    arrays, counts, means = fn(params, shared(prompt_BP), key)
    counts, means = jax.lax.psum(counts, axes), jax.lax.pmean(means, axes)
    return shared(arrays), counts, means

  # Host callbacks are only allowed where no axis is left to the compiler.
  alone = mesh.shape["tensor"] == 1 and serving == "tensor"
  manual = AXES if alone else axes
  return jax.shard_map(
    part,
    mesh=mesh,
    in_specs=(whole, split, whole),
    out_specs=(split, whole, whole),
    axis_names=set(manual),
    check_vma=False,
  )


class Layout(NamedTuple):
  """Where functions of prompts run: each device has prompts of its own.

  Hashable: a static argument of what is compiled for it.
  """

  mesh: Mesh | None = None  # None: wherever the arguments are.
  config: MeshConfig = ONE_DEVICE

  @classmethod
  def of(cls, mesh: Mesh | None, config: MeshConfig) -> "Layout":
    """That of a mesh; one of a single device leaves all to the arguments."""
    return cls(None if mesh is None or mesh.size == 1 else mesh, config)

  @classmethod
  def where_it_fits(cls, config: MeshConfig) -> "Layout":
    """That of a mesh that was trained on, where there are as many devices."""
    if config.size == 1 or config.size > len(jax.devices()):
      return cls()
    return cls.of(make_mesh(config), config)

  def place(self, params: Any) -> Any:
    """Parameters where they are trained."""
    return params if self.mesh is None else place(params, self.mesh)

  def placed(self, shapes: Any) -> Any:
    """Shapes of a state with their places: where it is trained."""
    if self.mesh is None:
      places = SingleDeviceSharding(jax.devices()[0])
      places = jax.tree.map(lambda _: places, shapes)
    else:
      places = of_params(shapes, self.mesh)
    return jax.tree.map(
      lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place),
      shapes,
      places,
    )

  def per_shard(self, fn: Callable) -> Callable:
    """`per_shard` on this mesh."""
    return per_shard(fn, self.mesh, self.config.serving)

  def served(self, graphdef: Any, params: Any) -> Any:
    """A model's parameters as this mesh's devices read them."""
    dtype = nnx.merge(graphdef, params).dtype
    return serving_copy(params, dtype, self.mesh, self.config.serving)

  def prompts_of(self, count: int) -> int:
    """How many of so many prompts a part has, the last part's padding too."""
    return -(-count // (1 if self.mesh is None else self.config.shards))

  def map_prompts(
    self, fn: Callable, params: Any, prompts: Any, key: Any = None
  ) -> tuple[Any, Any]:
    """Runs a function on prompts, however many there are.

    Where the parts do not divide them, the last prompt is repeated.

    Args:
      fn: (params, prompt_BP, key) -> (arrays that lead with B, counts).
      params: as they are served, and what else the function reads.
      prompts: Q prompts; every leaf leads with Q.
      key: random key, consumed.

    Returns:
      Arrays of all Q prompts, and counts summed over the parts: whole on every
      device, so that each process can read them.
    """
    if self.mesh is None:
      return fn(params, prompts, key)

    def part(*args):
      return *fn(*args), ()

    count = len(jax.tree.leaves(prompts)[0])
    rows = self.prompts_of(count) * self.config.shards
    row_R = jnp.minimum(jnp.arange(rows), count - 1)
    padded = jax.tree.map(lambda a: jnp.take(a, row_R, axis=0), prompts)
    arrays, counts, _ = self.per_shard(part)(params, padded, key)
    arrays = jax.tree.map(lambda a: a[:count], arrays)
    return jax.lax.with_sharding_constraint(
      (arrays, counts), replicated(self.mesh)
    )


HERE = Layout()


def split_heads(x: Array, axis: int) -> Array:
  """Says that an array's heads stay on the devices that compute them.

  Args:
    x: keys or values, inside `per_shard`; anywhere else nothing is said.
    axis: the axis of their heads.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not _shard_axes() or "tensor" in mesh.manual_axes:
    return x
  if x.shape[axis] % mesh.shape["tensor"]:
    return x
  parts: list[str | None] = [None] * x.ndim
  parts[axis] = "tensor"
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*parts))


def split_features(x_XD: Array) -> Array:
  """Says that features are split as the weights' rows are, over fsdp.

  Args:
    x_XD: features, inside `per_shard` with `serving=2d`; anywhere else nothing
      is said.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not _shard_axes() or "fsdp" in _shard_axes() or mesh.shape["fsdp"] == 1:
    return x_XD
  parts = [PartitionSpec.UNCONSTRAINED] * (x_XD.ndim - 1) + ["fsdp"]
  return jax.lax.with_sharding_constraint(x_XD, PartitionSpec(*parts))


def tensor_shards() -> int:
  """Devices of a part that share its heads and vocabulary; 1 outside one."""
  mesh = jax.sharding.get_abstract_mesh()
  alone = not _shard_axes() or "tensor" in mesh.manual_axes
  return 1 if alone else mesh.shape["tensor"]


def prompt_indices(count: int) -> Array:
  """Indices of this part's prompts among all: results know no mesh."""
  index_B = jnp.arange(count)
  if _shard_axes():
    index_B += count * jax.lax.axis_index(_shard_axes())
  return index_B


def all_shards(flag: Array) -> Array:
  """Whether a flag is set in every part."""
  if not _shard_axes():
    return flag
  return jax.lax.pmin(flag.astype(jnp.int32), _shard_axes()) == 1
