"""Maze: fetch a coin, then walk to the goal, in at most 12 moves.

Purpose: the default recipe, unchanged, on a game without arithmetic. The maze
has 6 x 6 cells, 8 of them walls; the shortest way takes 8 to 12 moves. 24,000
problems, 13 response tokens as with four numbers, 12 prompt tokens instead of
6. The start writes legal walks that seldom meet the coin and then the goal:

  python -m experiments.warm_start --config=experiments/maze.py --batch=128
    --steps=800,600 --hindsight=0.5

It printed for validation: greedy .010, mean@16 .002, pass@16 .035. That is too
weak: Countdown's starts have .09 and .018. A longer warm start (3,000 steps of
256, as there) or shorter ways (`--config.task.min_moves=4`, which the same
start fits) come first. Not measured: what any method reaches from here.

Command: python -m launch.train --config=experiments/maze.py --workdir=DIR
Both methods: bash launch/local.sh --config=experiments/maze.py
"""

from tsd_jax.models import presets
from tsd_jax.tasks.maze import MazeConfig
from tsd_jax.train import Experiment


def get_config() -> Experiment:
  """The run."""
  return Experiment(
    task=MazeConfig(),
    model=presets.TINY,
    init="experiments/warm_start_maze.safetensors",
  )
