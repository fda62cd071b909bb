"""A start for --config.search.leaf=value: V_search taught by relabelling.

See `recipes/relabelled_value.py`. Command (a quarter of an hour on one core,
four numbers):

  python -m experiments.relabelled_value --config=experiments/countdown4.py
    --output=FILE.safetensors
"""

from absl import flags

from experiments.recipes import relabelled_value
from tsd_jax.base import config as config_lib
from tsd_jax.base import progress
from tsd_jax.models import weights
from tsd_jax.run import evaluation
from tsd_jax.run.experiment import initial_params
from tsd_jax.tasks import data

_CONFIG = flags.DEFINE_string(
  "config", "experiments/countdown.py", "Experiment file: its task and start."
)
_STEPS = flags.DEFINE_integer("steps", 2000, "Steps.", 1)
_BATCH = flags.DEFINE_integer("batch", 256, "Examples a step.", 1)
_RATE = flags.DEFINE_float("learning_rate", 1e-3, "Peak learning rate.")
_KL = flags.DEFINE_float("kl_weight", 2.0, "Holds the policy.")
_OUTPUT = config_lib.path_flag("output", None, "File to write.")


def main(overrides):
  """Writes the file and prints what the model can do."""
  progress.quiet_libraries()
  output = config_lib.required(_OUTPUT)
  experiment = config_lib.from_flags(_CONFIG.value, overrides, "Experiment")
  task = experiment.task.make()
  graphdef, params = initial_params(experiment)
  steps, batch = _STEPS.value, _BATCH.value
  params = relabelled_value.teach(
    graphdef,
    params,
    experiment.task,
    steps=steps,
    batch=batch,
    learning_rate=_RATE.value,
    kl_weight=_KL.value,
    seed=experiment.seed,
  )
  relabelled_value.save(output, params, experiment, steps, batch)
  params, _ = weights.load(output, params)  # Measured as it is stored.
  results = evaluation.evaluate(
    graphdef,
    params,
    task,
    data.load_problems(experiment.task, "validation"),
    "greedy,mean@16",
    seed=1,
  )
  shown = ", ".join(f"{m} {r['accuracy']:.3f}" for m, r in results.items())
  spent = relabelled_value.forwards(task, steps, batch)
  print(f"validation: {shown}; taught by {spent:,} forwards of a token")


if __name__ == "__main__":
  config_lib.run(main)
