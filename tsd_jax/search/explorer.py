"""A searched tree as one HTML page to look around in.

The page is `explorer.html`, built from the sources in `explorer/` and the same
for all trees; what it shows is one JSON text inside it. A text of a model
cannot leave that JSON, and the page's policy lets nothing else run or load.
"""

import functools
import html
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import mctx
import numpy as np

from tsd_jax.base.output_files import write_whole
from tsd_jax.base.types import LOG_ZERO, UNVISITED
from tsd_jax.models.tokenizer import Tokenizer
from tsd_jax.search import view
from tsd_jax.search.view import TreeNode

_PAGE = pathlib.Path(__file__).with_suffix(".html")
_PLACE = "__TREES__"  # Where the page's JSON stands.
_HEIGHT = 600  # Pixels of a tree in a notebook.


def tree_data(
  tree: mctx.Tree,
  row: int,
  tokenizer: Tokenizer,
  *,
  name: str,
  prompt: str,
  facts: Mapping[str, str],
  by_reward: bool = False,
) -> dict[str, Any]:
  """What the page shows of one tree of a batch, fit for JSON.

  Args:
    tree: a finished search.
    row: which prompt's tree.
    tokenizer: of the search model.
    name: what it is called beside others.
    prompt: its text.
    facts: more to say of it, by what it is.
    by_reward: nobody knows what is correct: an answer counts by its reward
      (`champions.success_prob`).
  """
  one: Any = jax.device_get(jax.tree.map(lambda a: a[row], tree))
  nodes = view.nodes_of(tree, row, tokenizer)
  best = view.answers(nodes, tokenizer)
  return {
    "name": name,
    "prompt": view.visible(prompt),
    "facts": dict(facts),
    "joiner": tokenizer.joiner,
    "by_reward": by_reward,
    "champion": best[0] if best else None,
    "nodes": [_node(one, nodes, n, tokenizer) for n in sorted(nodes)],
    "simulations": list(_simulations(one, nodes)),
  }


def _node(
  one: Any, nodes: Mapping[int, TreeNode], n: int, tokenizer: Tokenizer
) -> dict[str, Any]:
  """A node; log-probabilities are those of its step, given what is before."""
  node, arrays = nodes[n], one.embeddings
  over = arrays.finished[n] or arrays.cut_off[n]
  parent = nodes.get(node.parent)
  before = () if parent is None else parent.path
  data: dict[str, Any] = {
    "id": n,
    "parent": None if parent is None else parent.index,
    "children": node.children,
    "tokens": pieces(tokenizer, before, node.path) + [view.END] * node.finished,
    "log_prob": _number(node.log_prob),
    "prior": None,
    "visits": node.visits,
    # Of one that nothing leads on from: what it brought.
    "value": _number(arrays.reward[n] if over else node.value),
    # Before there was anything below it.
    "first_value": _number(arrays.reward[n] if over else one.raw_values[n]),
    "flags": _flags(arrays, n),
    "answer": _answer(arrays, node, tokenizer),
    "moves": list(_moves(one, nodes, n, tokenizer)),
  }
  if parent is not None:
    action = one.action_from_parent[n]
    data["prior"] = _number(math.exp(arrays.prior_A[parent.index, action]))
  return data


def _flags(arrays: Any, n: int) -> list[str]:
  """What else is true of a node; the page shows each as a badge."""
  if arrays.refused is not None and arrays.refused[n]:
    return ["pruned"]
  return ["cut_off"] * bool(arrays.cut_off[n] and not arrays.has_answer[n])


def _answer(
  arrays: Any, node: TreeNode, tokenizer: Tokenizer
) -> dict[str, Any] | None:
  """The answer found at a node; it ends there, or its rest was sampled."""
  if node.answer is None:
    return None
  eos_action = arrays.eos_action[node.index]
  ends = node.finished or eos_action < arrays.prior_A.shape[-1]
  rest = view.piece(tokenizer, node.path, node.answer)
  return {
    "text": view.visible(view.said(tokenizer, node.answer)),
    "ends": bool(ends),
    "rest": "" if ends else view.visible(rest),
    "reward": _number(node.reward),
    "correct": bool(arrays.correct[node.index]),
    "log_prob": _number(node.answer_log_prob),
  }


