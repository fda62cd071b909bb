"""Compiles an experiment for a TPU slice without one: does it fit?

python -m launch.aot --config=experiments/countdown.py --topology=v5e:2x2 \
  --config.mesh.fsdp=4 --config.rollout.prompts=32

Prints memory of a device by part, what devices send to each other, and the
least time of an iteration at the chip's published peaks; --output writes them
as JSON. Needs the extra `tpu` (the compiler), no TPU. Exit code 3: too large.
"""

import json
import os

from absl import flags

from tsd_jax.base import config as config_lib
from tsd_jax.base import output_files, paths

_CONFIG = flags.DEFINE_string(
  "config", "experiments/countdown.py", "Experiment file."
)
_TOPOLOGY = flags.DEFINE_string("topology", None, "Kind and shape: v5e:4x4.")
_SLICES = flags.DEFINE_integer("slices", 1, "How many such slices.")
_OUTPUT = config_lib.path_flag("output", None, "JSON file to write.")
_EFFORT = flags.DEFINE_enum(
  "effort", "full", ["full", "quick"], "Of the compiler; quick overstates."
)


def main(overrides):
  """Compiles, prints, writes."""
  topology = config_lib.required(_TOPOLOGY)
  # JAX need not look for the TPU that is not there.
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  config = config_lib.from_flags(_CONFIG.value, overrides, "Experiment")
  from tsd_jax.planning import aot

  result = aot.plan(
    config, topology, slices=_SLICES.value, effort=_EFFORT.value
  )
  result["config"] = {"file": _CONFIG.value, **overrides}
  print(aot.table(result))
  if _OUTPUT.value:
    text = json.dumps(result, indent=2) + "\n"
    output_files.write_whole(paths.named(_OUTPUT.value), text)
  return 0 if result["fits"] else 3


if __name__ == "__main__":
  config_lib.run(main)
