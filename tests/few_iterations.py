"""A few real iterations of an experiment, in this process and in memory."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tsd_jax.base.types import Prompts
from tsd_jax.learning import iteration
from tsd_jax.learning.update import FixedParams
from tsd_jax.parallel import sharding
from tsd_jax.run.experiment import Experiment, initial_params
from tsd_jax.tasks import data


class Ran(NamedTuple):
  """What the loop was given, and what it gave."""

  graphdef: Any
  before: Any  # Parameters, NumPy.
  state: iteration.TrainState
  fixed: FixedParams  # The very arrays that the loop was given.
  metrics: dict[str, Any]  # NumPy, leading with I.
  prompts: Prompts  # I batches.


def run(config: Experiment, iterations: int = 2, **loop) -> Ran:
  """Trains for some iterations in one call.

  Args:
    config: the run.
    iterations: I.
    **loop: more of `make_train_loop`: mesh, vmapped.
  """
  graphdef, params = initial_params(config)
  before = jax.device_get(params)
  task, learner = config.make_task(), config.learner_config()
  problems = data.load_problems(config.task, "train")
  batches = data.PromptIterator(
    problems, batch_size=learner.prompts, seed=config.seed
  ).next_batches(iterations)
  fixed = FixedParams(jax.tree.map(jnp.copy, params), task.reward.load())
  state = iteration.init_state(learner, params, config.seed)
  hyper = {k: jnp.float32(v) for k, v in learner.hyper.items()}
  key = jax.random.key(config.seed)
  if mesh := loop.get("mesh"):
    state, fixed = sharding.place((state, fixed), mesh)
    batches = jax.device_put(batches, sharding.over_prompts(mesh, leading=1))
  inputs = [state, batches, fixed, hyper, key]
  if loop.get("vmapped"):  # Two runs alike.
    inputs = [jax.tree.map(lambda a: jnp.stack([a, a]), x) for x in inputs]
  state, metrics = iteration.make_train_loop(graphdef, task, learner, **loop)(
    *inputs
  )
  return Ran(
    graphdef,
    before,
    jax.device_get(state),
    inputs[2],
    jax.device_get(metrics),
    jax.device_get(batches),
  )


def eight_and_one(
  config: Experiment, mesh: sharding.MeshConfig
) -> tuple[Ran, Ran]:
  """Two iterations on a mesh of eight devices, and the same on one."""
  config = dataclasses.replace(
    config,
    mesh=mesh,
    optimizer=dataclasses.replace(config.optimizer, minibatches=1),
    search=dataclasses.replace(config.search, trees=2),
  )
  return (
    run(config, 2, mesh=sharding.make_mesh(mesh)),
    run(dataclasses.replace(config, mesh=sharding.ONE_DEVICE), 2),
  )


def moved(ran: Ran) -> float:
  """How far the farthest parameter has moved."""
  return max(
    float(np.abs(a - b).max())
    for a, b in zip(
      jax.tree.leaves(ran.before),
      jax.tree.leaves(ran.state.params),
      strict=True,
    )
  )
