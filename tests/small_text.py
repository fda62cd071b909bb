"""A run on a text task that compiles in seconds."""

import dataclasses

from tests.grading import letters
from tests.published import make
from tests.small_experiment import get_config
from tests.text_tokenizer_test import write_folder
from tsd_jax.models import text_tokenizer
from tsd_jax.models.transformer import ModelConfig
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


def random_model(folder):
  """The small tokenizer, written to a folder, and a random model for it.

  Returns:
    tokenizer, config and params.
  """
  tokenizer = text_tokenizer.load(write_folder(folder / "tokenizer"))
  config = ModelConfig(
    vocab_size=tokenizer.vocab_size, d_model=16, num_layers=1, num_heads=2,
    num_kv_heads=1, head_dim=8, d_mlp=16,
  )  # fmt: skip
  return tokenizer, config, make(config)[1]
