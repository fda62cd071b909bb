"""Trees drawn as text, from arrays written by hand."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.search_test import EOS, search
from tsd_jax.search import champions as champions_lib
from tsd_jax.search import view


class Pieces:
  """Token i is the i-th text; the last one ends a response."""

  def __init__(self, *texts, joiner=""):
    self.texts, self.joiner, self.end_ids = texts, joiner, (len(texts),)

  def decode(self, ids, skip_special=True):
    return self.joiner.join(self.texts[i] for i in ids)


class Record(types.SimpleNamespace):
  """Stands for mctx's records: only the fields that the viewer reads."""


jax.tree_util.register_pytree_node(
  Record,
  lambda record: (list(vars(record).values()), tuple(vars(record))),
  lambda names, values: Record(**dict(zip(names, values, strict=True))),
)


def make_tree(*nodes, length=8, eos=None):
  """A batch of one tree.

  Args:
    *nodes: (parent, token, probability, reward or None, answer or None) each,
      the root left out. An answer is what follows the path.
    length: T.
    eos: the end token.
  """
  N = len(nodes) + 1
  children, paths = [[] for _ in range(N)], [()]
  log_prob, reward, answers = [0.0], [0.0], [None]
  for i, (parent, token, p, r, more) in enumerate(nodes, 1):
    children[parent].append(i)
    paths.append((*paths[parent], token))
    log_prob.append(log_prob[parent] + math.log(p))
    reward.append(0.0 if r is None else r)
    answers.append(None if r is None else (*paths[-1], *(more or ()), eos))
  A = max(map(len, children))

  def padded(rows):
    return np.array([[*row, *[0] * (length - len(row))] for row in rows])[None]

  def visits(n):
    return 1 + sum(map(visits, children[n]))

  return Record(
    children_index=np.array(
      [[*c, *[-1] * (A - len(c))] for c in children], np.int32
    )[None],
    node_visits=np.array([[visits(n) for n in range(N)]]),
    node_values=np.array([[0.5] * N]),
    embeddings=Record(
      path_tokens=padded(paths),
      depth=np.array([list(map(len, paths))]),
      path_log_prob=np.array([log_prob]),
      finished=np.array([[eos in path for path in paths]]),
      has_answer=np.array([[a is not None for a in answers]]),
      answer_tokens=padded([a or () for a in answers]),
      answer_log_prob=np.array([log_prob]) - 1.0,
      reward=np.array([reward]),
    ),
  )


WORDS = Pieces("The", " sum", " is", " 5", " 6", "\n\n", "\t", ".")
TREE = make_tree(
  (0, 0, 0.8, None, None),
  (1, 1, 0.5, None, None),
  (2, 2, 0.5, 0.0, None),
  (3, 3, 0.5, 1.0, None),
  (4, 5, 0.5, None, None),
  (3, 4, 0.25, 0.0, None),
  (3, 6, 0.2, None, None),
  (0, 3, 0.1, 0.25, (7,)),
  (8, 8, 0.9, 0.5, None),
  eos=8,
)


def test_a_tree_is_drawn_line_by_line():
  assert view.tree_text(TREE, 0, WORDS).splitlines() == [
    "  visits   prob  value  reward",
    "▸     10          0.50          root",
    "▸      7   0.20   0.50    0.00  ├─ The sum is",
    "★      2   0.50   0.50    1.00  │  ├─ ␣5",
    "       1   0.50   0.50          │  │  ⏎⏎",
    "       1   0.25   0.50    0.00  │  ├─ ␣6",
    "       1   0.20   0.50          │  └─ ⇥",
    "       2   0.10   0.50    0.25  └─ ␣5 → .⏹",
    "       1   0.90   0.50    0.50     ⏹",
    "",
    "★ champion, the best finished answer · ▸ the way to it · ⏹ end token · "
    "→ the rest of an answer sampled from there · ␣ space · ⏎ new line · ⇥ tab",
    "prob: of the line, given what stands before it · value: mean outcome of "
    "its visits",
    "reward: of the answer found at its end",
  ]


def test_the_champion_and_the_most_visited_stay():
  lines = view.tree_text(TREE, 0, WORDS, max_lines=3).splitlines()
  assert lines[1:5] == [
    "▸     10          0.50          root  … 2 more",
    "▸      7   0.20   0.50    0.00  └─ The sum is  … 2 more",
    "★      2   0.50   0.50    1.00     └─ ␣5  … 1 more",
    "… 5 nodes are not shown",
  ]
  assert view.tree_text(TREE, 0, WORDS, max_lines=9).count("not shown") == 0
  (_, root, *_) = view.tree_text(TREE, 0, WORDS, max_lines=1).splitlines()
  assert root.endswith("root  … 9 more")


