"""The student costs what its base costs: parameters and latency, measured.

Both models answer one held-out prompt greedily, in turns, so that whatever else
the machine does falls on both; the ratio of the medians is what counts. The
work of a turn is the same for both: latency is divided by the tokens written.

Command: python -m experiments.benchmarks.student --workdir=DIR --output=FILE
"""

import statistics
import time

import jax
import numpy as np
from absl import flags

from experiments.benchmarks.table import Table
from tsd_jax.base import config as config_lib

_WORKDIR = config_lib.path_flag("workdir", None, "Folder of a trained run.")
_TURNS = flags.DEFINE_integer("turns", 200, "Answers of each model.")
_OUTPUT = config_lib.path_flag("output", None, "JSON file to write.")


def main(overrides):
  """Prints the table and writes the JSON."""
  del overrides
  folder = config_lib.required(_WORKDIR)
  from tsd_jax.base import progress
  from tsd_jax.run import evaluation, load
  from tsd_jax.run.experiment import initial_params
  from tsd_jax.tasks import data

  progress.quiet_libraries()
  run = load.open_run(folder)
  graphdef, base = initial_params(run.config)
  task = run.config.make_task()
  prompts = data.load_problems(run.config.task, "test")
  models = {"base": base, "student": run.params}
  times = {name: [] for name in models}
  for turn in range(_TURNS.value + 1):
    at = turn % len(prompts)
    asked = prompts[at : at + 1]
    for name, params in models.items():
      start = time.perf_counter()
      answer = evaluation.draw(
        graphdef, params, task, asked, jax.random.key(0), 1.0,
        run.reward_params, samples=0,
      )  # fmt: skip
      tokens = jax.block_until_ready(answer)[0]
      took = time.perf_counter() - start
      if turn:  # The first one compiles.
        written = int(np.sum(np.asarray(tokens) != task.pad_id))
        times[name].append(took / written)
  table = Table()
  for name, params in models.items():
    size = sum(int(leaf.size) for leaf in jax.tree.leaves(params))
    latency = statistics.median(times[name])
    ratio = latency / statistics.median(times["base"])
    table.note(f"{name}, parameters", size, "")
    table.note(f"{name}, latency", 1e3 * latency, "ms a token", base=ratio)
  table.write(
    _OUTPUT.value, config_lib.command("experiments.benchmarks.student")
  )


if __name__ == "__main__":
  config_lib.run(main)
