"""launch/gke_jobset.yaml: its command starts on the slice that it asks for."""

import math
import pathlib
import subprocess
import sys

import yaml

from tsd_jax.base import config as config_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def read():
  """The pods' job and their container."""
  jobset = yaml.safe_load((ROOT / "launch" / "gke_jobset.yaml").read_text())
  (workers,) = jobset["spec"]["replicatedJobs"]
  job = workers["template"]["spec"]
  (container,) = job["template"]["spec"]["containers"]
  return job, container


def test_the_run_fills_the_slice():
  job, container = read()
  overrides, flags = config_lib.split_overrides(container["args"])
  (file,) = (
    flag.removeprefix("--config=")
    for flag in flags
    if flag.startswith("--config=")
  )
  # Refused where a minibatch cannot be split over the chips.
  config = config_lib.from_flags(file, overrides)
  place = job["template"]["spec"]["nodeSelector"]
  shape = place["cloud.google.com/gke-tpu-topology"].split("x")
  chips = container["resources"]["limits"]["google.com/tpu"]
  assert job["parallelism"] == job["completions"]
  assert config.mesh.size == job["parallelism"] * chips
  assert config.mesh.size == math.prod(map(int, shape))


def test_the_command_knows_its_flags():
  _, container = read()
  python, *command = container["command"]
  flags = [f for f in container["args"] if not f.startswith("--workdir=")]
  assert python == "python" and len(flags) < len(container["args"])
  done = subprocess.run(
    [sys.executable, *command, *flags],
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  # All flags were read; the one that was taken out is asked for.
  assert (done.returncode, done.stderr) == (2, "error: --workdir is missing\n")
