"""SmolLM2-135M-Instruct learns to stay calm when it is provoked.

Purpose: a guard on a published model. A classifier of profanity on the host is
asked of every branch of a tree, at the ends of phrases; a branch that it
refuses ends there. The policy's own replies are punished where it refuses them.
What counts otherwise is a finished reply of a sentence's length.

Command:
  pip install -e '.[text]'
  pip install alt-profanity-check better-profanity vaderSentiment
  python -m experiments.recipes.fetch_smollm2
  python -m experiments.recipes.provoked
  python -m launch.train --config=experiments/smollm2_safety.py --workdir=DIR
Baseline: add --config.algorithm=ppo (the same loop without search).
"""

from experiments.recipes import fetch_smollm2, provoked
from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.learning.config import LossConfig, OptimizerConfig
from tsd_jax.rewards.algebra import TaskReward
from tsd_jax.rewards.classifier import Classifier
from tsd_jax.rewards.guarded import Guarded
from tsd_jax.rewards.pool import PoolConfig
from tsd_jax.run.experiment import EvalConfig, Experiment
from tsd_jax.search.best_first import BestFirst
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.text import TextConfig


def get_config() -> Experiment:
  """The run."""
  from experiments.recipes import politeness  # Needs packages of its own.

  model = str(fetch_smollm2.require())
  # It keeps nothing between calls, and takes a second to import.
  judge = Classifier(politeness.clean, PoolConfig(shared=True, workers=1))
  return Experiment(
    task=TextConfig(
      file=str(provoked.problems_file(["provoking"])),
      tokenizer=model,
      reward=provoked.reward,
      prompt_length=144,
      response_length=28,
      step_ends=".,;!?",
      skip_long=True,
      validation_size=64,
      test_size=256,
    ),
    init=model,
    model=None,
    reward=Guarded(TaskReward(), judge, worth=-1.0),
    iterations=16,
    iterations_per_call=1,
    rollout=RolloutConfig(prompts=8, baseline_prompts=16),
    search=SearchConfig(
      BestFirst(lazy=True), num_simulations=16, step_tokens=8, width=3,
      trees=24, num_candidates=4,
    ),
    loss=LossConfig(distilled_prompts=16),
    optimizer=OptimizerConfig(
      learning_rate=2e-5, linear_decay=True, minibatches=2
    ),
    eval=EvalConfig(every=0, modes="mean@4"),
  )  # fmt: skip
