"""Four numbers, searched with a value that knows what can still be reached.

Purpose: the recipe of countdown4.py from a start whose V_search was taught by
random play (`recipes/relabelled_value.py`), with 48 nodes instead of 64 and no
state twice (`search.rule.transpositions`). The policy of that start is the old
one (mean@16 .017); trees of 64 nodes solve .36 instead of .19 of the problems
(both validation). The start is made by

  python -m experiments.relabelled_value --config=experiments/countdown4.py
    --config.task.tuning_size=512
    --output=experiments/starts/value_start_4.safetensors

in 27 minutes on a core that other work shared; it is, like the warm start, of
no method's tokens, as all methods may begin there.

Command: python -m launch.train --config=experiments/countdown4_value.py
  --workdir=DIR
"""

from tsd_jax.models import presets
from tsd_jax.run.experiment import Experiment
from tsd_jax.search.best_first import BestFirst
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.countdown import CountdownConfig


def get_config() -> Experiment:
  """The run."""
  return Experiment(
    task=CountdownConfig(numbers=4),
    model=presets.TINY,
    init="experiments/starts/value_start_4.safetensors",
    search=SearchConfig(
      BestFirst(transpositions=True), num_simulations=48, leaf="value"
    ),
  )
