"""A searched tree as text: a line a stretch of tokens, the best answer marked.

Tokens that follow one another without a choice stand on one line, and a line
is only indented where the tree branches: a path of forty tokens stays readable.

  visits   prob  value  reward
▸      9         0.44          root
▸      8  0.90   0.50    0.00  ␣3
★      3  0.55   1.00    1.00  ├─ ␣+ 2
       4  0.40   0.00          └─ ␣-
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import mctx
import numpy as np

from tsd_jax.base.types import UNVISITED
from tsd_jax.models.tokenizer import Tokenizer, before_end

MAX_LINES, WIDTH = 40, 100  # Of a tree in print, by default.
PATH, CHAMPION, END, ROLLED_OUT = "▸", "★", "⏹", "→"
_SPACES = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}
_MEANING = {
  CHAMPION: "champion, the best finished answer",
  PATH: "the way to it",
  END: "end token",
  ROLLED_OUT: "the rest of an answer sampled from there",
  "␣": "space",
  "⏎": "new line",
  "⇥": "tab",
  "␍": "carriage return",
}
_COLUMNS = (
  "prob: of the line, given what stands before it · value: mean outcome of its "
  "visits\nreward: of the answer found at its end"
)


class TreeNode(NamedTuple):
  """A node of a searched tree, on the host."""

  index: int  # Among the tree's nodes; the root is 0, then as they were made.
  parent: int  # UNVISITED above the root.
  children: tuple[int, ...]  # Likeliest first.
  path: tuple[int, ...]  # Response tokens up to here, the end token left out.
  text: str  # Of its own step.
  log_prob: float  # Of its step given the path before, the end token included.
  visits: int
  # Mean outcome of its visits, as the search rule keeps it; of a finished
  # response its reward.
  value: float
  finished: bool  # Whether the path ends with the end token.
  reward: float | None  # Of the answer found here; None without one.
  answer: tuple[int, ...] | None  # Its tokens, the end token left out.
  answer_log_prob: float  # Of that answer from the prompt on; 0 without one.

  @property
  def rolled_out(self) -> bool:
    """Whether its answer goes on beyond it, sampled to the end."""
    return self.answer is not None and self.answer != self.path


def nodes_of(
  tree: mctx.Tree, row: int, tokenizer: Tokenizer
) -> dict[int, TreeNode]:
  """Reads one tree of a batch.

  Args:
    tree: a finished search; its embeddings are `node.Node`.
    row: which prompt's tree.
    tokenizer: of the search model.

  Returns:
    Its nodes by their index in the tree's arrays, parents before children. Two
    kinds are left out that say nothing new: a step that was drawn again below
    the same node, and a visit beyond the end of a response.
  """
  one: Any = jax.device_get(jax.tree.map(lambda a: a[row], tree))
  nodes = one.embeddings
  end_ids = tokenizer.end_ids

  def read(n: int, parent: TreeNode | None) -> TreeNode:
    path = _before(nodes.path_tokens[n][: nodes.depth[n]], end_ids)
    before = 0.0 if parent is None else nodes.path_log_prob[parent.index]
    answers = bool(nodes.has_answer[n])
    return TreeNode(
      index=n,
      parent=UNVISITED if parent is None else parent.index,
      children=(),
      path=path,
      text=piece(tokenizer, () if parent is None else parent.path, path),
      log_prob=float(nodes.path_log_prob[n] - before),
      visits=int(one.node_visits[n]),
      value=float(nodes.reward[n] if nodes.finished[n] else one.node_values[n]),
      finished=bool(nodes.finished[n]),
      reward=float(nodes.reward[n]) if answers else None,
      answer=_before(nodes.answer_tokens[n], end_ids) if answers else None,
      answer_log_prob=float(nodes.answer_log_prob[n]) if answers else 0.0,
    )

  found, todo = {0: read(0, None)}, [0]
  for n in todo:  # It grows: breadth first.
    children: dict[Any, TreeNode] = {}
    for child in np.sort(one.children_index[n]).tolist():
      if child != UNVISITED:
        node = read(child, found[n])
        what = node.path, node.finished
        if what != (found[n].path, found[n].finished):
          children.setdefault(what, node)
    ranked = sorted(children.values(), key=lambda node: -node.log_prob)
    found[n] = found[n]._replace(children=tuple(c.index for c in ranked))
    found |= {node.index: node for node in ranked}
    todo += found[n].children
  return found


def _before(tokens: np.ndarray, end_ids: Sequence[int]) -> tuple[int, ...]:
  """What stands before the end token."""
  return tuple(before_end(tokens, end_ids)[0])


def piece(
  tokenizer: Tokenizer, before: Sequence[int], tokens: Sequence[int]
) -> str:
  """The text that tokens add to those they begin with.

  A token may be part of a character, or read otherwise at the start of a text,
  so both are read whole.
  """
  head, whole = said(tokenizer, before), said(tokenizer, tokens)
  if not whole.startswith(head):
    return said(tokenizer, tokens[len(before) :])
  text = whole[len(head) :]
  return text.removeprefix(tokenizer.joiner) if head else text


def answers(nodes: Mapping[int, TreeNode], tokenizer: Tokenizer) -> list[int]:
  """Nodes with the distinct finished answers, as text, of a tree.

  Returns:
    Their indices: the best reward first, of equal ones the likeliest answer.
  """
  found = [node for node in nodes.values() if node.answer is not None]
  found.sort(key=lambda n: (-(n.reward or 0.0), -n.answer_log_prob, n.index))
  distinct: dict[str, int] = {}
  for node in found:
    distinct.setdefault(said(tokenizer, node.answer or ()), node.index)
  return list(distinct.values())


def said(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
  """The text of tokens as a reward sees it, special tokens spelled out."""
  return tokenizer.decode(tokens, skip_special=False)


def visible(text: str) -> str:
  """Text on one line, safe to print: white space and control codes are seen.

  A single space between words stays one; elsewhere it would be overlooked.
  """

  def show(i: int, char: str) -> str:
    if char == " ":
      beside = text[i - 1 : i] + text[i + 1 : i + 2]
      inner = len(beside) == 2 and not any(map(str.isspace, beside))
      return char if inner else _SPACES[char]
    if char in _SPACES:
      return _SPACES[char]
    # Model output may hold codes that move a terminal's cursor, or turn text.
    return char if char.isprintable() else ascii(char)[1:-1]

  return "".join(show(i, char) for i, char in enumerate(text))


class Line(NamedTuple):
  """Nodes that stand on one line: each the only child of the one before."""

  first: int
  last: int
  parent: int  # Of lines; UNVISITED above the root's.
  text: str
  log_prob: float  # Of all of it given what stands before.


def lines_of(
  nodes: Mapping[int, TreeNode], tokenizer: Tokenizer
) -> dict[int, Line]:
  """Cuts a tree into lines: at choices and after answers.

  Args:
    nodes: the tree's.
    tokenizer: of the search model.

  Returns:
    Lines by their last node, parents before children.
  """
  lines: dict[int, Line] = {}
  todo = [(0, UNVISITED)]
  for first, parent in todo:
    node, log_prob = nodes[first], nodes[first].log_prob
    while first and len(node.children) == 1 and node.answer is None:
      node = nodes[node.children[0]]
      log_prob += node.log_prob
    before = () if parent == UNVISITED else nodes[parent].path
    text = visible(piece(tokenizer, before, node.path)) if first else "root"
    if node.finished:
      text += END
    elif node.rolled_out:
      rest = piece(tokenizer, node.path, node.answer or ())
      text += f" {ROLLED_OUT} {visible(rest)}{END}"
    lines[node.index] = Line(first, node.index, parent, text, log_prob)
    todo += [(child, node.index) for child in node.children]
  return lines


def way_to(nodes: Mapping[int, TreeNode], n: int | None) -> set[int]:
  """A node and those above it."""
  way: set[int] = set()
  while n is not None and n != UNVISITED:
    way.add(n)
    n = nodes[n].parent
  return way


class Layout(NamedTuple):
  """What is drawn of a tree."""

  lines: dict[int, Line]  # By last node, parents first.
  below: dict[int, list[int]]  # Lines shown below each that is shown.
  hidden: dict[int, int]  # How many nodes below each are not shown.
  way: set[int]  # Nodes from the root to the champion.
  champion: int | None


def layout(
  nodes: Mapping[int, TreeNode], tokenizer: Tokenizer, max_lines: int
) -> Layout:
  """Chooses the lines that are shown: the champion's, then the most visited.

  Args:
    nodes: the tree's.
    tokenizer: of the search model.
    max_lines: how many at most, the root's included.
  """
  best = answers(nodes, tokenizer)
  champion = best[0] if best else None
  way, lines = way_to(nodes, champion), lines_of(nodes, tokenizer)

  def rank(line: Line) -> tuple[bool, int, int]:
    return line.last not in way, -nodes[line.first].visits, line.first

  below: dict[int, list[int]] = {}
  for line in sorted(lines.values(), key=rank):
    if len(below) < max_lines and (not line.first or line.parent in below):
      below[line.last] = []
  hidden = dict.fromkeys(below, 0)
  for line in lines.values():  # Children in order, for parents come first.
    if line.last in below:
      if line.first:
        below[line.parent].append(line.last)
      continue
    at, count = line.parent, nodes_on(nodes, line)
    while at not in below:
      at = lines[at].parent
    hidden[at] += count
  return Layout(lines, below, hidden, way, champion)


def nodes_on(nodes: Mapping[int, TreeNode], line: Line) -> int:
  """How many nodes stand on a line."""
  count, n = 1, line.last
  while n != line.first:
    count, n = count + 1, nodes[n].parent
  return count


def number(x: float | None) -> str:
  """Two decimals, or where they would say nothing the order of magnitude."""
  if x is None:
    return ""
  return f"{x:.2f}" if x == 0 or abs(x) >= 0.005 else f"{x:.0e}"


def tree_text(
  tree: mctx.Tree,
  row: int,
  tokenizer: Tokenizer,
  *,
  max_lines: int = MAX_LINES,
  width: int = WIDTH,
) -> str:
  """Draws one tree of a batch; see `draw`."""
  nodes = nodes_of(tree, row, tokenizer)
  return draw(nodes, tokenizer, max_lines=max_lines, width=width)


def draw(
  nodes: Mapping[int, TreeNode],
  tokenizer: Tokenizer,
  *,
  max_lines: int = MAX_LINES,
  width: int = WIDTH,
) -> str:
  """Draws a tree, with a legend below it.

  Args:
    nodes: the tree's (`nodes_of`).
    tokenizer: of the search model.
    max_lines: of the tree at most: the champion's, then the most visited.
    width: characters of a line; longer texts are cut.
  """
  shown = layout(nodes, tokenizer, max_lines)
  rows = [f"  {'visits':>6}  {'prob':>5}  {'value':>5}  {'reward':>6}"]
  # (line, what stands before its text, and before that of what follows it.)
  todo = [(next(iter(shown.below)), "", "")]
  while todo:
    at, head, margin = todo.pop()
    line, first = shown.lines[at], nodes[shown.lines[at].first]
    mark = PATH if at in shown.way else " "
    mark = CHAMPION if at == shown.champion else mark
    prob = number(math.exp(line.log_prob)) if line.first else ""
    stats = (
      f"{mark} {first.visits:>6}  {prob:>5}  {number(first.value):>5}  "
      f"{number(nodes[at].reward):>6}  "
    )
    more = shown.hidden[at]
    after = f"  … {more} more" if more else ""
    room = max(20, width - len(stats) - len(head) - len(after))
    rows.append((stats + head + _clipped(line.text, room) + after).rstrip())
    below, chooses = shown.below[at], len(nodes[at].children) > 1
    for child in reversed(below):
      ends = not chooses or child == below[-1]
      bend = ("└─ " if ends else "├─ ") * chooses
      into = ("   " if ends else "│  ") * chooses
      todo.append((child, margin + bend, margin + into))
  hidden = sum(shown.hidden.values())
  rows += [f"… {hidden} nodes are not shown"] if hidden else []
  return "\n".join([*rows, "", legend("\n".join(rows))])


def _clipped(text: str, room: int) -> str:
  """A text with its middle left out where it is too long."""
  if len(text) <= room:
    return text
  tail = room // 3
  return f"{text[: room - tail - 1]}…{text[-tail:]}"


def legend(text: str) -> str:
  """Lines that say what the marks in a text mean, and the numbers."""
  marks = [f"{mark} {said}" for mark, said in _MEANING.items() if mark in text]
  return "\n".join([*([" · ".join(marks)] if marks else []), _COLUMNS])
