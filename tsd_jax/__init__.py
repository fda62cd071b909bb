"""Tree Search Distillation of language models in JAX.

  import tsd_jax as tsd
  model = tsd.load_model("SmolLM2-135M-Instruct.gguf")
  tree = tsd.search(
    model, "2 + 3 =", reward=lambda prompt, response: float("5" in response)
  )
  print(tree)
  print(tree.champion)

Names are loaded when they are first used: the import alone starts no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from tsd_jax.api import (
    PUCT,
    Answer,
    BestFirst,
    EvalConfig,
    Experiment,
    Gumbel,
    LossConfig,
    Model,
    OptimizerConfig,
    RolloutConfig,
    Run,
    Sample,
    Score,
    SearchConfig,
    Tree,
    UserError,
    evaluate,
    export,
    load_model,
    load_run,
    sample,
    search,
    train,
  )

__version__ = "0.2.0"

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


def __getattr__(name: str) -> Any:
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  api = importlib.import_module("tsd_jax.api")
  # `search` is then there already: the package of that name, which can be
  # called (`tsd_jax/search/__init__.py`), for imports set it whenever they run.
  return globals().setdefault(name, getattr(api, name))


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
