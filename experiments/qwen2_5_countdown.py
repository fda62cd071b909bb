"""Qwen2.5-1.5B-Instruct learns Countdown with four numbers, in thought.

Purpose: the setting of the published report on tree search distillation: four
numbers in 1..13, the model thinks in lines and then answers; the search's moves
are lines. An iteration searches 128 prompts (best-first over lines of at most
40 tokens, drawn as they are tried, 96 nodes), distils the champions of 32, and
takes PPO steps on the 16 prompts whose success the trees found least certain.

For a host of eight 80 GB GPUs, or eight chips of a TPU v5e, where it needs 9.4
GiB of each (`launch.aot --topology=v5e:2x4 --effort=quick`); in bfloat16.
Nobody has run it at this size; a tiny model of the same kind runs through it in
`tests/qwen_test.py`.

Command (the folder holds the published model; JAX for GPUs: the extra cuda12):
  pip install -e '.[text]'
  export QWEN2_5_FOLDER=FOLDER
  python -m launch.train --config=experiments/qwen2_5_countdown.py --workdir=DIR
Adapters instead of all weights: --config.lora.rank=32, and a higher rate.
"""

import dataclasses
import os
import pathlib

from experiments.recipes import countdown_words
from tsd_jax.base.errors import UserError
from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.learning.config import LossConfig, OptimizerConfig
from tsd_jax.models import pretrained
from tsd_jax.parallel.sharding import MeshConfig
from tsd_jax.run.experiment import EvalConfig, Experiment
from tsd_jax.search.best_first import BestFirst
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.text import TextConfig


def get_config() -> Experiment:
  """The run."""
  model = pathlib.Path(os.environ.get("QWEN2_5_FOLDER", "")).expanduser()
  if not (model / "config.json").is_file():
    raise UserError(
      f"QWEN2_5_FOLDER={model} is no model: set it to the folder of "
      "Qwen2.5-1.5B-Instruct (config.json, safetensors, tokenizer.json)"
    )
  file = countdown_words.problems_file(4, 13, think=True, most=16_384)
  return Experiment(
    task=TextConfig(
      file=str(file),
      tokenizer=str(model),
      reward=countdown_words.reasoned,
      prompt_length=128,
      response_length=256,
      validation_size=256,
      test_size=1_024,
    ),
    init=str(model),
    model=dataclasses.replace(
      pretrained.read_card(model).config, compute_dtype="bfloat16", remat=True
    ),
    iterations=200,
    iterations_per_call=1,
    rollout=RolloutConfig(prompts=16, baseline_prompts=16),
    search=SearchConfig(
      num_simulations=96,
      step_tokens=40,
      rule=BestFirst(lazy=True),
      width=8,
      trees=16,
    ),
    loss=LossConfig(distilled_prompts=32),
    optimizer=OptimizerConfig(
      learning_rate=1e-6, linear_decay=True, minibatches=2
    ),
    eval=EvalConfig(every=20, modes="greedy,mean@4"),
    mesh=MeshConfig(fsdp=8),
  )
