"""Runs `launch.train` on every worker of a Cloud TPU slice.

python -m launch.tpu_pod --tpu=NAME --zone=ZONE \
  --accelerator_type=v5litepod-16 --workdir=/mnt/shared/run \
  --config=experiments/countdown.py

Creates or reuses the slice, copies the files of a commit, installs the locked
versions, starts the same command on every worker, shows worker 0's log, and
copies the run's folder back. `--dry_run` prints the commands instead. The run
goes on when this command is stopped: --steps=stream,collect looks again,
--steps=interrupt makes it save and stop. Nothing is deleted unless asked to:
--steps=create,sync,install,start,stream,collect,delete.

Exit codes: 0 all workers ended well; 1 a worker or gcloud failed; 2 bad input;
69 no quota or capacity; 75 preempted, the same command goes on.
"""

import pathlib

from absl import flags

from tsd_jax.base import config as config_lib
from tsd_jax.base import paths

_TPU = flags.DEFINE_string("tpu", None, "Name of the slice.")
_ZONE = flags.DEFINE_string("zone", None, "Its zone.")
_PROJECT = flags.DEFINE_string("project", None, "Its project; else gcloud's.")
_ACCELERATOR = flags.DEFINE_string(
  "accelerator_type", None, "Kind and size, to create it: v5litepod-16."
)
_RUNTIME = flags.DEFINE_string(
  "runtime_version", None, "Image of the machines; else the usual one."
)
_SPOT = flags.DEFINE_bool("spot", False, "Cheaper, may be taken away.")
_QUEUED = flags.DEFINE_bool("queued", False, "Wait in line for the slice.")
_COMMIT = flags.DEFINE_string("commit", "HEAD", "What is run.")
_STEPS = flags.DEFINE_list("steps", None, "What is done; see the top.")
_CONFIG = flags.DEFINE_string(
  "config", "experiments/countdown.py", "Experiment file, in the commit."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run, on storage that all workers share."
)
_COLLECT = config_lib.path_flag("collect", "runs", "Where results are copied.")
_RESTARTS = flags.DEFINE_integer(
  "max_restarts", 10, "As for launch.train.", lower_bound=0
)
_PREEMPTIONS = flags.DEFINE_integer(
  "max_preemptions",
  0,
  "How often a slice taken away is made again.",
  lower_bound=0,
)
_POLL = flags.DEFINE_float("poll", 30.0, "Seconds between looks at a queue.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print commands, run none.")


def arguments(overrides: dict[str, str], folder: str) -> list[str]:
  """What `python` is started with on every worker."""
  path = pathlib.Path(_CONFIG.value)
  root = pathlib.Path(__file__).resolve().parent.parent
  if path.is_absolute():
    if not path.is_relative_to(root):
      raise config_lib.UserError(
        f"--config={path} lies outside of {root}: only files of the commit "
        "reach the workers"
      )
    path = path.relative_to(root)
  return [
    *("-m", "launch.train", "--distributed"),
    f"--max_restarts={_RESTARTS.value}",
    f"--config={path}",
    f"--workdir={folder}",
    *(f"--config.{name}={text}" for name, text in overrides.items()),
  ]


def main(overrides):
  """Does the steps, again from the first where the slice was taken away."""
  from tsd_jax.parallel import pod as pod_lib

  pod = pod_lib.Pod(
    tpu=config_lib.required(_TPU),
    zone=config_lib.required(_ZONE),
    project=_PROJECT.value,
    accelerator_type=_ACCELERATOR.value,
    runtime_version=_RUNTIME.value,
    spot=_SPOT.value,
    queued=_QUEUED.value,
  )
  steps = _STEPS.value or list(pod_lib.DEFAULT_STEPS)
  for step in steps:
    if step not in pod_lib.STEPS:
      raise config_lib.UserError(
        f"--steps: {step!r} is not one of {', '.join(pod_lib.STEPS)}"
      )
  paths.refuse_address(_WORKDIR.value or "")
  given = {}
  if "sync" in steps:
    given["sync"] = (pod_lib.plain("commit", _COMMIT.value),)
  if "start" in steps:
    # Whatever is wrong with the experiment is said before money is spent.
    config_lib.from_flags(_CONFIG.value, overrides, "Experiment")
    given["start"] = (arguments(overrides, config_lib.required(_WORKDIR)),)
  if "collect" in steps:
    given["collect"] = (
      pod_lib.plain("workdir", config_lib.required(_WORKDIR)),
      pod_lib.plain("collect", _COLLECT.value),
    )
  launcher = pod_lib.Launcher(pod, dry_run=_DRY_RUN.value, poll=_POLL.value)
  for left in reversed(range(_PREEMPTIONS.value + 1)):
    try:
      for step in steps:
        getattr(launcher, step)(*given.get(step, ()))
      return
    except pod_lib.Preempted as error:
      if not left:
        raise
      print(f"{error}; starting again, {left} times left", flush=True)


if __name__ == "__main__":
  config_lib.run(main)
