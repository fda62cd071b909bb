"""Countdown with three numbers, where the verifier errs.

Purpose: who learns from a verifier that accepts 15 % of the legal answers that
are wrong? A tree looks for whatever is accepted, and so finds errors sooner
than samples do. Held-out problems are judged by the verifier that does not err;
rows say how often it errs among samples (`reward_mistaken`) and how often they
are right (`reward_right`).

Command: python -m launch.train --config=experiments/noisy.py --workdir=DIR
Errors made anew at each judgement, and three judgements of a response:
  --config.reward.reward.fixed=false --config.reward.calls=3
"""

import dataclasses

from experiments import countdown_balanced
from tsd_jax.rewards.algebra import TaskReward
from tsd_jax.rewards.noise import Confirmed, Noisy
from tsd_jax.run.experiment import Experiment


def get_config() -> Experiment:
  """The run."""
  experiment = countdown_balanced.get_config()
  noisy = Noisy(TaskReward(), accept=0.15, above=experiment.task.illegal)
  return dataclasses.replace(experiment, reward=Confirmed(noisy, calls=1))
