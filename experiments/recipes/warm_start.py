"""Warm start: a model that writes legal responses and rarely the right one.

Supervised training on a task's random legal responses. In the first phase they
rarely do what the prompt asks, so that only the rules are learned; in the
second, 30 % of the prompts ask for what the response does (relabelled).
Families of held-out problems never occur as prompts (`TaskConfig.group`); with
tuning problems, which comparisons have, theirs neither.

Command (three to ten minutes on one core; writes 1 MB in half precision to the
experiment's `init` and prints its accuracy):

  python -m experiments.recipes.warm_start --config=experiments/countdown.py
    --config.task.tuning_size=512
"""

import pathlib

from absl import flags

from experiments.recipes import starts
from tsd_jax.base import config as config_lib
from tsd_jax.base import progress
from tsd_jax.models import transformer, weights
from tsd_jax.run import evaluation
from tsd_jax.tasks import data

_COUNTDOWN = {"3": "experiments/countdown.py", "4": "experiments/countdown4.py"}

_CONFIG = flags.DEFINE_string(
  "config", _COUNTDOWN["3"], "Experiment file: its task, model and init count."
)
_NUMBERS = flags.DEFINE_enum(
  "numbers", None, list(_COUNTDOWN), "Short for Countdown's --config."
)
_SEED = config_lib.seed_flag(0, "Of initialisation and data.")
_STEPS = flags.DEFINE_list("steps", ["2000", "1000"], "Steps of each phase.")
_BATCH = flags.DEFINE_integer("batch", 256, "Examples a step.", lower_bound=1)
_RATE = flags.DEFINE_float("learning_rate", 2e-3, "Peak learning rate.")
_RELABEL = flags.DEFINE_float(
  "relabel_fraction",
  0.3,
  "Of the prompts of phase two.",
  lower_bound=0.0,
  upper_bound=1.0,
)
_OUTPUT = config_lib.path_flag(
  "output", None, "File to write; the experiment's init by default."
)


def _steps() -> tuple[int, int]:
  """Of both phases."""
  words = [word.strip() for word in _STEPS.value]
  if len(words) != 2 or not all(w.isascii() and w.isdigit() for w in words):
    raise config_lib.UserError(
      f"--steps={','.join(words)} must be two numbers, such as 2000,1000"
    )
  first, second = map(int, words)
  if not first + second:
    raise config_lib.UserError("--steps=0,0 teaches nothing")
  return first, second


def main(overrides):
  """Makes the file and prints what the model can do."""
  progress.quiet_libraries()
  if not 0 < _RATE.value < float("inf"):
    raise config_lib.UserError(
      f"--learning_rate={_RATE.value} must be positive, and finite"
    )
  file = _COUNTDOWN.get(_NUMBERS.value, _CONFIG.value)
  experiment = config_lib.from_flags(file, overrides, "Experiment")
  output = starts.place(_OUTPUT.value, experiment, file)
  examples = starts.Examples(_steps(), _RELABEL.value, _BATCH.value)
  starts.make(experiment, output, examples, _RATE.value, _SEED.value)
  config, task = experiment.task, experiment.task.make()
  graphdef, params = transformer.create(experiment.model, _SEED.value)
  params, _ = weights.load(output, params)  # Measured as it is stored.
  for split in ("validation", "test"):
    prompts = data.load_problems(config, split)
    results = evaluation.evaluate(
      graphdef, params, task, prompts, "greedy,mean@16,pass@16", seed=1
    )
    shown = ", ".join(f"{m} {r['accuracy']:.3f}" for m, r in results.items())
    print(f"{split}: {shown}")
  print(f"wrote {output}, {pathlib.Path(output).stat().st_size:,} bytes")


if __name__ == "__main__":
  config_lib.run(main)
