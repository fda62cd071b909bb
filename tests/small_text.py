"""A run on a text task that compiles in seconds."""

import dataclasses

from tests.grading import letters
from tests.small_experiment import get_config
from tsd_jax.rewards.pool import PoolConfig
from tsd_jax.run.experiment import Experiment
from tsd_jax.tasks.text import TextConfig


def experiment(model: str, file: str) -> Experiment:
  """The run: a model's folder, its tokenizer inside, and a file of problems."""
  return dataclasses.replace(
    get_config(),
    task=TextConfig(
      file=file,
      tokenizer=model,
      reward=letters,
      prompt_length=48,
      response_length=8,
      correct_at=0.3,
      validation_size=8,
      test_size=4,
      grading=PoolConfig(workers=2),
    ),
    model=None,
    init=model,
    iterations=2,
  )
