"""What a finished tree says of steps: where solved and failed answers part."""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tsd_jax.search.view import TreeNode


class BranchPair(NamedTuple):
  """Two answers that part after some tokens; the end token is left out."""

  solved: tuple[int, ...]
  failed: tuple[int, ...]
  shared: int  # How many tokens both begin with.


def branch_pairs(
  nodes: Mapping[int, TreeNode], solved_at: float = 1.0
) -> list[BranchPair]:
  """Solved against failed branches of one node (Step-DPO, arXiv:2406.18629).

  A failed answer parts from the solved ones at a last place: up to there an
  answer could still be found, and none was found beyond it. It is paired with
  the likeliest solved answer that goes through that place, and of the failed
  ones that part at one place the likeliest is taken. What a pair has in common
  cancels in `losses.dpo`, so that the step after it is what is learned.

  Args:
    nodes: of a tree, as `view.nodes_of` reads it.
    solved_at: the reward, on the tree's scale from 0 to 1, that solves.

  Returns:
    The pairs, of the likeliest failed answers first.
  """
  found = {n.answer: n for n in nodes.values() if n.answer is not None}
  ranked = sorted(
    found.items(), key=lambda item: (-item[1].answer_log_prob, item[0])
  )
  bar = np.float32(solved_at)  # As the tree has its rewards.
  solved = [a for a, n in ranked if (n.reward or 0.0) >= bar]
  failed = [a for a, n in ranked if (n.reward or 0.0) < bar]
  pairs: dict[tuple[int, ...], BranchPair] = {}
  for theirs in failed if solved else ():
    ours = max(solved, key=lambda answer: _shared(answer, theirs))
    shared = _shared(ours, theirs)
    pairs.setdefault(theirs[:shared], BranchPair(ours, theirs, shared))
  return list(pairs.values())


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
  """How many tokens both begin with."""
  pairs = zip(one, other, strict=False)
  same = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
  return sum(1 for _ in same)
