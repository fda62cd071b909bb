"""Several seeds in one program: is a `vmap` over seeds faster than a loop?

The default experiment's compiled chunk, run for S seeds one after the other
(the program is compiled once) and as one `vmap` over states, prompts and keys.
Both are timed in turn, several times; the figure is the ratio of the medians.

Command: python -m experiments.benchmarks.seeds [--output=FILE]
"""

import statistics
import time

import jax
import jax.numpy as jnp
from absl import flags

from experiments import countdown
from experiments.benchmarks.table import Table
from tsd_jax import config as config_lib
from tsd_jax import data, learner, progress, train

_SEEDS = flags.DEFINE_integer("seeds", 4, "Seeds at once.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Times that each is measured.")
_METHODS = flags.DEFINE_list("methods", ["tsd", "grpo"], "Methods.")
_PROMPTS = flags.DEFINE_string("prompts", "256", "Prompts an iteration.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON to write.")


def timed(function, *arguments) -> float:
  """Seconds of a call, its result awaited."""
  start = time.monotonic()
  jax.block_until_ready(function(*arguments))
  return time.monotonic() - start


def measure(table: Table, method: str) -> None:
  """Adds a method's rows."""
  config = config_lib.override(
    countdown.get_config(),
    {"algorithm": method, "rollout.prompts": _PROMPTS.value},
  )
  settings, task = config.learner_config(), config.make_task()
  graphdef, params = train.initial_params(config)
  hyper = {k: jnp.float32(v) for k, v in settings.hyper.items()}
  train_chunk = learner.make_train_chunk(graphdef, task, settings)
  problems = data.load_problems(config.task, "train")
  S, B = _SEEDS.value, config.rollout.prompts
  prompt_SCBP = jnp.stack(
    [
      data.PromptIterator(problems, batch_size=B, seed=s).next_chunk(1)
      for s in range(S)
    ]
  )
  key_S = jax.random.split(jax.random.key(0), S)

  def states():
    """The loop donates its state: every call needs its own."""
    return [
      learner.init_state(settings, jax.tree.map(jnp.copy, params))
      for _ in range(S)
    ]

  def one_by_one(states):
    return [
      train_chunk(state, prompt_SCBP[s], params, hyper, key_S[s])
      for s, state in enumerate(states)
    ]

  together = jax.jit(
    jax.vmap(train_chunk, in_axes=(0, 0, None, None, 0)), donate_argnums=0
  )

  def at_once(states):
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *states)
    return together(stacked, prompt_SCBP, params, hyper, key_S)

  seconds = {one_by_one: [], at_once: []}
  for way in seconds:  # Compiles.
    timed(way, states())
  for _ in range(_ROUNDS.value):
    for way, found in seconds.items():
      found.append(timed(way, states()))
  loop, vmap = (statistics.median(found) for found in seconds.values())
  table.note(f"{method}, {S} seeds one by one", loop, "s an iteration")
  table.note(
    f"{method}, {S} seeds at once", vmap, "s an iteration",
    one_by_one=vmap / loop,
  )  # fmt: skip


def main(overrides):
  """Prints the table, writes the JSON."""
  del overrides
  progress.quiet_libraries()
  table = Table()
  for method in _METHODS.value:
    measure(table, method)
  table.write(
    _OUTPUT.value,
    f"python -m experiments.benchmarks.seeds --seeds={_SEEDS.value} "
    f"--prompts={_PROMPTS.value}",
  )


if __name__ == "__main__":
  config_lib.run(main)
