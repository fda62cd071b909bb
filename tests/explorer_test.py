"""What the tree explorer shows: against the arrays, and safe in its page."""

import base64
import functools
import hashlib
import html.parser
import json
import math
import pathlib
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import lazy_test, search_test, transpositions_test
from tests.flat_search import flat_search
from tests.search_test import PROMPTS
from tests.view_test import Pieces
from tsd_jax.base.types import LOG_ZERO, UNVISITED
from tsd_jax.search import champions as champions_lib
from tsd_jax.search import explorer, view

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOKENS = Pieces(*map(str, range(11)), joiner=" ")


@functools.cache
def searched(kind):
  if kind == "lazy":  # It draws some steps twice.
    return lazy_test.run(step_tokens=1).tree
  if kind == "transpositions":
    config = flat_search(
      num_simulations=40,
      num_candidates=5,
      stop_when_solved=False,
      transpositions=True,
    )
    task = transpositions_test.Bag()
    result = transpositions_test._search(PROMPTS, task, config)
    return jax.device_get(result.tree)
  return search_test.search(
    num_simulations=12, rule="puct", leaf="rollout", stop_when_solved=False
  ).tree


KINDS = ("puct", "lazy", "transpositions")


def data_of(tree, row, **settings):
  return explorer.tree_data(
    tree, row, TOKENS, name="tree", prompt="1 2", facts={}, **settings
  )


@pytest.fixture(params=KINDS)
def tree(request):
  return searched(request.param)


def rows(tree):
  return range(len(tree.node_visits))


def test_nodes_are_those_of_the_arrays(tree):
  for row in rows(tree):
    data = data_of(tree, row)
    shown = view.nodes_of(tree, row, TOKENS)
    arrays = jax.tree.map(lambda a, row=row: a[row], tree)
    assert [node["id"] for node in data["nodes"]] == sorted(shown)
    for node in data["nodes"]:
      n = node["id"]
      assert node["visits"] == arrays.node_visits[n]
      assert tuple(node["children"]) == shown[n].children
      words = [t for t in node["tokens"] if t != view.END]
      assert " ".join(words) == view.visible(shown[n].text)
      over = arrays.embeddings.finished[n] or arrays.embeddings.cut_off[n]
      expected = arrays.embeddings.reward if over else arrays.node_values
      assert node["value"] == pytest.approx(expected[n], rel=1e-5)
      if n:
        assert node["parent"] == arrays.parents[n]
        prior_A = arrays.embeddings.prior_A[arrays.parents[n]]
        expected = math.exp(prior_A[arrays.action_from_parent[n]])
        assert node["prior"] == pytest.approx(expected, rel=1e-4)


def replayed(data):
  """Visits and mean outcomes of nodes, by walks from the root."""
  nodes = {node["id"]: node for node in data["nodes"]}
  visits, sums = {0: 1}, {0: nodes[0]["first_value"]}
  for number, simulation in enumerate(data["simulations"], 1):
    if simulation is None:
      continue
    at = simulation["node"]
    if at == number:
      visits[at], sums[at] = 1, nodes[at]["first_value"]
      at = nodes[at]["parent"]
    while at is not None:
      visits[at] += 1
      sums[at] += simulation["outcome"]
      at = nodes[at]["parent"]
  return visits, {n: sums[n] / visits[n] for n in visits}


def test_simulations_add_up_to_the_tree(tree):
  """In their order: a node is made before it is gone through."""
  came_back = 0
  for row in rows(tree):
    data = data_of(tree, row)
    visits, values = replayed(data)
    came_back += data["simulations"].count(None)
    assert len(data["simulations"]) == tree.node_visits[row, 0] - 1
    if None in data["simulations"]:
      continue
    for node in data["nodes"]:
      assert visits[node["id"]] == node["visits"]
      assert values[node["id"]] == pytest.approx(node["value"], abs=1e-4)
  made = sum((tree.node_visits > 0).sum(axis=1) - 1)
  assert made + came_back == sum(tree.node_visits[:, 0] - 1)


def test_children_and_moves_are_all_that_was_offered(tree):
  states = set()
  for row in rows(tree):
    data = data_of(tree, row)
    nodes = tree.embeddings
    for node in data["nodes"]:
      n = node["id"]
      if nodes.finished[row, n] or nodes.cut_off[row, n]:
        assert not node["moves"]
        continue
      offered_A = nodes.prior_A[row, n] > LOG_ZERO
      tried_A = tree.children_index[row, n] != UNVISITED
      assert len(node["moves"]) == np.sum(offered_A & ~tried_A)
      ends = [m for m in node["moves"] if m["state"] == "ends"]
      assert len(ends) == (nodes.eos_action[row, n] < len(offered_A))
      states |= {move["state"] for move in node["moves"]}
      log_prob_A = nodes.log_prob_A[row, n][offered_A & ~tried_A]
      for move, log_prob in zip(node["moves"], log_prob_A, strict=True):
        if move["state"] != "undrawn":
          assert move["log_prob"] == pytest.approx(log_prob, rel=1e-4)
  assert "open" in states or "undrawn" in states


