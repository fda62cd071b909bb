"""One training step of GRPO, ours beside TRL's and Tunix's: time and memory.

A step samples 4 responses to each of 8 prompts and makes one update on them.
Every library starts processes of its own on the same random weights and prompts
of the same length; the end token lies beyond the vocabulary, so that every
response is full. Adam, clip and reward are the same; there is no KL term, no
reference model, no log and no saving, and the others have no gradient
checkpointing. Ours is the compiled loop of a run, an iteration a dispatch. The
processes take turns; a figure is the median over the steps of all turns but
each process's first ones. Times are seconds of the processor, so that other
work on the machine counts less; `wall_seconds` is what passed.

  compile  what the first steps of a process take beyond later ones
  rollout  sampling alone; ours is one program, so its sampling is compiled and
           timed once more by itself, and the rest of a step is called its
           update
  memory   the most that a process ever held, interpreter included

What stays different: TRL is PyTorch as it comes, without `torch_compile`; ours
runs a prompt once for its group, in sampling and in the update, where the
others run it once a row; TRL and Tunix begin and end with text, ours with
tokens. A scan over layers (`smollm2`) keeps the matmuls' results for its
backward pass and makes norms and attention again, as it does in every run.

Command (an environment of its own for each, see trl_grpo.py and tunix_grpo.py;
a library whose interpreter is not named is left out):

  taskset -c 0 python -m experiments.baselines.step_time --shapes=tiny,smollm2
    --trl=PYTHON --tunix=PYTHON --output=FILE.json
"""

import dataclasses
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

from absl import flags, logging

from experiments.baselines import step_workers
from tsd_jax.base import config as config_lib

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SHAPES = flags.DEFINE_list(
  "shapes", ["tiny"], "tiny, smollm2.", allow_override=True
)
_TRL = flags.DEFINE_string("trl", None, "Python of an environment with TRL.")
_TUNIX = flags.DEFINE_string("tunix", None, "The same with Tunix.")
_OUTPUT = config_lib.path_flag(
  "output", None, "JSON file to write.", allow_override=True
)
_WORK = flags.DEFINE_string("work", None, "Set for the processes it starts.")


@dataclasses.dataclass(frozen=True)
class Size:
  """What a shape is measured with."""

  length: int  # Of a prompt, and of a response.
  warm: int  # Steps of a process that are not counted.
  steps: int  # Steps that are.
  turns: int  # Processes of each library.


SIZES = {
  "tiny": Size(length=16, warm=2, steps=10, turns=2),
  "smollm2": Size(length=64, warm=1, steps=1, turns=1),
}


