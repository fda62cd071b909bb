"""Maze: fetch a coin, then walk to the goal, in at most 12 moves.

Purpose: the default recipe, unchanged, on a game without arithmetic. The maze
has 6 x 6 cells, 8 of them walls; the shortest way takes 8 to 12 moves. 24,000
problems, 13 response tokens as with four numbers, 12 prompt tokens instead of
6. The start writes legal walks that seldom meet the coin and then the goal:

  python -m experiments.warm_start --config=experiments/maze.py --batch=128
    --steps=800,600 --hindsight=0.5

Not measured yet: what 60 iterations reach, so the sizes are not tuned.

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
