"""What `import tsd_jax as tsd` offers; `tsd_jax` loads it when it is used."""

from tsd_jax.api.model import Model, load_model
from tsd_jax.api.runs import Run, evaluate, export, load_run, train
from tsd_jax.api.sampling import Sample, sample
from tsd_jax.api.tree import Answer, Tree, search
from tsd_jax.base.errors import UserError
from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.learning.config import LossConfig, OptimizerConfig
from tsd_jax.rewards.reward import Score
from tsd_jax.run.experiment import EvalConfig, Experiment
from tsd_jax.search.best_first import BestFirst
from tsd_jax.search.config import SearchConfig
from tsd_jax.search.rules import PUCT, Gumbel

__all__ = [
  "Answer",
  "BestFirst",
  "EvalConfig",
  "Experiment",
  "Gumbel",
  "LossConfig",
  "Model",
  "OptimizerConfig",
  "PUCT",
  "RolloutConfig",
  "Run",
  "Sample",
  "Score",
  "SearchConfig",
  "Tree",
  "UserError",
  "evaluate",
  "export",
  "load_model",
  "load_run",
  "sample",
  "search",
  "train",
]
