"""SmolLM2-135M-Instruct learns Countdown in words.

Purpose: tree search distillation of a published language model: a chat prompt
with four worked examples, two numbers in 1..20, answers in text graded by a
Python function. An iteration searches 32 prompts (best-first over tokens, 24
nodes each), distils the champions of 16 that were solved, and takes PPO steps
on the 8 whose success the trees found least certain.

Cost: 10 GiB of memory, and half a minute an iteration on one core.

Command:
  pip install -e '.[text]'
  python -m experiments.recipes.fetch_smollm2
  python -m launch.train --config=experiments/smollm2_countdown.py --workdir=DIR
Baseline: add --config.algorithm=ppo (the same loop without search).
"""

from experiments.recipes import countdown_words, fetch_smollm2
from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.learning.config import LossConfig, OptimizerConfig
from tsd_jax.run.experiment import EvalConfig, Experiment
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.text import TextConfig


def get_config() -> Experiment:
  """The run."""
  model = str(fetch_smollm2.require())
  return Experiment(
    task=TextConfig(
      file=str(countdown_words.problems_file(numbers=2, max_number=20)),
      tokenizer=model,
      reward=countdown_words.reward,
      prompt_length=140,
      response_length=12,
      validation_size=64,
      test_size=96,
    ),
    init=model,
    model=None,
    iterations=20,
    rollout=RolloutConfig(prompts=8, baseline_prompts=8),
    search=SearchConfig(num_simulations=24, width=4, trees=32),
    loss=LossConfig(
      distilled_prompts=16, success_weight=0.1
    ),  # As in its tables.
    optimizer=OptimizerConfig(
      learning_rate=1e-5, linear_decay=True, minibatches=2
    ),
    eval=EvalConfig(every=10),
  )
