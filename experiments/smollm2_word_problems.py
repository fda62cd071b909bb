"""SmolLM2-135M-Instruct learns word problems of school arithmetic.

Purpose: does a search teach a published language model to *reason* better where
the problems are text that people wrote? ASDiv, four worked examples before each
problem, a sum and an answer to write, an exact verifier of the answer.

Command:
  pip install -e '.[text]'
  python -m experiments.recipes.fetch_smollm2
  python -m experiments.recipes.word_problems
  python -m launch.train --config=experiments/smollm2_word_problems.py
    --workdir=DIR
Baseline: add --config.algorithm=grpo (the same loop without search).
"""

from experiments.recipes import fetch_smollm2, word_problems
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
      file=str(word_problems.problems_file()),
      tokenizer=model,
      reward=word_problems.reward,
      prompt_length=320,
      response_length=32,
      skip_long=True,
      validation_size=128,
      test_size=256,
      tuning_size=128,
    ),
    init=model,
    model=None,
    iterations=20,
    rollout=RolloutConfig(prompts=8, baseline_prompts=8),
    search=SearchConfig(
      num_simulations=64, width=16, trees=64, slot_reuse=True
    ),
    loss=LossConfig(distilled_prompts=64),
    optimizer=OptimizerConfig(
      learning_rate=1e-5, linear_decay=True, minibatches=4
    ),
    eval=EvalConfig(every=10),
  )
