"""SmolLM2-135M-Instruct learns Countdown with three numbers, on a GPU.

Purpose: tree search distillation of a published language model where its own
samples hardly ever succeed: three numbers in 1..13, asked in words, four worked
examples. An iteration searches 512 prompts (best-first over tokens, 32 nodes
each), distils the champions of 224 that were solved, and takes PPO steps on the
32 whose success the trees found least certain.

What every method reached: `tsd_jax/models/README.md`. Too dear for a CPU.

Command:
  pip install -e '.[text]'
  python -m experiments.recipes.fetch_smollm2
  python -m launch.train --config=experiments/smollm2_countdown3.py
    --workdir=DIR
Baseline: add --config.algorithm=ppo (the same loop without search).
"""

import dataclasses

from experiments import smollm2_countdown
from experiments.recipes import countdown_words
from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.learning.config import LossConfig, OptimizerConfig
from tsd_jax.run.experiment import EvalConfig, Experiment
from tsd_jax.search.config import SearchConfig


def get_config() -> Experiment:
  """The run."""
  two = smollm2_countdown.get_config()
  return dataclasses.replace(
    two,
    task=dataclasses.replace(
      two.task,
      file=str(countdown_words.problems_file(numbers=3, max_number=13)),
      prompt_length=192,
      response_length=16,
      validation_size=256,
      test_size=512,
    ),
    iterations=30,
    iterations_per_call=5,
    rollout=RolloutConfig(prompts=32, baseline_prompts=64),
    search=SearchConfig(num_simulations=32, width=16, trees=256),
    loss=LossConfig(
      distilled_prompts=224, success_weight=0.1
    ),  # As in its tables.
    optimizer=OptimizerConfig(learning_rate=3e-5, linear_decay=True),
    eval=EvalConfig(every=10),
  )
