"""The device mesh: prompts over `data`, parameters on every device."""

import dataclasses

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tsd_jax.config import UserError


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each mesh axis."""

  data: int = 1

  def __post_init__(self):
    """Refuses an empty mesh."""
    if self.data < 1:
      raise ValueError(f"mesh.data={self.data} must be at least 1")


def make_mesh(config: MeshConfig) -> jax.sharding.Mesh:
  """A mesh over the first devices.

  Raises:
    UserError: if the machine has fewer devices.
  """
  if config.data > jax.device_count():
    raise UserError(
      f"config.mesh.data={config.data} exceeds the {jax.device_count()} "
      f"{jax.default_backend()} devices here"
    )
  return jax.make_mesh(
    (config.data,),
    ("data",),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[: config.data],
  )


def replicated(mesh) -> NamedSharding:
  """One copy a device."""
  return NamedSharding(mesh, PartitionSpec())


def over_prompts(mesh, leading: int = 0) -> NamedSharding:
  """Splits the prompt axis, which follows `leading` others."""
  return NamedSharding(mesh, PartitionSpec(*([None] * leading), "data"))
