"""Where solved and failed answers part, against all pairs of answers."""

import hypothesis
import hypothesis.strategies as st
import numpy as np

from tsd_jax.search.branches import BranchPair, branch_pairs
from tsd_jax.search.view import TreeNode


def tree(answers):
  """Nodes that hold some answers: (tokens, log-probability, reward)."""
  return {
    i: TreeNode(
      index=i, parent=0, children=(), path=tokens, text="", log_prob=0.0,
      visits=1, value=0.0, finished=True, reward=reward, answer=tokens,
      answer_log_prob=log_prob,
    )
    for i, (tokens, log_prob, reward) in enumerate(answers)
  }  # fmt: skip


def test_the_last_place_where_a_solution_was_possible():
  nodes = tree(
    [
      ((1, 2, 3), -1.0, 1.0),
      ((1, 2, 4), -2.0, 0.0),  # Parts after 1 2.
      ((1, 2, 5), -3.0, 0.0),  # There too, less likely.
      ((1, 6), -4.0, 0.0),  # Parts after 1.
      ((7, 8), -5.0, 1.0),
      ((7,), -6.0, 0.5),  # Ends where the solved one goes on.
      ((9,), -7.0, 0.0),  # Parts at the root, from the likeliest.
    ]
  )
  nodes[9] = nodes[0]._replace(index=9, answer=None, reward=None)
  assert branch_pairs(nodes) == [
    BranchPair((1, 2, 3), (1, 2, 4), 2),
    BranchPair((1, 2, 3), (1, 6), 1),
    BranchPair((7, 8), (7,), 1),
    BranchPair((1, 2, 3), (9,), 0),
  ]
  assert BranchPair((7,), (9,), 0) not in branch_pairs(nodes, solved_at=0.5)
  assert branch_pairs(nodes, solved_at=1.5) == []


def test_an_answer_at_the_bar_solves_as_the_tree_has_its_reward():
  paid = float(np.float32(0.9))  # Below .9.
  nodes = tree([((1,), -1.0, paid), ((2,), -2.0, 0.0)])
  assert branch_pairs(nodes, solved_at=0.9) == [BranchPair((1,), (2,), 0)]


ANSWERS = st.dictionaries(
  st.lists(st.integers(0, 2), max_size=5).map(tuple),
  st.tuples(st.floats(-9, 0), st.sampled_from([0.0, 0.5, 1.0])),
  max_size=12,
)


@hypothesis.settings(deadline=None)
@hypothesis.given(ANSWERS)
def test_a_failed_step_leads_to_no_solution_and_a_solved_one_does(answers):
  nodes = tree([(tokens, *rest) for tokens, rest in answers.items()])
  solved = [a for a, (_, reward) in answers.items() if reward >= 1]
  failed = [a for a, (_, reward) in answers.items() if reward < 1]
  found = branch_pairs(nodes)
  places = set()
  for pair in found:
    d = pair.shared
    assert pair.solved in solved and pair.failed in failed
    assert pair.solved[:d] == pair.failed[:d]
    # Nothing solved is found beyond the place, by the failed step.
    assert not [
      a
      for a in solved
      if a[:d] == pair.failed[:d] and (*a, None)[d] == (*pair.failed, None)[d]
    ]
    through = [a for a in solved if a[:d] == pair.failed[:d]]
    assert answers[pair.solved][0] == max(answers[a][0] for a in through)
    places.add(pair.failed[:d])
  assert len(places) == len(found)
  # Every failed answer parts at a place that has a pair, where one is solved.
  for answer in failed if solved else ():
    d = max(
      sum(1 for i in range(len(answer) + 1) if a[:i] == answer[:i]) - 1
      for a in solved
    )
    assert answer[:d] in places
