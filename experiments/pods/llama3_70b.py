"""Llama 3 70B on v5p:8x8x8, 512 chips.

To train: --config.init=FOLDER with the published model's weights.

Command: python -m launch.aot --config=experiments/pods/llama3_70b.py \
  --topology=v5p:8x8x8
"""

from experiments import pods
from tsd_jax.models import presets
from tsd_jax.parallel.sharding import MeshConfig
from tsd_jax.run.experiment import Experiment


def get_config() -> Experiment:
  """The run."""
  return pods.experiment(
    presets.LLAMA3_70B, MeshConfig(fsdp=64, tensor=8), prompts=256
  )
