"""Forgetting: what training by reward costs on what the model knew before.

Trains the experiment with each weight of the KL leash to its start, and
measures before and after: accuracy on the task, and perplexity on fresh
examples of the warm start (random legal expressions, 30 % with their own
result as target), of the task itself and of the task with one number more,
which training never touches. Supervised examples are no optimal answers: some
perplexity on them is the price of writing better ones, and the second task
tells what is lost beside that.

Command (a killed one goes on; one run takes two minutes on two cores):

  python -m experiments.forgetting --workdir=DIR
    --output=experiments/results/forgetting.json
"""

import dataclasses
import json
import pathlib
import platform

from absl import flags

from tsd_jax import config as config_lib

_CONFIG = flags.DEFINE_string(
  "config", "experiments/countdown.py", "Experiment file."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs.")
_WEIGHTS = flags.DEFINE_list(
  "kl_weights", ["0", "0.01", "0.1"], "Weights of the KL leash."
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "Seeds of every line.")
_EXAMPLES = flags.DEFINE_integer("examples", 2048, "Supervised examples.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON to write.")
_HINDSIGHT = 0.3  # As in the warm start's second phase.


def measure(config, graphdef, params) -> dict[str, float]:
  """Accuracy on the task, perplexity on it and on the one beside it."""
  import numpy as np

  from tsd_jax import data, evaluate
  from tsd_jax.tasks import countdown

  mode = evaluate.headline(config.eval.modes)
  held_out = data.load_problems(config.task, config.eval.split)
  found = {
    mode: evaluate.evaluate(
      graphdef, params, config.make_task(), held_out, mode, seed=config.seed
    )[mode]["accuracy"]
  }
  for numbers in (config.task.numbers, 7 - config.task.numbers):  # 3 and 4.
    sizes = dataclasses.replace(config.task, numbers=numbers)
    examples = countdown.random_expressions(
      np.random.default_rng(1), _EXAMPLES.value, sizes, _HINDSIGHT
    )
    found[f"perplexity, {numbers} numbers"] = evaluate.perplexity(
      graphdef, params, countdown.Countdown(sizes), *examples
    )
  return found


def main(overrides):
  """Trains what is missing, prints the table, writes the JSON."""
  folder = pathlib.Path(config_lib.required(_WORKDIR))
  base = config_lib.from_flags(_CONFIG.value, overrides)
  configs = {  # All of them are checked before the first one runs.
    weight: [
      config_lib.override(base, {"loss.kl_weight": weight, "seed": seed})
      for seed in _SEEDS.value
    ]
    for weight in _WEIGHTS.value
  }
  # Imported late: a bad flag is refused before JAX starts.
  import jax

  from tsd_jax import progress, runs, train, workdir

  progress.quiet_libraries()
  rows = [{"name": "start"} | measure(base, *train.initial_params(base))]
  for weight, seeds in configs.items():
    for config in seeds:
      place = folder / weight / str(config.seed)
      train.train(config, place)
      run = runs.open_run(place)
      rows.append(
        {"name": f"leash {weight}, seed {config.seed}"}
        | measure(config, run.graphdef, run.params)
      )
  for row in rows:
    numbers = (f"{k} {v:.3f}" for k, v in row.items() if k != "name")
    print(f"{row['name']:>22}: {', '.join(numbers)}")
  if _OUTPUT.value:
    words = [
      f"--kl_weights={','.join(_WEIGHTS.value)}",
      f"--seeds={','.join(_SEEDS.value)}",
      *(f"--config.{name}={value}" for name, value in overrides.items()),
    ]
    content = {
      "about": "What training by reward costs on supervised examples of the "
      "warm start, of the task and of one that training never touches.",
      "command": " ".join(
        ["python -m experiments.forgetting --workdir=DIR", *words]
      ),
      "rows": rows,
      "versions": {
        "jax": jax.__version__,
        "python": platform.python_version(),
      },
    }
    workdir.write_whole(
      pathlib.Path(_OUTPUT.value), json.dumps(content, indent=1) + "\n"
    )


if __name__ == "__main__":
  config_lib.run(main)
