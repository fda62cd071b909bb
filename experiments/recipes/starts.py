"""How starts are taught: what `warm_start.py` runs, and the law's study."""

from typing import NamedTuple

import numpy as np

from tsd_jax.base.errors import UserError
from tsd_jax.base.paths import ROOT
from tsd_jax.learning import supervised
from tsd_jax.models import transformer, weights
from tsd_jax.run.experiment import Experiment


class Examples(NamedTuple):
  """What a start is taught with."""

  steps: tuple[int, int]  # Of each phase.
  relabel_fraction: float  # Of the prompts of phase two.
  batch: int = 256


def place(given: str | None, experiment: Experiment, file: str) -> str:
  """Where a start is written: the file that was named, or the run's init.

  Args:
    given: the file, or None.
    experiment: whose start it is.
    file: of the experiment, for the message.

  Raises:
    UserError: neither is there.
  """
  if given is not None:
    return given
  if experiment.init is None:
    raise UserError(f"{file} has no init: name a file, --output=")
  return str(ROOT / experiment.init)


def make(
  experiment: Experiment,
  output: str,
  examples: Examples,
  learning_rate: float = 2e-3,
  seed: int = 0,
) -> None:
  """Trains a start and writes it.

  Args:
    experiment: its task and model.
    output: the file.
    examples: what it is taught with.
    learning_rate: the highest.
    seed: of initialisation and data.
  """
  config = experiment.task
  excluded = supervised.held_out(config)
  rng, phases = np.random.default_rng(seed), []
  fractions = (0.0, examples.relabel_fraction)
  for steps, fraction in zip(examples.steps, fractions, strict=True):
    if steps:
      drawn = supervised.draw(
        config, rng, steps, examples.batch, fraction, excluded
      )
      phases.append([drawn])
  graphdef, params = transformer.create(experiment.model, seed)
  params = supervised.train(
    graphdef, params, phases, tasks=[config.make()], learning_rate=learning_rate
  )
  metadata = {
    "task": f"{config.make().name}, {config.dataset}",
    "phases": f"{examples.steps} steps of {examples.batch} examples",
    "relabel_fraction": str(examples.relabel_fraction),
    "seed": str(seed),
    "value_trained": "false",
  }
  weights.save(output, params, metadata=metadata)
