"""10^12 parameters on v5p:16x16x16 with a tensor axis of one torus ring.

Weights split over 16 devices take 121 GiB in bfloat16, more than a chip has. So
they are served as they are trained, split over all 4,096 chips
(`mesh.serving=2d`), and 1,024 trees are searched at a time by all of them.

Command: python -m launch.aot --config=experiments/pods/dense_1t_2d.py \
  --topology=v5p:16x16x16
"""

import dataclasses

from experiments import pods
from tsd_jax.models import presets
from tsd_jax.parallel.sharding import MeshConfig
from tsd_jax.run.experiment import Experiment


def get_config() -> Experiment:
  """The run."""
  config = pods.experiment(
    presets.DENSE_1T,
    MeshConfig(fsdp=256, tensor=16, serving="2d"),
    prompts=1024,
  )
  search = dataclasses.replace(config.search, trees=1024)
  return dataclasses.replace(config, search=search)
