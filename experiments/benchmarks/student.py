"""The student costs what its base costs: parameters and latency, measured.

Both models answer one held-out prompt greedily, in turns, so that whatever else
the machine does falls on both; the ratio of the medians is what counts. The
work of a turn is the same for both: latency is divided by the tokens written.

Command: python -m experiments.benchmarks.student --workdir=DIR --output=FILE
"""

import json
import pathlib
import platform
import statistics
import time

import jax
import numpy as np
from absl import flags

from tsd_jax import config as config_lib

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained run.")
_TURNS = flags.DEFINE_integer("turns", 200, "Answers of each model.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")


def main(overrides):
  """Prints the table and writes the JSON."""
  del overrides
  if _WORKDIR.value is None:
    raise config_lib.UserError("--workdir=DIR is missing")
  from tsd_jax import data, evaluate, progress, runs, train

  progress.quiet_libraries()
  run = runs.open_run(_WORKDIR.value)
  graphdef, base = train.initial_params(run.config)
  task = run.config.make_task()
  prompts = data.load_problems(run.config.task, "test")
  models = {"base": base, "student": run.params}
  times = {name: [] for name in models}
  for turn in range(_TURNS.value + 1):
    prompt_1P = prompts[turn % len(prompts)][None]
    for name, params in models.items():
      start = time.perf_counter()
      tokens = jax.block_until_ready(
        evaluate.draw(
          graphdef, params, task, prompt_1P, jax.random.key(0), 1.0, samples=0
        )
      )[0]
      took = time.perf_counter() - start
      if turn:  # The first one compiles.
        written = int(np.sum(np.asarray(tokens) != task.pad_id))
        times[name].append(took / written)
  rows = []
  for name, params in models.items():
    size = sum(int(leaf.size) for leaf in jax.tree.leaves(params))
    latency = statistics.median(times[name])
    ratio = latency / statistics.median(times["base"])
    rows += [
      dict(name=f"{name}, parameters", value=size, unit="", ratio_to={}),
      dict(
        name=f"{name}, latency",
        value=1e3 * latency,
        unit="ms a token",
        ratio_to={"base": ratio},
      ),
    ]
    print(
      f"{name:>8}  {size:,} parameters  {1e3 * latency:.3f} ms a token  "
      f"{ratio:.3f} of the base"
    )
  if _OUTPUT.value:
    content = dict(
      command="python -m experiments.benchmarks.student",
      rows=rows,
      versions=dict(jax=jax.__version__, python=platform.python_version()),
    )
    text = json.dumps(content, indent=1) + "\n"
    pathlib.Path(_OUTPUT.value).write_text(text)


if __name__ == "__main__":
  config_lib.run(main)