def set_aside(tokens):
  """Tokens without those that the task pads with, which are nothing to it."""
  return [token for token in tokens if token != str(search_test.PAD)]


def test_a_merged_move_leads_to_a_node_of_the_same_tokens():
  tree, count = searched("transpositions"), 0
  for row in rows(tree):
    data = data_of(tree, row)
    nodes = {node["id"]: node for node in data["nodes"]}

    def bag(n, nodes=nodes):
      tokens = []
      while n is not None:
        tokens += nodes[n]["tokens"]
        n = nodes[n]["parent"]
      return sorted(set_aside(tokens))

    for n, node in nodes.items():
      for move in node["moves"]:
        if move["state"] == "merged":
          count += 1
          there = sorted([*bag(n), *set_aside(move["tokens"])])
          assert there == bag(move["to"])
        else:
          assert move["to"] is None
  assert count > 20


def test_answers_add_up_to_the_success_probability(tree):
  for by_reward in (False, True):
    prob_B = champions_lib.success_prob(tree, by_reward=by_reward)
    for row in rows(tree):
      data = data_of(tree, row, by_reward=by_reward)
      found = [n["answer"] for n in data["nodes"] if n["answer"]]
      total = sum(
        math.exp(a["log_prob"]) * (a["reward"] if by_reward else a["correct"])
        for a in found
        if a["ends"]
      )
      assert total == pytest.approx(float(prob_B[row]), abs=1e-5)


def test_the_champion_has_the_best_reward(tree):
  for row in rows(tree):
    data = data_of(tree, row)
    nodes, made_N = tree.embeddings, tree.node_visits[row] > 0
    reward_N = nodes.reward[row][made_N & nodes.has_answer[row]]
    if not reward_N.size:
      assert data["champion"] is None
      assert explorer.summary(data).endswith("no finished answer")
      continue
    (answer,) = (
      n["answer"] for n in data["nodes"] if n["id"] == data["champion"]
    )
    assert answer["reward"] == pytest.approx(reward_N.max(), rel=1e-5)
    assert f"reward {answer['reward']:.2f}" in explorer.summary(data)


# The page as a text.


class Elements(html.parser.HTMLParser):
  """Tags, and what stands in scripts."""

  def __init__(self):
    super().__init__(convert_charrefs=False)
    self.tags, self.scripts, self.inside = [], [], False

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, tuple(attributes)))
    self.inside = tag == "script"
    if self.inside:
      self.scripts.append("")

  def handle_endtag(self, tag):
    self.inside = False

  def handle_data(self, data):
    if self.inside:
      self.scripts[-1] += data


def read(page):
  elements = Elements()
  elements.feed(page)
  return elements


EVIL = (
  "</script><script>alert(1)</script>", "<!--<script>", "]]>", "\u2028",
  "__TREES__", "&lt;/script&gt;", "\\u003c", '"}]}', "\ud800", "\x00",
  "<img src=x onerror=alert(1)>",
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text() | st.sampled_from(EVIL), max_size=4).map("".join))
def test_no_text_leaves_its_place(text):
  trees = [{"name": text, "tokens": [text, f"a{text}</ScRiPt {text}"]}]
  elements = read(explorer.page(trees))
  plain = read(explorer.page([]))
  assert elements.tags == plain.tags
  assert json.loads(elements.scripts[0]) == {"trees": trees}
  assert elements.scripts[1:] == plain.scripts[1:]


def test_the_page_runs_its_own_script_and_nothing_else():
  page = explorer.page([])
  digest = re.compile(r"'sha256-([\w+/=]+)'")
  (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
  (style,) = re.findall(r"<style>(.*?)</style>", page, re.S)
  script = read(page).scripts[1]
  assert "default-src 'none'" in policy and "unsafe" not in policy
  hashes = [hashlib.sha256(text.encode()) for text in (script, style)]
  encoded = [base64.b64encode(h.digest()).decode() for h in hashes]
  assert digest.findall(policy) == encoded
  names = {name for _, attributes in read(page).tags for name, _ in attributes}
  assert not names & {"src", "href", "srcset", "style", "onclick"}
  for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval("):
    for file in (ROOT / "explorer" / "src").glob("*.js"):
      assert sink not in file.read_text(), file


def test_the_page_is_what_its_sources_say():
  """If this fails: `npm ci && npm run build` in explorer/."""
  folder = ROOT / "explorer"
  names = ["build.mjs", "package-lock.json", "package.json"]
  names += sorted(f"src/{file.name}" for file in (folder / "src").iterdir())
  digest = hashlib.sha256()
  for name in names:
    digest.update(f"{name}\n{(folder / name).read_text()}\n".encode())
  assert f"sources {digest.hexdigest()}" in explorer.page([])


def test_a_notebook_frames_it_and_has_the_text():
  piece = explorer.frame([data_of(searched("lazy"), 0)], "a < b")
  assert 'sandbox="allow-scripts"' in piece
  assert piece.endswith("<pre>a &lt; b</pre></details>")
  outer = read(piece)
  assert [tag for tag, _ in outer.tags] == [
    "iframe",
    "details",
    "summary",
    "pre",
  ]