def _moves(
  one: Any, nodes: Mapping[int, TreeNode], n: int, tokenizer: Tokenizer
) -> Iterator[dict[str, Any]]:
  """Moves that a node offers and that no child of it stands for.

  Their state is `open` where nobody tried one, `merged` where another node has
  been, `ends` where the answer that ends here is the node's own, and `undrawn`
  of a step that would be drawn when it is tried.
  """
  arrays, path = one.embeddings, nodes[n].path
  if arrays.finished[n] or arrays.cut_off[n]:
    return
  for action, prior in enumerate(arrays.prior_A[n]):
    if one.children_index[n, action] != UNVISITED or prior <= LOG_ZERO:
      continue
    length = int(arrays.length_A[n, action])
    step = arrays.step_AU[n, action][:length].tolist()
    ends = any(token in tokenizer.end_ids for token in step)
    said = [token for token in step if token not in tokenizer.end_ids]
    target = _reached(one, nodes, n, action)
    if action == arrays.eos_action[n]:
      state = "ends"
    elif target is not None:
      state = "merged"
    else:
      state = "open" if length else "undrawn"
    yield {
      "tokens": pieces(tokenizer, path, (*path, *said)) + [view.END] * ends,
      "log_prob": _number(arrays.log_prob_A[n, action]) if length else None,
      "prior": _number(math.exp(prior)),
      "state": state,
      "to": target if state == "merged" else None,
    }


def _reached(
  one: Any, nodes: Mapping[int, TreeNode], n: int, action: int
) -> int | None:
  """The node to which a move is merged: the first with its state, as short."""
  arrays = one.embeddings
  if arrays.state_key_A is None:
    return None
  most = arrays.depth[n] + arrays.length_A[n, action]
  same_N = arrays.state_key == arrays.state_key_A[n, action]
  same_N &= (one.node_visits > 0) & (arrays.depth <= most)
  found = np.flatnonzero(same_N)
  return _shown(one, nodes, int(found[0])) if found.size else None


def _simulations(
  one: Any, nodes: Mapping[int, TreeNode]
) -> Iterator[dict[str, Any] | None]:
  """Where each simulation ended, in their order, and what it brought.

  Simulation i makes the node of index i, i = 1, 2, ...; None where it only came
  back to one. A node that is not shown counts for the one above it.
  """
  for n in range(1, int(one.node_visits[0])):
    if n >= len(one.node_visits) or not one.node_visits[n]:
      yield None
      continue
    node, at, outcome = _shown(one, nodes, n), n, float(one.raw_values[n])
    # As the nodes above the one that is shown see it.
    while at and nodes[node].parent != at:
      edge = one.parents[at], one.action_from_parent[at]
      outcome *= one.children_discounts[edge]
      outcome += one.children_rewards[edge]
      at = int(one.parents[at])
    yield {"node": node, "outcome": _number(outcome)}


def _shown(one: Any, nodes: Mapping[int, TreeNode], n: int) -> int:
  """A node, or the nearest above it that is shown."""
  while n not in nodes:
    n = int(one.parents[n])
  return n


def pieces(
  tokenizer: Tokenizer, before: Sequence[int], tokens: Sequence[int]
) -> list[str]:
  """What each token adds to a text, white space made visible.

  Args:
    tokenizer: of the tokens.
    before: tokens that are there already.
    tokens: all of them, those before included.
  """
  return [
    view.visible(view.piece(tokenizer, tokens[:i], tokens[: i + 1]))
    for i in range(len(before), len(tokens))
  ]


def _number(x: Any) -> float | None:
  """Six digits are enough to look at; None where there is no number."""
  value = None if x is None else float(x)
  if value is None or not math.isfinite(value):
    return None
  return float(f"{value:.6g}")


def summary(data: Mapping[str, Any]) -> str:
  """What `tree_data` gave, in a line."""
  champion = next(
    (n["answer"] for n in data["nodes"] if n["id"] == data["champion"]), None
  )
  found = "no finished answer"
  if champion is not None:
    found = (
      f"reward {champion['reward']:.2f} by {champion['text'] or '(empty)'}"
    )
  return (
    f"{data['name']}: {len(data['simulations'])} simulations, "
    f"{len(data['nodes'])} nodes, {found}"
  )


def page(trees: Sequence[Mapping[str, Any]]) -> str:
  """The page of one tree, or of several side by side (`tree_data` each)."""
  text = json.dumps({"trees": trees}, allow_nan=False, separators=(",", ":"))
  # The only sign by which a text could end the element that it stands in; a
  # model may write `</script>` or `<!--`.
  return _template().replace(_PLACE, text.replace("<", r"\u003c"))


@functools.cache
def _template() -> str:
  return _PAGE.read_text(encoding="utf-8")


def save(
  file: str | pathlib.Path, trees: Sequence[Mapping[str, Any]]
) -> pathlib.Path:
  """Writes the page of some trees.

  Raises:
    UserError: it cannot be written.
  """
  file = pathlib.Path(file).expanduser()
  write_whole(file, page(trees))
  return file


def frame(trees: Sequence[Mapping[str, Any]], text: str) -> str:
  """The page as a piece of another one, for notebooks.

  Args:
    trees: `tree_data` each.
    text: the same as text, which folds; it is there where frames are not.
  """
  inner = html.escape(page(trees))
  return (
    f'<iframe sandbox="allow-scripts" title="searched tree" srcdoc="{inner}" '
    f'style="width:100%;height:{_HEIGHT}px;border:0"></iframe>'
    "<details><summary>as text</summary><pre>"
    f"{html.escape(text)}</pre></details>"
  )
