"""10^12 parameters on v5p:16x16x16, 4,096 chips.

Nobody published weights of this shape: for planning only.

Command: python -m launch.aot --config=experiments/pods/dense_1t.py \
  --topology=v5p:16x16x16
"""

from experiments import pods
from tsd_jax.models import presets
from tsd_jax.parallel.sharding import MeshConfig
from tsd_jax.run.experiment import Experiment


def get_config() -> Experiment:
  """The run."""
  return pods.experiment(
    presets.DENSE_1T, MeshConfig(fsdp=64, tensor=64), prompts=256
  )
