"""Warm start: a model that writes legal responses and rarely the right one.

Supervised training on a task's random legal responses. In the first phase they
rarely do what the prompt asks, so that only the rules are learned; in the
second, 30 % of the prompts ask for what the response does (hindsight).
Problems of the validation and test splits never occur as prompts.

Command (a few minutes on two cores; writes 1 MB in half precision to the
experiment's `init` and prints its accuracy):

  python -m experiments.warm_start --config=experiments/countdown.py
"""

import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx

from tsd_jax import config as config_lib
from tsd_jax import data, evaluate, losses, progress, scoring
from tsd_jax.models import transformer, weights

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_COUNTDOWN = {"3": "experiments/countdown.py", "4": "experiments/countdown4.py"}

_CONFIG = flags.DEFINE_string(
  "config", _COUNTDOWN["3"], "Experiment file: its task, model and init count."
)
_NUMBERS = flags.DEFINE_enum(
  "numbers", None, list(_COUNTDOWN), "Short for Countdown's --config."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of initialisation and data.")
_STEPS = flags.DEFINE_list("steps", ["2000", "1000"], "Steps of each phase.")
_BATCH = flags.DEFINE_integer("batch", 256, "Examples a step.")
_RATE = flags.DEFINE_float("learning_rate", 2e-3, "Peak learning rate.")
_HINDSIGHT = flags.DEFINE_float("hindsight", 0.3, "Fraction in phase two.")
_OUTPUT = flags.DEFINE_string(
  "output", None, "File to write; the experiment's init by default."
)


def train(graphdef, params, task, phases, *, learning_rate):
  """Runs supervised training over phases of (prompt_SBP, response_SBT)."""
  steps = sum(p.shape[0] for p, _ in phases)
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, learning_rate, min(50, steps // 2), steps, 1e-5
  )
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

  def loss_fn(params, prompt_BP, response_BT):
    model = nnx.merge(graphdef, params)
    rows_B1T = response_BT[:, None]
    x_B1TD = scoring.features(model, prompt_BP, rows_B1T, task.prompt_pad_id)
    log_prob_B1T = scoring.read_log_probs(
      model, scoring.log_prob_of, x_B1TD, rows_B1T
    )
    return losses.cross_entropy(log_prob_B1T, rows_B1T != task.pad_id)

  @jax.jit
  def run(carry, examples):
    def step(carry, example):
      params, opt_state = carry
      loss, grads = jax.value_and_grad(loss_fn)(params, *example)
      updates, opt_state = optimizer.update(grads, opt_state)
      return (optax.apply_updates(params, updates), opt_state), loss

    return jax.lax.scan(step, carry, examples)

  carry = (params, optimizer.init(params))
  for number, examples in enumerate(phases, 1):
    start = time.time()
    carry, loss_S = run(carry, jax.tree.map(jnp.asarray, examples))
    print(
      f"phase {number}: {len(loss_S)} steps, loss {loss_S[-20:].mean():.3f}, "
      f"{time.time() - start:.0f} s"
    )
  return carry[0]


def main(overrides):
  """Makes the file and prints what the model can do."""
  progress.quiet_libraries()
  file = _COUNTDOWN.get(_NUMBERS.value, _CONFIG.value)
  experiment = config_lib.from_flags(file, overrides)
  output = _OUTPUT.value
  if output is None:
    if experiment.init is None:
      raise config_lib.UserError(f"{file} has no init: name a file, --output=")
    output = str(_ROOT / experiment.init)
  config, task = experiment.task, experiment.task.make()
  splits = data.split_problems(config)
  held_out = set(splits["validation"]) | set(splits["test"])
  rng = np.random.default_rng(_SEED.value)
  phases = []
  for steps, fraction in zip(
    map(int, _STEPS.value), (0.0, _HINDSIGHT.value), strict=True
  ):
    prompts, responses = config.warm_start(
      rng, steps * _BATCH.value, fraction, held_out
    )
    shape = (steps, _BATCH.value, -1)
    phases.append((prompts.reshape(shape), responses.reshape(shape)))
  graphdef, params = transformer.create(experiment.model, _SEED.value)
  params = train(graphdef, params, task, phases, learning_rate=_RATE.value)
  metadata = {
    "task": f"{task.name}, {config.dataset}",
    "phases": f"{_STEPS.value} steps of {_BATCH.value} examples",
    "hindsight": str(_HINDSIGHT.value),
    "seed": str(_SEED.value),
    "value_trained": "false",
  }
  weights.save(output, params, metadata=metadata)
  params, _ = weights.load(output, params)  # Measured as it is stored.
  for split in ("validation", "test"):
    prompts = data.load_problems(config, split)
    results = evaluate.evaluate(
      graphdef, params, task, prompts, "greedy,mean@16,pass@16", seed=1
    )
    shown = ", ".join(f"{m} {r['accuracy']:.3f}" for m, r in results.items())
    print(f"{split}: {shown}")
  print(f"wrote {output}, {pathlib.Path(output).stat().st_size:,} bytes")


if __name__ == "__main__":
  config_lib.run(main)