def test_long_texts_are_cut_in_their_middle():
  long = Pieces("x" * 200 + "end")
  tree = make_tree((0, 0, 1.0, None, None), eos=1)
  lines = view.tree_text(tree, 0, long, width=80).splitlines()
  assert len(lines[2]) == 80 and lines[2].endswith("xend") and "…" in lines[2]


@pytest.mark.parametrize(
  ("text", "shown"),
  [
    ("a b", "a b"),
    (" a", "␣a"),
    ("a ", "a␣"),
    ("a  b", "a␣␣b"),
    ("a \n b", "a␣⏎␣b"),
    ("\t\r", "⇥␍"),
    ("caf\u00e9 \u4f60", "caf\u00e9 \u4f60"),
    ("\x1b[2J", r"\x1b[2J"),
    ("\u202egnp", r"\u202egnp"),
    ("a\u00a0b\u2028c", r"a\xa0b\u2028c"),
    ("", ""),
  ],
)
def test_white_space_and_control_codes_are_seen(text, shown):
  assert view.visible(text) == shown
  assert (
    view.visible(text).isprintable()
    and len(view.visible(text).splitlines()) <= 1
  )


def test_a_piece_is_what_tokens_add_to_a_text():
  class Bytes:
    joiner = ""

    def decode(self, ids, skip_special=True):
      return bytes(ids).decode(errors="replace")

  euro = list("\u20ac".encode())
  assert view.piece(Bytes(), [*b"a"], [*b"a", *euro]) == "\u20ac"
  # Half a character: the whole text is no longer the longer one's beginning.
  assert view.piece(Bytes(), euro[:2], euro) == "\ufffd"
  symbols = Pieces("3", "*", "4", joiner=" ")
  assert view.piece(symbols, (), (0, 1)) == "3 *"
  assert view.piece(symbols, (0,), (0, 1, 2)) == "* 4"


def test_steps_drawn_again_are_left_out():
  words = Pieces("a", "b")
  tree = make_tree(
    (0, 0, 0.25, None, None), (0, 0, 0.25, None, None),
    (0, 1, 0.5, None, None), (1, 1, 0.5, None, None), eos=2,
  )  # fmt: skip
  nodes = view.nodes_of(tree, 0, words)
  assert sorted(nodes) == [0, 1, 3, 4]
  assert nodes[0].children == (3, 1)  # The likeliest comes first.


def test_a_tree_without_answers_has_no_champion():
  tree = make_tree((0, 0, 0.5, None, None), eos=8)
  text = view.tree_text(tree, 0, WORDS)
  assert "★" not in text and "▸" not in text
  assert "root" in text and "The" in text


def path_of(nodes, row, n):
  """Response tokens up to a node, the end token included."""
  ids = nodes.path_tokens[row, n][: nodes.depth[row, n]].tolist()
  return tuple(ids[: ids.index(EOS) + 1] if EOS in ids else ids)


def test_a_searched_tree_is_read_as_its_arrays_say():
  """Of real searches; champions as training reads them."""
  tokens = Pieces(*map(str, range(11)), joiner=" ")
  for settings in (
    dict(num_simulations=12),
    dict(num_simulations=12, rule="puct", leaf="rollout"),
  ):
    tree = search(**settings, stop_when_solved=False).tree
    best = champions_lib.champions(jax.tree.map(jnp.asarray, tree), 1)
    for row in range(len(tree.node_visits)):
      nodes = view.nodes_of(tree, row, tokens)
      made = np.flatnonzero(tree.node_visits[row] > 0).tolist()
      paths = [path_of(tree.embeddings, row, n) for n in range(13)]
      # All that was made, every path once.
      assert len({paths[n] for n in made}) == len(nodes)
      assert {paths[n] for n in made} == {paths[n] for n in nodes}
      for n, node in nodes.items():
        assert node.visits == tree.node_visits[row, n]
        if n:
          assert node.parent == tree.parents[row, n]
          assert n in nodes[node.parent].children
        if node.answer is not None:
          length = len(node.answer)
          tokens_T = tree.embeddings.answer_tokens[row, n]
          assert tuple(tokens_T[: length + 1]) == (*node.answer, EOS)
      found = view.answers(nodes, tokens)
      assert bool(found) == best.valid_BM[row, 0]
      if found:
        answer = (*nodes[found[0]].answer, EOS)
        assert tuple(best.tokens_BMT[row, 0][: len(answer)]) == answer
      # All nodes are on the lines, once.
      lines = view.lines_of(nodes, tokens)
      counts = [view.nodes_on(nodes, line) for line in lines.values()]
      assert sum(counts) == len(nodes)
