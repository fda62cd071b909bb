"""Where an iteration's time goes, and how far each part is from the matmuls.

Times search, rollouts and update, each jitted alone, beside the whole loop; the
floor of a part is the time of its weight multiplications alone, at its own row
counts, measured in the same run (an update counts them three times). Also: time
to compile, size of the compiled program against iterations and simulations, and
what the host adds between dispatches.

Command: python -m experiments.benchmarks.loop --output=FILE.json
"""

import functools
import json
import pathlib
import tempfile
import time
from unittest import mock

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx

from experiments.benchmarks.floor import floor_seconds, seconds
from experiments.benchmarks.table import Table
from tsd_jax.base import config as config_lib

_CONFIG = flags.DEFINE_string(
  "config", "experiments/countdown.py", "Experiment file."
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timings; the median counts.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")


def compiled_size(config, graphdef, params, task, iterations):
  """Seconds to compile the loop, and instructions in the result."""
  from tsd_jax.learning import iteration

  learner_config = config.learner_config()
  state = iteration.init_state(learner_config, params)
  hyper = {k: jnp.float32(v) for k, v in learner_config.hyper.items()}
  shape = (iterations, learner_config.prompts, task.prompt_length)
  chunk = iteration.make_train_loop(graphdef, task, learner_config)
  key = jax.random.key(0)
  jax.clear_caches()  # The loop was compiled before, to be timed.
  start = time.perf_counter()
  compiled = chunk.lower(
    state, jax.ShapeDtypeStruct(shape, jnp.int32), params, hyper, key
  ).compile()
  took = time.perf_counter() - start
  return took, compiled.as_text().count(" = ")


def host_loop(config):
  """Wall time of a run's dispatches, and how much of it the program ran."""
  from tsd_jax.learning import iteration
  from tsd_jax.run import train

  quick = config_lib.override(
    config,
    {"eval.every": "0", "iterations": str(4 * config.iterations_per_call)},
  )
  make, times = iteration.make_train_loop, []

  def make_timed(*args):
    chunk = make(*args)

    def run(*args):
      start = time.perf_counter()
      result = jax.block_until_ready(chunk(*args))
      times.append(time.perf_counter() - start)
      return result

    return run

  with (
    tempfile.TemporaryDirectory() as folder,
    mock.patch.object(iteration, "make_train_loop", make_timed),
  ):
    train.train(quick, folder)
    lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
  rows = map(json.loads, lines)
  stamps = [row["seconds"] for row in rows if "seconds" in row]
  # The row before the first chunk, and the first, which compiles, are left out.
  return stamps[-1] - stamps[1], sum(times[1:])


def main(overrides):
  """Prints the table and writes the JSON."""
  config = config_lib.from_flags(_CONFIG.value, overrides)
  # A compilation read from the cache would be no compilation.
  jax.config.update("jax_enable_compilation_cache", False)
  from tsd_jax.base import progress
  from tsd_jax.inference import decode
  from tsd_jax.inference.rollout import rollout
  from tsd_jax.learning import iteration, objective
  from tsd_jax.run.experiment import initial_params
  from tsd_jax.tasks import data

  progress.quiet_libraries()
  repeats = _REPEATS.value
  task, learner_config = config.make_task(), config.learner_config()
  graphdef, params = initial_params(config)
  model = nnx.merge(graphdef, params)
  S, B, C = (
    learner_config.prompts,
    learner_config.rollout.prompts,
    learner_config.distilled_prompts,
  )
  prompt_QP = jnp.asarray(data.load_problems(config.task, "train")[:S])
  prompt_BP = prompt_QP[:B]
  P, T = task.prompt_length, task.response_length
  key = jax.random.key(0)
  hyper = {k: jnp.float32(v) for k, v in learner_config.hyper.items()}
  table = Table()

  @jax.jit
  def search(params, prompt_QP):
    return iteration.search_phase(
      graphdef, params, task, prompt_QP, key, learner_config
    )

  @jax.jit
  def sample(params, prompt_BP):
    model = nnx.merge(graphdef, params)
    prefix = decode.prefill(model, prompt_BP)
    return rollout(model, task, prompt_BP, prefix, key, learner_config.rollout)

  responses, _ = sample(params, prompt_BP)
  found, searched, _ = search(params, prompt_QP)
  advantage_BGT, return_BGT = iteration.advantages(responses, learner_config)
  lessons = iteration.choose_distillation_batch(key, prompt_QP, found, C)
  batch = objective.Batch(
    prompt_BP, responses, advantage_BGT, return_BGT, lessons
  )
  opt_state = objective.make_optimizer(learner_config).init(params)

  @jax.jit
  def update(params, batch):
    return objective.update(
      graphdef, (params, opt_state), params, batch, key, hyper, learner_config
    )

  M = config.loss.champions
  o, r = config.optimizer, learner_config.rollout
  floor = functools.partial(floor_seconds, model, repeats=repeats)
  forks, trees = r.group - r.samples, min(config.search.trees, S)
  floors = {
    "search": floor(trees, int(searched) // trees) + floor(S * P, 1),
    "rollouts": floor(B * r.samples, T - 1)
    + (floor(B * forks, T - 1) if forks else 0)
    + floor(B * P, 1),
    "update": 3
    * o.epochs
    * (
      floor(B // o.minibatches * (P + r.group * (T - 1)), o.minibatches)
      + floor(C // o.minibatches * (P + M * (T - 1)), o.minibatches)
    ),
  }
  parts = {
    "search": seconds(lambda: search(params, prompt_QP), repeats),
    "rollouts": seconds(lambda: sample(params, prompt_BP), repeats),
    "update": seconds(lambda: update(params, batch), repeats),
  }
  for name, value in parts.items():
    table.note(name, value, "s", floor=value / floors[name])
  chunk = iteration.make_train_loop(graphdef, task, learner_config)
  prompt_IQP = jnp.broadcast_to(prompt_QP, (config.iterations_per_call, S, P))

  def whole():
    # The loop donates its state.
    state = iteration.init_state(learner_config, jax.tree.map(jnp.copy, params))
    return chunk(state, prompt_IQP, params, hyper, key)

  total = seconds(whole, repeats) / config.iterations_per_call
  table.note(
    "whole iteration", total, "s", sum_of_parts=total / sum(parts.values())
  )

  for name, changes, iterations in (
    (
      f"{config.iterations_per_call} iterations",
      {},
      config.iterations_per_call,
    ),
    ("1 iteration", {}, 1),
    (
      "8 simulations",
      {"search.num_simulations": "8"},
      config.iterations_per_call,
    ),
  ):
    changed = config_lib.override(config, changes)
    took, size = compiled_size(changed, graphdef, params, task, iterations)
    if not changes and iterations == config.iterations_per_call:
      whole_size = size
    table.note(f"compile, {name}", took, "s")
    table.note(
      f"program, {name}", size, "instructions", first=size / whole_size
    )

  wall, busy = host_loop(config)
  table.note("host overhead", wall - busy, "s", whole=(wall - busy) / wall)
  command = config_lib.command("experiments.benchmarks.loop", workdir=False)
  table.write(_OUTPUT.value, command)


if __name__ == "__main__":
  config_lib.run(main)
