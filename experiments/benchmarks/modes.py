"""What search buys at test time, before and after distillation.

The base and the trained models answer the same held-out problems: once, by the
best of K samples, by their vote, and by a tree of N nodes, with K so that K
responses have about N tokens. What each spent stands beside it; best and search
look at the reward, the others do not. Trees are searched by the first run's
settings.

Command (a minute a model): python -m experiments.benchmarks.modes
  --workdirs=DIR/runs/tsd/0,DIR/runs/grpo/0
  --output=experiments/results/modes.json
"""

import os

from absl import flags

from tsd_jax.base import config as config_lib

# A test process imports several scripts with flags of these names.
_WORKDIRS = flags.DEFINE_list(
  "workdirs", None, "Folders of trained runs with one start."
)
_SIMULATIONS = flags.DEFINE_list(
  "simulations", ["32", "64", "128"], "Nodes of a tree."
)
_OUTPUT = config_lib.path_flag(
  "output", None, "JSON file to write.", allow_override=True
)


def modes(simulations: list[int], length: int) -> str:
  """Modes of `evaluate` that spend about as much as trees do.

  Args:
    simulations: nodes of each tree.
    length: tokens of a response that are run through the model.
  """
  names = ["greedy", "mean@16"]
  for nodes in simulations:
    samples = max(1, round(nodes / length))
    names += [f"vote@{samples}", f"best@{samples}", f"search@{nodes}"]
  return ",".join(dict.fromkeys(names))


def main(overrides):
  """Prints the rows and writes the JSON."""
  del overrides  # There is no --config: a run is measured as it was trained.
  folders = config_lib.required(_WORKDIRS)
  # Imported late: a bad flag is refused before JAX starts.
  from experiments.benchmarks import table
  from tsd_jax.base import progress
  from tsd_jax.run import evaluation, load
  from tsd_jax.run.experiment import initial_params
  from tsd_jax.tasks import data

  progress.quiet_libraries()
  opened = [load.open_run(folder) for folder in folders]
  first = opened[0].config
  for folder, run in zip(folders, opened, strict=True):
    for field in ("task", "model", "init"):
      if getattr(run.config, field) != getattr(first, field):
        raise config_lib.UserError(
          f"{folder} has another {field} than {folders[0]}: measure it alone"
        )
  task = first.make_task()
  asked = modes([int(n) for n in _SIMULATIONS.value], task.response_length - 1)
  prompts = data.load_problems(first.task, "test")
  graphdef, base = initial_params(first)
  rows, models = [], [("base", base)]
  models += [(run.config.algorithm, run.params) for run in opened]
  for model, params in models:
    found = evaluation.evaluate(
      graphdef, params, task, prompts, asked,
      seed=first.seed, search=first.search,
      reward_params=opened[0].reward_params,
    )  # fmt: skip
    print(f"{model}\n{evaluation.table(found)}", flush=True)
    rows += [
      {
        "model": model,
        "mode": mode,
        "tokens a prompt": round(result["tokens"] / result["n"], 1),
        "accuracy": round(result["accuracy"], 4),
        "standard error": round(result["stderr"], 4),
      }
      for mode, result in found.items()
    ]
  students = "; ".join(
    f"{run.config.algorithm} after {run.step} iterations, seed "
    f"{run.config.seed}, {run.ledger.total:,} ledger tokens"
    for run in opened
  )
  about = f"{task.name}, {len(prompts)} test problems; {students}."
  above = os.path.commonpath(
    [os.path.dirname(os.path.abspath(folder)) for folder in folders]
  )
  command = "python -m experiments.benchmarks.modes --workdirs=" + ",".join(
    f"DIR/{os.path.relpath(folder, above)}" for folder in folders
  )
  command += f" --simulations={','.join(_SIMULATIONS.value)}"
  content = {"about": about} | table.origin(command) | {"rows": rows}
  table.write(_OUTPUT.value, content)


if __name__ == "__main__":
  config_lib.run(main)
