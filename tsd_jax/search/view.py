"""A searched tree as text, one line a node, the best answer starred."""

from collections.abc import Callable, Sequence

import jax
import mctx
import numpy as np

from tsd_jax.base.types import UNVISITED

Decode = Callable[[Sequence[int]], str]


def tree_text(
  tree: mctx.Tree, row: int, decode: Decode, *, max_nodes: int = 40
) -> str:
  """Draws one tree of a batch.

  Args:
    tree: a finished search.
    row: which prompt's tree.
    decode: token ids -> text.
    max_nodes: lines at most; nodes that were expanded first are kept, so that
      every line's parent is there.

  Returns:
    Lines such as `├─ 12  p .41  n 7` with the step's tokens, their probability
    given the path, the visits, and what the node's answer is rewarded, if it
    has one.
  """
  tree = jax.device_get(jax.tree.map(lambda a: a[row], tree))
  nodes = tree.embeddings
  shown = {0} | {
    int(child)
    for child in np.sort(tree.children_index[tree.children_index != UNVISITED])[
      : max_nodes - 1
    ]
  }
  best = np.where(nodes.has_answer, nodes.reward, -np.inf)
  champion = int(best.argmax()) if nodes.has_answer.any() else UNVISITED
  expanded = 1 + int((tree.children_index != UNVISITED).sum())
  lines = [f"root  n {int(tree.node_visits[0])}  {expanded} nodes"]

  def describe(parent: int, action: int, child: int) -> str:
    length = nodes.length_A[parent, action]
    step = decode(nodes.step_AU[parent, action, :length].tolist())
    text = (
      f"{step}  p {np.exp(nodes.log_prob_A[parent, action]):.2f}"
      f"  n {int(tree.node_visits[child])}"
    )
    if nodes.has_answer[child]:
      text += f"  reward {nodes.reward[child]:.2f}"
      if not nodes.finished[child]:
        text += f"  answer: {decode(nodes.answer_tokens[child])}"
    return text + ("  ★" if child == champion else "")

  def draw(parent: int, margin: str) -> None:
    children = [
      (action, int(child))
      for action, child in enumerate(tree.children_index[parent])
      if int(child) in shown
    ]
    for i, (action, child) in enumerate(children):
      last = i == len(children) - 1
      branch, below = ("└─ ", "   ") if last else ("├─ ", "│  ")
      lines.append(margin + branch + describe(parent, action, child))
      draw(child, margin + below)

  draw(0, "")
  if expanded > len(shown):
    lines.append(f"… {expanded - len(shown)} nodes more")
  return "\n".join(lines)
