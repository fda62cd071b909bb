"""Qwen2.5-1.5B on v5e:4x4, sixteen chips.

To train: --config.init=FOLDER with the published model's weights.

Command: python -m launch.aot --config=experiments/pods/qwen2_5_1_5b.py \
  --topology=v5e:4x4
"""

from experiments import pods
from tsd_jax.models import presets
from tsd_jax.parallel.sharding import MeshConfig
from tsd_jax.run.experiment import Experiment


def get_config() -> Experiment:
  """The run."""
  return pods.experiment(
    presets.QWEN2_5_1_5B, MeshConfig(fsdp=4, tensor=4), prompts=64
  )
