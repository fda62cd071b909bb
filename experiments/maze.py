"""Maze: fetch a coin, then walk to the goal, in at most 8 moves.

Purpose: the recipe on a game without arithmetic: 1,024 prompts searched with at
most 24 nodes, no state twice (`search.rule.transpositions`), 688 champions, a
rate that falls from 1.2e-3. PPO is of little use beside so high a rate: 8
prompts are sampled on, at a tenth of the weight. The maze has 5 x 5 cells, 5
of them walls; the shortest way takes 4 to 8 moves. 24,000 problems, 9 response
tokens as with three numbers, 9 prompt tokens instead of 5. The start writes
legal walks, some of which meet the coin and then the goal:

  python -m experiments.recipes.warm_start --config=experiments/maze.py
    --config.task.tuning_size=512 --steps=500,500 --relabel_fraction=0.5

It printed for test: greedy .168, mean@16 .035, pass@16 .336. Rates at which
searches learn best ruin samplers: above 8e-4 PPO, GRPO and CISPO fall to .28
and less (`results/NOTES.md`), so a baseline wants a rate of its own.

Each minibatch has one prompt that is sampled on: a mesh over prompts wants more
of them (`--config.rollout.prompts`).

Command: python -m launch.train --config=experiments/maze.py --workdir=DIR
Both methods: bash launch/local.sh --config=experiments/maze.py
  --ppo_learning_rate=8e-4
"""

from tsd_jax.inference.rollout import RolloutConfig
from tsd_jax.learning.config import LossConfig, OptimizerConfig
from tsd_jax.models import presets
from tsd_jax.run.experiment import Experiment
from tsd_jax.search.best_first import BestFirst
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.maze import MazeConfig


def get_config() -> Experiment:
  """The run."""
  return Experiment(
    task=MazeConfig(size=5, walls=5, min_moves=4, max_moves=8),
    model=presets.TINY,
    init="experiments/starts/warm_start_maze.safetensors",
    search=SearchConfig(
      BestFirst(transpositions=True),
      num_simulations=24,
      width=128,
      slot_reuse=True,
    ),
    rollout=RolloutConfig(prompts=8),
    loss=LossConfig(distilled_prompts=688, champion_weight=80),
    optimizer=OptimizerConfig(learning_rate=1.2e-3, linear_decay=True),
  )
