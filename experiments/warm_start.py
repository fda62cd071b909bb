"""Warm start: a model that writes legal expressions and rarely the right one.

Supervised training on random legal expressions. In the first phase targets are
random, so that only the grammar and arithmetic are learned; in the second, 30 %
of the examples have the target set to the expression's own result (hindsight).
Problems of the validation and test splits never occur as prompts.

Command (a few minutes on two cores; writes 1 MB in half precision to
experiments/warm_start_3.safetensors and prints its accuracy):

  python -m experiments.warm_start --numbers=3
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
from tsd_jax.models import presets, transformer, weights
from tsd_jax.tasks.countdown import (
  Countdown,
  CountdownConfig,
  random_expressions,
)

_NUMBERS = flags.DEFINE_integer("numbers", 3, "Numbers of a problem, 3 or 4.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of initialisation and data.")
_STEPS = flags.DEFINE_list("steps", ["2000", "1000"], "Steps of each phase.")
_BATCH = flags.DEFINE_integer("batch", 256, "Examples a step.")
_RATE = flags.DEFINE_float("learning_rate", 2e-3, "Peak learning rate.")
_HINDSIGHT = flags.DEFINE_float("hindsight", 0.3, "Fraction in phase two.")
_OUTPUT = flags.DEFINE_string("output", None, "File to write.")


def train(graphdef, params, task, phases, *, learning_rate):
  """Runs supervised training over phases of (prompt_SBP, response_SBT)."""
  steps = sum(p.shape[0] for p, _ in phases)
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adam(
      optax.warmup_cosine_decay_schedule(0.0, learning_rate, 50, steps, 1e-5)
    ),
  )

  def loss_fn(params, prompt_BP, response_BT):
    model = nnx.merge(graphdef, params)
    rows_B1T = response_BT[:, None]
    x_B1TD = scoring.features(model, prompt_BP, rows_B1T)
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
  del overrides
  progress.quiet_libraries()
  config = CountdownConfig(numbers=_NUMBERS.value)
  task = Countdown(config)
  splits = data.split_problems(config)
  held_out = set(splits["validation"]) | set(splits["test"])
  rng = np.random.default_rng(_SEED.value)
  phases = []
  for steps, fraction in zip(
    map(int, _STEPS.value), (0.0, _HINDSIGHT.value), strict=True
  ):
    prompts, responses = random_expressions(
      rng, steps * _BATCH.value, config, fraction, held_out
    )
    shape = (steps, _BATCH.value, -1)
    phases.append((prompts.reshape(shape), responses.reshape(shape)))
  graphdef, params = transformer.create(presets.TINY, _SEED.value)
  params = train(graphdef, params, task, phases, learning_rate=_RATE.value)
  output = _OUTPUT.value or str(
    pathlib.Path(__file__).parent / f"warm_start_{_NUMBERS.value}.safetensors"
  )
  metadata = {
    "task": f"countdown, {_NUMBERS.value} numbers",
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
