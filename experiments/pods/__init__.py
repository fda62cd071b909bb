"""Published shapes, each with the TPU slice that it is planned for.

A file a shape; what they share is here. Countdown stands for the task, in the
model's own vocabulary; replace it by yours to plan for its lengths.
"""

import dataclasses

from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.learning.config import LossConfig, OptimizerConfig
from tsd_jax.models.transformer import ModelConfig
from tsd_jax.parallel.sharding import MeshConfig
from tsd_jax.run.experiment import Experiment
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.countdown import CountdownConfig


def experiment(
  model: ModelConfig, mesh: MeshConfig, prompts: int
) -> Experiment:
  """The default recipe in bfloat16, searching four times as many prompts.

  Args:
    model: the shape.
    mesh: the slice's devices.
    prompts: how many the policy samples on in an iteration.
  """
  return Experiment(
    task=CountdownConfig(numbers=4),
    model=dataclasses.replace(model, compute_dtype="bfloat16", remat=True),
    rollout=RolloutConfig(prompts=prompts, baseline_prompts=prompts),
    search=SearchConfig(width=4),
    loss=LossConfig(distilled_prompts=prompts),
    optimizer=OptimizerConfig(learning_rate=1e-5, minibatches=4),
    mesh=mesh,
  )
