"""What search buys at test time, before and after distillation.

Base and student answer the same held-out problems: once, by the best of K
samples, by their vote, and by a tree of N nodes, with K so that K responses
have about N tokens. What each spent stands beside it; best and search look at
the reward, the others do not.

Command (a minute): python -m experiments.benchmarks.modes --workdir=DIR
  --output=experiments/results/modes.json
"""

from absl import flags

from tsd_jax import config as config_lib

# A test process imports several scripts with flags of these names.
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of a trained run.", allow_override=True
)
_SIMULATIONS = flags.DEFINE_list(
  "simulations", ["32", "64", "128"], "Nodes of a tree."
)
_OUTPUT = flags.DEFINE_string(
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
  folder = config_lib.required(_WORKDIR)
  # Imported late: a bad flag is refused before JAX starts.
  from experiments.benchmarks import table
  from tsd_jax import data, evaluate, progress, runs
  from tsd_jax.experiment import initial_params

  progress.quiet_libraries()
  run = runs.open_run(folder)
  task = run.config.make_task()
  asked = modes([int(n) for n in _SIMULATIONS.value], task.response_length - 1)
  prompts = data.load_problems(run.config.task, "test")
  graphdef, base = initial_params(run.config)
  rows = []
  for model, params in (("base", base), ("student", run.params)):
    found = evaluate.evaluate(
      graphdef, params, task, prompts, asked,
      seed=run.config.seed, search=run.config.search,
    )  # fmt: skip
    print(f"{model}\n{evaluate.table(found)}", flush=True)
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
  about = (
    f"{task.name}, {len(prompts)} test problems; the student is "
    f"{run.config.algorithm} after {run.step} iterations, seed "
    f"{run.config.seed}, {run.ledger.total:,} ledger tokens."
  )
  command = "python -m experiments.benchmarks.modes --workdir=DIR"
  content = {"about": about} | table.origin(command) | {"rows": rows}
  table.write(_OUTPUT.value, content)


if __name__ == "__main__":
  config_lib.run(main)
