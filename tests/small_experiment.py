"""A run that compiles in seconds: the real loop at toy sizes."""

from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.learning.config import LossConfig, OptimizerConfig
from tsd_jax.models.transformer import ModelConfig
from tsd_jax.run.experiment import EvalConfig, Experiment
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.countdown import CountdownConfig


def get_config() -> Experiment:
  """The run."""
  return Experiment(
    task=CountdownConfig(numbers=3),
    model=ModelConfig(
      vocab_size=208,
      d_model=16,
      num_layers=1,
      num_heads=2,
      num_kv_heads=1,
      head_dim=8,
      d_mlp=16,
      number_tokens=200,
    ),  # fmt: skip
    iterations=6,
    iterations_per_call=1,
    checkpoint_every=2,
    rollout=RolloutConfig(prompts=8, baseline_prompts=8),
    search=SearchConfig(num_simulations=8, width=2, trees=8),
    # The success head learns, though nothing reads it: some tests do.
    loss=LossConfig(distilled_prompts=8, success_weight=0.1),
    optimizer=OptimizerConfig(minibatches=2),
    eval=EvalConfig(every=2, modes="greedy,mean@2"),
  )
