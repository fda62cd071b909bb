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
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx

from experiments.benchmarks.floor import floor_seconds, seconds
from experiments.benchmarks.table import Table
from tsd_jax.base import config as config_lib
from tsd_jax.learning.update import FixedParams
from tsd_jax.tasks.task import as_prompts

_CONFIG = flags.DEFINE_string(
  "config", "experiments/countdown_balanced.py", "Experiment file."
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timings; the median counts.")
_OUTPUT = config_lib.path_flag("output", None, "JSON file to write.")


def repeated(prompts, iterations):
  """The same batch of prompts for several iterations."""
  return jax.tree.map(
    lambda a: jnp.broadcast_to(a, (iterations, *a.shape)), prompts
  )


def fixed_of(params, task):
  """What an iteration reads and does not change."""
  return FixedParams(params, task.reward.load())


def compiled_size(config, graphdef, params, task, iterations):
  """Seconds to compile the loop, and instructions in the result."""
  from tsd_jax.learning import iteration

  learner_config = config.learner_config()
  state = iteration.init_state(learner_config, params)
  hyper = {k: jnp.float32(v) for k, v in learner_config.hyper.items()}
  prompts = jax.eval_shape(
    lambda: repeated(
      as_prompts(
        task,
        jnp.zeros((learner_config.prompts, task.prompt_length), jnp.int32),
      ),
      iterations,
    )
  )
  train_loop = iteration.make_train_loop(graphdef, task, learner_config)
  key = jax.random.key(0)
  jax.clear_caches()  # The loop was compiled before, to be timed.
  start = time.perf_counter()
  compiled = train_loop.lower(
    state, prompts, fixed_of(params, task), hyper, key
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
    train_loop = make(*args)

    def run(*args):
      start = time.perf_counter()
      result = jax.block_until_ready(train_loop(*args))
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
  # The row before the first call, and the first, which compiles, are left out.
  return stamps[-1] - stamps[1], sum(times[1:])


class Setup(NamedTuple):
  """What every part is timed with."""

  config: Any
  learner: Any
  task: Any
  graphdef: Any
  params: Any
  prompts: Any
  repeats: int

  def seconds(self, function):
    """Time of a call."""
    return seconds(function, self.repeats)


def set_up(config, repeats):
  """The experiment from its start, with the prompts of an iteration."""
  from tsd_jax.run.experiment import initial_params
  from tsd_jax.tasks import data

  learner = config.learner_config()
  graphdef, params = initial_params(config)
  prompts = data.load_problems(config.task, "train")[: learner.prompts]
  return Setup(
    config,
    learner,
    config.make_task(),
    graphdef,
    params,
    jax.tree.map(jnp.asarray, prompts),
    repeats,
  )


def time_parts(setup):
  """Seconds of search, rollouts and update; token rows that the search ran."""
  from tsd_jax.learning import iteration
  from tsd_jax.learning import update as update_lib

  _, learner, task, graphdef, params, prompts, _ = setup
  key = jax.random.key(0)
  hyper = {k: jnp.float32(v) for k, v in learner.hyper.items()}
  program = iteration.Program(graphdef, None, task, learner, None)
  state = iteration.init_state(learner, params)
  fixed = fixed_of(params, task)

  @jax.jit
  def search(search_params, fixed, prompts):
    return iteration.search_phase(program, search_params, prompts, fixed, key)

  @jax.jit
  def sample(state, fixed, prompts):
    return iteration.sample_phase(program, state, prompts, fixed, key)

  own = prompts[: learner.rollout.prompts]
  responses, *_ = sample(state, fixed, own)
  found, searched, _ = search(state.search_params, fixed, prompts)
  batch = iteration.make_batch(
    program, own, responses,
    iteration.choose_distillation_batch(key, prompts, found, learner),
  )  # fmt: skip

  @jax.jit
  def update(carry, fixed, batch):
    return update_lib.update(graphdef, carry, fixed, batch, key, hyper, learner)

  carry = state.params, state.opt_state
  parts = {
    "search": setup.seconds(
      lambda: search(state.search_params, fixed, prompts)
    ),
    "rollouts": setup.seconds(lambda: sample(state, fixed, own)),
    "update": setup.seconds(lambda: update(carry, fixed, batch)),
  }
  return parts, int(searched.forwards)


def time_floors(setup, searched):
  """Seconds that the weight multiplications of each part take alone.

  Args:
    setup: the experiment.
    searched: token rows of the search.
  """
  config, learner, task, graphdef, params, prompts, repeats = setup
  floor = functools.partial(
    floor_seconds, nnx.merge(graphdef, params), repeats=repeats
  )
  Q, B, C = len(prompts), learner.rollout.prompts, learner.distilled_prompts
  M, P, T = config.loss.champions, task.prompt_length, task.response_length
  o, r = config.optimizer, learner.rollout
  forks, trees = r.group - r.samples, min(config.search.trees, Q)
  return {
    "search": floor(trees, searched // trees) + floor(Q * P, 1),
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


def time_whole(setup):
  """Seconds of an iteration of the whole loop."""
  from tsd_jax.learning import iteration

  config, learner, task, graphdef, params, prompts, _ = setup
  train_loop = iteration.make_train_loop(graphdef, task, learner)
  hyper = {k: jnp.float32(v) for k, v in learner.hyper.items()}
  calls = config.iterations_per_call
  prompts, fixed = repeated(prompts, calls), fixed_of(params, task)

  def whole():
    # The loop donates its state.
    state = iteration.init_state(learner, jax.tree.map(jnp.copy, params))
    return train_loop(state, prompts, fixed, hyper, jax.random.key(0))

  return setup.seconds(whole) / calls


def note_compilations(setup, table):
  """Time to compile, and size against iterations and simulations."""
  calls = setup.config.iterations_per_call
  first = None
  for name, changes, iterations in (
    (f"{calls} iterations", {}, calls),
    ("1 iteration", {}, 1),
    ("8 simulations", {"search.num_simulations": "8"}, calls),
  ):
    changed = config_lib.override(setup.config, changes)
    took, size = compiled_size(
      changed, setup.graphdef, setup.params, setup.task, iterations
    )
    first = first or size
    table.note(f"compile, {name}", took, "s")
    table.note(f"program, {name}", size, "instructions", first=size / first)


def main(overrides):
  """Prints the table and writes the JSON."""
  config = config_lib.from_flags(_CONFIG.value, overrides, "Experiment")
  # A compilation read from the cache would be no compilation.
  jax.config.update("jax_enable_compilation_cache", False)
  from tsd_jax.base import progress

  progress.quiet_libraries()
  setup, table = set_up(config, _REPEATS.value), Table()
  parts, searched = time_parts(setup)
  floors = time_floors(setup, searched)
  for name, value in parts.items():
    table.note(name, value, "s", floor=value / floors[name])
  total = time_whole(setup)
  table.note(
    "whole iteration", total, "s", sum_of_parts=total / sum(parts.values())
  )
  note_compilations(setup, table)
  wall, busy = host_loop(config)
  table.note("host overhead", wall - busy, "s", whole=(wall - busy) / wall)
  command = config_lib.command("experiments.benchmarks.loop", workdir=False)
  table.write(_OUTPUT.value, command)


if __name__ == "__main__":
  config_lib.run(main)
