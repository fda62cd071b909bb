"""A start that also says "I don't know": `?`, at random.

A quarter of the examples stop at a random token and say `?` instead of what
comes next, so that what learns on policy has something to begin with; when to
say it is not taught. Everything else is as in `warm_start.py`, whose result is
where this begins. Games of symbols alone.

Command (two minutes on one core; writes 1 MB):

  python -m experiments.recipes.abstaining_start
    --config=experiments/abstention.py
    --start=experiments/starts/warm_start_3.safetensors
"""

import pathlib

import numpy as np
from absl import flags

from experiments.recipes import starts
from tsd_jax.base import config as config_lib
from tsd_jax.base import progress
from tsd_jax.learning import supervised
from tsd_jax.models import symbols, transformer, weights
from tsd_jax.run.experiment import find_init

_BATCH, _RELABELLED, _ABSTAINS, _RATE = 256, 0.3, 0.25, 5e-4


def stopped(
  response_IBT: np.ndarray, share: float, rng: np.random.Generator
) -> np.ndarray:
  """Responses of which a share ends in `?` at a random token.

  Args:
    response_IBT: whole responses.
    share: of them that stop.
    rng: advanced by the call.
  """
  *lead, T = response_IBT.shape
  stops_IB1 = rng.random((*lead, 1)) < share
  cut_IB1 = rng.integers(0, T - 1, (*lead, 1))  # Room for the end token.
  at_T = np.arange(T)
  short_IBT = np.select(
    [at_T < cut_IB1, at_T == cut_IB1, at_T == cut_IB1 + 1],
    [response_IBT, symbols.UNSURE, symbols.EOS],
    symbols.PAD,
  )
  # A short response may have ended before.
  ended_IB1 = np.any(
    (response_IBT == symbols.EOS) & (at_T < cut_IB1), axis=-1, keepdims=True
  )
  chosen_IBT = np.where(stops_IB1 & ~ended_IB1, short_IBT, response_IBT)
  return chosen_IBT.astype(np.int32)


def main(overrides):
  """Trains and writes the file."""
  progress.quiet_libraries()
  experiment = config_lib.from_flags(_CONFIG.value, overrides, "Experiment")
  config, rng = experiment.task, np.random.default_rng(_SEED.value)
  prompt_IBP, response_IBT = supervised.draw(
    config, rng, _STEPS.value, _BATCH, _RELABELLED, supervised.held_out(config)
  )
  examples = prompt_IBP, stopped(response_IBT, _ABSTAINS, rng)
  graphdef, params = transformer.create(experiment.shape, 0)
  start = find_init(config_lib.required(_START))
  params, metadata = weights.load(start, params)
  params = supervised.train(
    graphdef, params, [[examples]], tasks=[config.make()], learning_rate=_RATE
  )
  output = starts.place(_OUTPUT.value, experiment, _CONFIG.value)
  weights.save(output, params, metadata=metadata | {"abstains": "0.25"})
  print(f"wrote {output}, {pathlib.Path(output).stat().st_size:,} bytes")


if __name__ == "__main__":  # Others import it: no flags for them.
  _CONFIG = flags.DEFINE_string(
    "config", "experiments/abstention.py", "Experiment file: task, model, init."
  )
  _OUTPUT = config_lib.path_flag(
    "output", None, "File to write; the experiment's init by default."
  )
  _START = flags.DEFINE_string("start", None, "Weights to begin with.")
  _STEPS = flags.DEFINE_integer("steps", 300, "Of 256 examples.", lower_bound=1)
  _SEED = flags.DEFINE_integer("seed", 7, "Of the examples.")
  config_lib.run(main)
