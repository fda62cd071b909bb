"""Llama 3 8B on v5p:4x4x4, 64 chips.

To train: --config.init=FOLDER with the published model's weights.

Command: python -m launch.aot --config=experiments/pods/llama3_8b.py \
  --topology=v5p:4x4x4
"""

from experiments import pods
from tsd_jax.models import presets
from tsd_jax.parallel.sharding import MeshConfig
from tsd_jax.run.experiment import Experiment


def get_config() -> Experiment:
  """The run."""
  return pods.experiment(
    presets.LLAMA3_8B, MeshConfig(fsdp=16, tensor=4), prompts=64
  )
