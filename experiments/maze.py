"""Maze: fetch a coin, then walk to the goal, in at most 8 moves.

Purpose: the default recipe, with 24 nodes, on a game without arithmetic. The
maze has 5 x 5 cells, 5 of them walls; the shortest way takes 4 to 8 moves.
24,000 problems, 9 response tokens as with three numbers, 9 prompt tokens
instead of 5. The start writes legal walks, some of which meet the coin and then
the goal:

  python -m experiments.warm_start --config=experiments/maze.py
    --steps=500,500 --hindsight=0.5

It printed for test: greedy .203, mean@16 .043, pass@16 .385. Seed 100, mean@16
on validation after 10, 20 and 30 iterations: tsd .37, .51, .58 on 75,000 ledger
tokens an iteration; at their best learning rates ppo .07, .11, .20 and grpo
.07, .12, .18 on 50,000.

Command: python -m launch.train --config=experiments/maze.py --workdir=DIR
Both methods: bash launch/local.sh --config=experiments/maze.py
"""

from tsd_jax.experiment import Experiment
from tsd_jax.methods import LossConfig, OptimizerConfig
from tsd_jax.models import presets
from tsd_jax.rollout import RolloutConfig
from tsd_jax.search.tree import SearchConfig
from tsd_jax.tasks.maze import MazeConfig


def get_config() -> Experiment:
  """The run."""
  return Experiment(
    task=MazeConfig(size=5, walls=5, min_moves=4, max_moves=8),
    model=presets.TINY,
    init="experiments/warm_start_maze.safetensors",
    search=SearchConfig(num_simulations=24, width=32, transpositions=True),
    rollout=RolloutConfig(prompts=32),
    loss=LossConfig(lessons=584),
    optimizer=OptimizerConfig(learning_rate=1.2e-3, linear_decay=True),
  )
