"""SmolLM2-135M on v5e:2x2, four chips.

To train: --config.init=FOLDER with the published model's weights.

Command: python -m launch.aot --config=experiments/pods/smollm2_135m.py \
  --topology=v5e:2x2
"""

from experiments import pods
from tsd_jax.models import presets
from tsd_jax.parallel.sharding import MeshConfig
from tsd_jax.run.experiment import Experiment


def get_config() -> Experiment:
  """The run."""
  return pods.experiment(
    presets.SMOLLM2_135M, MeshConfig(fsdp=4, gather=True), prompts=64
  )
