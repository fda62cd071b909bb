"""Forgetting: what a model loses elsewhere while it learns one task.

The start knows two tasks: the experiment's `init` is trained on for --teach
steps, half on its own task's warm-start data and half on that of the second.
Then every method learns the first task alone, with and without a penalty on the
KL divergence to the start (`loss.kl_weight`). Before and after, of both tasks:

  perplexity  of warm-start responses that no training saw, 30 % of them asked
              for. On the task that is learned it rises also because the model
              stops to write what nobody asked for; on the other, that is loss.
  accuracy    on validation problems.

Command (a finished run is not run again; half an hour on one core):

  python -m experiments.benchmarks.forgetting --workdir=DIR
    --output=experiments/results/forgetting.json
"""

import hashlib
import pathlib
import sys

import numpy as np
from absl import flags

from tsd_jax.base import config as config_lib

_CONFIG = flags.DEFINE_string(
  "config", "experiments/countdown_balanced.py", "Experiment that is trained."
)
_SECOND = flags.DEFINE_string(
  "second", "experiments/maze.py", "Experiment whose task may be forgotten."
)
_WORKDIR = config_lib.path_flag("workdir", None, "Folder of all runs.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "Seeds of every method.")
_TEACH = flags.DEFINE_integer("teach", 600, "Steps on both tasks.")
_BATCH = flags.DEFINE_integer("batch", 128, "Examples of each task a step.")
_KL_WEIGHTS = flags.DEFINE_list(
  "kl_weights", ["0", "0.1", "1"], "Weights of the KL to the start."
)
_OUTPUT = config_lib.path_flag("output", None, "JSON file to write.")

METHODS = ("tsd", "grpo")
_RELABEL_FRACTION = (
  0.3  # As in the second phase of `experiments.recipes.warm_start`.
)
_RATE = 1e-3
_READ = 4096  # Responses that the perplexity is read on.


def teach(experiment, second, file: pathlib.Path) -> None:
  """Trains on both tasks; writes the parameters that all runs start from."""
  from tsd_jax.learning import supervised
  from tsd_jax.models import weights
  from tsd_jax.run.experiment import initial_params

  rng = np.random.default_rng(0)
  tasks = [
    supervised.draw(
      task, rng, _TEACH.value, _BATCH.value, _RELABEL_FRACTION,
      supervised.held_out(task),
    )
    for task in (experiment.task, second.task)
  ]  # fmt: skip
  graphdef, params = initial_params(experiment)
  params = supervised.train(
    graphdef,
    params,
    [tasks],
    tasks=[experiment.make_task(), second.make_task()],
    learning_rate=_RATE,
  )
  file.parent.mkdir(parents=True, exist_ok=True)
  partial = file.with_suffix(".partial")
  weights.save(partial, params, metadata={"value_trained": "false"})
  partial.replace(file)


class Exam:
  """What is measured of a model: the same examples and problems each time."""

  def __init__(self, experiment):
    """Draws the examples; another seed than that of any training."""
    from tsd_jax.learning import supervised
    from tsd_jax.run import evaluation
    from tsd_jax.tasks import data

    config = experiment.task
    self._task = experiment.make_task()
    self._mode = evaluation.headline(experiment.eval.modes)
    self._problems = data.load_problems(config, "validation")
    self._examples = config.warm_start(
      np.random.default_rng(1),
      _READ,
      _RELABEL_FRACTION,
      supervised.held_out(config),
    )

  def __call__(self, graphdef, params) -> dict[str, float]:
    """Perplexity and accuracy."""
    from tsd_jax.run import evaluation
    from tsd_jax.tasks.task import as_prompts

    prompt_QP, response_QT = self._examples
    found = evaluation.evaluate(
      graphdef, params, self._task, self._problems, self._mode, seed=1,
      reward_params=self._task.reward.load(),
    )[self._mode]  # fmt: skip
    return {
      "perplexity": evaluation.perplexity(
        graphdef,
        params,
        self._task,
        as_prompts(self._task, prompt_QP),
        response_QT,
      ),
      self._mode: found["accuracy"],
    }


def main(overrides):
  """Trains what is missing, prints the rows, writes the JSON."""
  folder = pathlib.Path(config_lib.required(_WORKDIR))
  first = config_lib.from_flags(_CONFIG.value, overrides, "Experiment")
  second = config_lib.from_flags(_SECOND.value, {}, "Experiment")
  if second.model != first.model or second.task == first.task:
    raise config_lib.UserError(
      f"--second={_SECOND.value} must have the model of {_CONFIG.value} and "
      "another task"
    )
  # Of two tasks, and of how they were taught: another one is another start.
  made_of = (first.init, first.task, second.task, _TEACH.value, _BATCH.value)
  digest = hashlib.sha256(repr(made_of).encode()).hexdigest()[:8]
  file = (folder / f"start_{digest}.safetensors").absolute()
  base = config_lib.override(first, {"init": str(file)})
  runs_of = {  # All of them are checked before the first one runs.
    (method, weight): [
      config_lib.override(
        base, {"algorithm": method, "loss.kl_weight": weight, "seed": seed}
      )
      for seed in _SEEDS.value
    ]
    for method in METHODS
    for weight in _KL_WEIGHTS.value
  }
  # Imported late: a bad flag is refused before JAX starts.
  from experiments.benchmarks import table
  from tsd_jax.base import progress
  from tsd_jax.run import load, train
  from tsd_jax.run.experiment import initial_params

  progress.quiet_libraries()
  if not file.exists():
    teach(first, second, file)
  exams = {"learned": Exam(base), "other": Exam(second)}

  def row(model, weight, iterations, models):
    found = {"model": model, "kl_weight": weight, "iterations": iterations}
    for part, exam in exams.items():
      scores = [exam(*model) for model in models]
      for name in scores[0]:
        found[f"{part} task, {name}"] = [round(s[name], 4) for s in scores]
    print(found, flush=True)
    return found

  rows = [row("start", None, 0, [initial_params(base)])]
  for (method, weight), configs in runs_of.items():
    models = []
    for config in configs:
      place = folder / f"{method}_{weight}" / str(config.seed)
      train.train(config, place)
      run = load.open_run(place)
      models.append((run.graphdef, run.params))
    rows.append(row(method, float(weight), base.iterations, models))
  words = [w for w in sys.argv[1:] if not w.startswith(("--workdir", "--out"))]
  command = "python -m experiments.benchmarks.forgetting --workdir=DIR"
  about = (
    f"The start was taught two tasks, {base.make_task().name} and "
    f"{second.make_task().name}; then the first alone was learned, seeds "
    f"{', '.join(_SEEDS.value)}, one number a seed."
  )
  content = {"about": about} | table.origin(" ".join([command, *words]))
  table.write(_OUTPUT.value, content | {"rows": rows})


if __name__ == "__main__":
  config_lib.run(main)