def start_work(python: str, work) -> dict:
  """Runs a process and returns its figures.

  Raises:
    UserError: it failed.
  """
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "work.json"
    file.write_text(json.dumps(work))
    env = dict(os.environ, HF_HUB_OFFLINE="1", JAX_PLATFORMS="cpu")
    # What is read from a cache was not compiled.
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    env["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
    command = [python, "-m", "experiments.baselines.step_time"]
    ended = subprocess.run(
      [*command, f"--work={file}"], cwd=_ROOT, env=env, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if ended.returncode:
      print(ended.stdout, file=sys.stderr)
      raise config_lib.UserError(
        f"{work['library']} failed on {work['shape']}; its output stands above"
      )
    return json.loads(file.with_suffix(".done").read_text())


def make_work(shape: str, start: pathlib.Path) -> dict:
  """What all libraries are asked to do; writes the weights that they read."""
  import numpy as np

  from experiments.baselines import trl_grpo
  from tsd_jax.models import hf, transformer

  size, model = SIZES[shape], step_workers.model_config(shape)
  steps = size.warm + size.steps
  _, params = transformer.create(model, 0)
  case = step_workers.make_case(model.vocab_size, size.length, steps)
  words = step_workers.Words(model.vocab_size)
  hf.save(start, model, params, words, max_length=2 * size.length)
  prompts = np.random.default_rng(0).integers(
    model.vocab_size, size=(steps * step_workers.PROMPTS, size.length)
  )
  return dict(
    shape=shape,
    start=str(start),
    steps=steps,
    length=size.length,
    vocab_size=model.vocab_size,
    prompts=prompts.tolist(),
    trl=trl_grpo.settings(case),
  )


def summary(turns: list[dict], warm: int) -> dict[str, float]:
  """The figures of one library and shape.

  Args:
    turns: of its processes.
    warm: how many steps of each are not counted.
  """

  def middle(name):
    return statistics.median(x for turn in turns for x in turn[name][warm:])

  step, rollout = middle("step_seconds"), middle("rollout_seconds")
  first = statistics.median(sum(turn["step_seconds"][:warm]) for turn in turns)
  return dict(
    step_seconds=step,
    wall_seconds=middle("wall_seconds"),
    rollout_seconds=rollout,
    update_seconds=step - rollout,
    compile_seconds=first - warm * step,
    peak_memory_gb=max(turn["peak_memory_gb"] for turn in turns),
  )


def rows_of(shape: str, turns_of: dict[str, list[dict]]) -> list[dict]:
  """The table's rows of one shape, with ratios of theirs over ours."""
  found = {
    library: summary(turns, SIZES[shape].warm)
    for library, turns in turns_of.items()
  }
  names = dict(step="step_seconds", compile="compile_seconds")
  names["memory"] = "peak_memory_gb"
  return [
    dict(shape=shape, library=library, **row)
    | {f"{k}_over_ours": row[n] / found["ours"][n] for k, n in names.items()}
    for library, row in found.items()
  ]


def main(overrides):
  """Starts the processes, prints the rows and writes the JSON."""
  del overrides
  logging.set_verbosity(logging.WARNING)  # Tunix prints samples of each step.
  if _WORK.value:
    return step_workers.work_on(pathlib.Path(_WORK.value))
  if unknown := sorted(set(_SHAPES.value) - set(SIZES)):
    raise config_lib.UserError(
      f"--shapes={','.join(unknown)} is unknown: use {', '.join(SIZES)}"
    )
  pythons = dict(ours=sys.executable, trl=_TRL.value, tunix=_TUNIX.value)
  pythons = {name: python for name, python in pythons.items() if python}
  for name, python in pythons.items():
    if shutil.which(python) is None:
      raise config_lib.UserError(f"--{name}={python} is no program")
  rows, versions = [], {}
  for shape in _SHAPES.value:
    turns_of = {name: [] for name in pythons}
    with tempfile.TemporaryDirectory() as folder:
      work = make_work(shape, pathlib.Path(folder) / "start")
      for _ in range(SIZES[shape].turns):
        for name, python in pythons.items():
          turn = start_work(python, work | {"library": name})
          versions |= turn["versions"]
          turns_of[name].append(turn)
          print(f"{shape}, {name}: {json.dumps(turn)}", flush=True)
    rows += rows_of(shape, turns_of)
    write(rows, versions, [name for name in pythons if name != "ours"])


def write(rows, versions, others) -> None:
  """Writes the rows where a file was asked for."""
  from experiments.benchmarks import table

  cores = sorted(os.sched_getaffinity(0))
  command = [
    f"taskset -c {','.join(map(str, cores))} python -m "
    "experiments.baselines.step_time",
    f"--shapes={','.join(_SHAPES.value)}",
    *(f"--{name}=PYTHON" for name in others),
  ]
  about = (
    f"One training step of GRPO, 8 prompts of 4 samples, on {len(cores)} "
    "core(s): medians of processor seconds; ratios are theirs over ours."
  )
  content = {"about": about} | table.origin(" ".join(command)) | {"rows": rows}
  content["versions"] |= versions
  table.write(_OUTPUT.value, content)


if __name__ == "__main__":
  config_lib.run(main)
