"""A searched tree for notebooks: HTML that folds, without scripts."""

import html
import math
from collections.abc import Mapping

from tsd_jax.models.tokenizer import Tokenizer
from tsd_jax.search import view

MAX_LINES = 400  # Of a tree, by default: they fold, so there may be many.

# Colours are mixed with the page's own, so that it may be light or dark.
_STYLE = """
.tsd-tree { font: 13px/1.6 ui-monospace, Menlo, Consolas, monospace;
  color-scheme: light dark; overflow-x: auto; }
.tsd-tree details, .tsd-tree .tsd-end { margin-left: 1.1em; }
.tsd-tree summary { cursor: pointer; }
.tsd-tree summary, .tsd-tree .tsd-end { white-space: pre; }
.tsd-tree .tsd-end { padding-left: 1.05em; }
.tsd-tree .tsd-text { background: rgba(127, 127, 127, .14);
  border-radius: 3px; padding: 0 .3em; }
.tsd-tree .tsd-way > .tsd-text { background: rgba(46, 147, 60, .25); }
.tsd-tree .tsd-best > .tsd-text { background: rgba(46, 147, 60, .55);
  font-weight: bold; }
.tsd-tree .tsd-stats { opacity: .65; padding-left: 1em; }
.tsd-tree p { margin: .5em 0; opacity: .8; white-space: pre-wrap; }
""".strip()


def tree_html(
  nodes: Mapping[int, view.TreeNode],
  tokenizer: Tokenizer,
  *,
  heading: str = "",
  max_lines: int = MAX_LINES,
) -> str:
  """A tree as nested, folding HTML; the champion's way is open.

  Args:
    nodes: the tree's (`view.nodes_of`).
    tokenizer: of the search model.
    heading: text above it.
    max_lines: of the tree at most: the champion's, then the most visited.

  Returns:
    A piece of a page, its own style inside.
  """
  shown = view.layout(nodes, tokenizer, max_lines)
  parts: list[str] = []
  # Lines to come, the next one last, and the tags that close what they are in.
  todo: list[int | str] = [next(iter(shown.below))]
  while todo:
    at = todo.pop()
    if isinstance(at, str):
      parts.append(at)
      continue
    kind, below = _kind(shown, at), shown.below[at]
    inner = _line(shown, nodes, at)
    if not below:
      parts.append(f'<div class="tsd-end{kind}">{inner}</div>')
      continue
    # A line without a choice is no more to look at than the one above it.
    opens = at in shown.way or len(below) == 1 or not shown.lines[at].first
    parts.append(f"<details{' open' * opens}>")
    parts.append(f'<summary class="{kind.strip()}">{inner}</summary>')
    todo += ["</details>", *reversed(below)]
  hidden = sum(shown.hidden.values())
  legend = view.legend("".join(parts))
  more = f"… {hidden} nodes are not shown\n" if hidden else ""
  return (
    f'<div class="tsd-tree"><style>{_STYLE}</style>'
    f"{f'<p>{html.escape(heading)}</p>' if heading else ''}"
    f"{''.join(parts)}<p>{html.escape(more + legend)}</p></div>"
  )


def _kind(shown: view.Layout, at: int) -> str:
  """Classes of a line on the champion's way."""
  if at == shown.champion:
    return " tsd-best"
  return " tsd-way" if at in shown.way else ""


def _line(
  shown: view.Layout, nodes: Mapping[int, view.TreeNode], at: int
) -> str:
  """A line's text and numbers."""
  line, first, node = shown.lines[at], nodes[shown.lines[at].first], nodes[at]
  mark = f"{view.CHAMPION} " if at == shown.champion else ""
  prob = view.number(math.exp(line.log_prob)) if line.first else ""
  facts = {
    "visits": str(first.visits),
    "prob": prob,
    "value": view.number(first.value),
    "reward": view.number(node.reward),
    "not shown": str(shown.hidden[at] or ""),
  }
  stats = "  ".join(f"{name} {fact}" for name, fact in facts.items() if fact)
  return (
    f'{mark}<span class="tsd-text">{html.escape(line.text)}</span>'
    f'<span class="tsd-stats">{stats}</span>'
  )
