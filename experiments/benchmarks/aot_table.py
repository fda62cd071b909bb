"""What published shapes need of the slices they are planned for.

Each row is one `launch.aot` of a file in `experiments/pods/`, in a process of
its own: memory of a device by part, what it sends in an iteration, and the
least time of an iteration at the chip's published peaks. The quick compiler
overstates temporary memory. Needs the extra `tpu`, no TPU.

Command (15 minutes): python -m experiments.benchmarks.aot_table --output=FILE
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from absl import flags

from experiments.benchmarks import table
from tsd_jax.base import config as config_lib

_EFFORT = flags.DEFINE_enum("effort", "quick", ["full", "quick"], "As there.")
_LIMIT = flags.DEFINE_integer("limit", 600, "Seconds that a shape may take.")
_SHAPES = flags.DEFINE_list("shapes", None, "Which; all by default.")
# A test process imports several scripts with a flag of this name.
_OUTPUT = config_lib.path_flag(
  "output", None, "JSON file to write.", allow_override=True
)

TOPOLOGIES = {
  "smollm2_135m": "v5e:2x2",
  "qwen2_5_1_5b": "v5e:4x4",
  "llama3_8b": "v5p:4x4x4",
  "llama3_70b": "v5p:8x8x8",
  "dense_1t": "v5p:16x16x16",
  "dense_1t_2d": "v5p:16x16x16",
}
TOO_LARGE = 3  # launch.aot's exit code.


def run(name: str, topology: str) -> dict[str, Any] | None:
  """One shape's plan; None where the compiler took too long."""
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "aot.json"
    line = [
      sys.executable, "-m", "launch.aot", f"--topology={topology}",
      f"--config=experiments/pods/{name}.py", f"--effort={_EFFORT.value}",
      f"--output={file}",
    ]  # fmt: skip
    try:
      done = subprocess.run(line, timeout=_LIMIT.value, check=False)
    except subprocess.TimeoutExpired:
      return None
    if done.returncode not in (0, TOO_LARGE):
      raise config_lib.UserError(f"{' '.join(line)} failed: see above")
    return json.loads(file.read_text())


def row(name: str, topology: str, plan: dict[str, Any] | None):
  """A line of the table."""
  from tsd_jax.models import transformer
  from tsd_jax.parallel import sharding

  config = config_lib.load(f"experiments/pods/{name}.py")
  mesh = " ".join(
    f"{name}={value}"
    for name, value in vars(config.mesh).items()
    if value != getattr(sharding.ONE_DEVICE, name)
  )
  first = {
    "shape": name,
    "parameters": transformer.count_parameters(config.model),
    "topology": topology,
    "mesh": mesh,
    "prompts": config.learner_config().prompts,
  }
  if plan is None:
    return first | {"fits": f"not compiled in {_LIMIT.value} s"}
  parts = plan["bytes_per_device"]
  gib = {k: round(v / 2**30, 3) for k, v in parts.items()}
  state = ("parameters", "optimizer", "search_model", "reference")
  result = first | {
    "fits": plan["fits"],
    "state GiB": round(sum(gib[k] for k in state), 3),
    "temporary GiB": gib["temporary"],
    "total GiB": gib["total"],
  }
  if not plan["fits"]:
    largest = plan["largest"]
    return result | {
      "limit GiB": gib["limit"],
      "largest rollout.prompts": largest.get("rollout.prompts", 0),
    }
  for kind, total in plan["collectives"].items():
    result[f"{kind} GiB"] = round(total["bytes"] / 2**30, 3)
  seconds = plan["roofline"]["total"]["seconds"]
  return result | {
    "least s": round(seconds, 4),
    "instructions": plan["instructions"],
  }


def main(overrides):
  """Plans every shape."""
  del overrides
  names, found = _SHAPES.value or list(TOPOLOGIES), []
  if unknown := set(names) - set(TOPOLOGIES):
    raise config_lib.UserError(
      f"--shapes={','.join(unknown)}: the shapes are {', '.join(TOPOLOGIES)}"
    )
  for name in names:
    topology = TOPOLOGIES[name]
    found.append(row(name, topology, run(name, topology)))
    print(json.dumps(found[-1]), flush=True)
  content = table.origin(
    "python -m experiments.benchmarks.aot_table "
    f"--effort={_EFFORT.value} --shapes={','.join(names)} --output=FILE"
  )
  content["about"] = " ".join(__doc__.split("\n\n")[1].split())
  content["rows"] = found
  table.write(_OUTPUT.value, content)


if __name__ == "__main__":
  config_lib.run(main)
