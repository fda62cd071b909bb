"""SmolLM2-135M-Instruct learns a small task in text, in minutes on a CPU.

Purpose: the shortest whole example of a task of your own. Copy three files:
`experiments/recipes/text_example.jsonl` has the problems, one a line, a chat
with three worked examples that ends with a number ("436") and the number after
it as the answer (437); `experiments/recipes/text_example_reward.py` is the
reward; this one sets sizes that two cores are enough for.

mean@8 of 64 held-out problems goes from .139 to .902 in three iterations and to
.938 in six (`tsd_jax/models/README.md`).

Cost: 8 GiB of memory and 253 processor seconds, compiling included.

Command:
  pip install -e '.[text]'
  python -m experiments.recipes.fetch_smollm2
  python -m launch.train --config=experiments/text_example.py --workdir=DIR
Baseline: add --config.algorithm=ppo (the same loop without search).
"""

from experiments.recipes import fetch_smollm2
from experiments.recipes.text_example_reward import reward
from tsd_jax.base.paths import ROOT
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
      file=str(ROOT / "experiments" / "recipes" / "text_example.jsonl"),
      tokenizer=model,
      reward=reward,
      prompt_length=72,
      response_length=5,
      validation_size=64,
      test_size=64,
    ),
    init=model,
    model=None,
    iterations=6,
    iterations_per_call=1,
    rollout=RolloutConfig(prompts=8, baseline_prompts=8),
    search=SearchConfig(num_simulations=16, width=4, trees=32),
    loss=LossConfig(distilled_prompts=16),
    optimizer=OptimizerConfig(
      learning_rate=3e-5, linear_decay=True, minibatches=2
    ),
    eval=EvalConfig(every=3, modes="mean@8"),
  )
