"""The page that shows trees, in a browser: clicks, keys, search, replay."""

import math
import shutil
import time

import pytest

from tsd_jax.search import explorer


def chromium():
  return next(
    filter(None, map(shutil.which, ("chromium", "google-chrome"))), None
  )


@pytest.fixture(scope="module")
def browser():
  sync = pytest.importorskip(
    "playwright.sync_api", reason="needs the extra: browser"
  )
  path = chromium()
  if path is None:
    pytest.skip("needs chromium, a package of the system")
  with sync.sync_playwright() as driver:
    browser = driver.chromium.launch(
      executable_path=path, args=["--no-sandbox"], timeout=120_000
    )
    yield browser
    browser.close()


@pytest.fixture
def show(browser, tmp_path):
  """Opens trees; whatever goes wrong in the page fails the test."""
  wrong, contexts = [], []

  def opened(trees, hash="", **options):
    file = explorer.save(tmp_path / "tree.html", trees)
    size = {"width": 1280, "height": 800}
    contexts.append(browser.new_context(**{"viewport": size} | options))
    page = contexts[-1].new_page()
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on(
      "request",
      lambda r: wrong.append(r.url) if not r.url.startswith("file:") else None,
    )
    page.goto(file.as_uri() + hash)
    page.wait_for_selector("[role=treeitem]", state="attached")
    return page

  yield opened
  for context in contexts:
    context.close()
  assert not wrong


def node(n, parent, text, log_prob, children=(), answer=None, moves=(), **more):
  return {
    "id": n, "parent": parent, "children": list(children),
    "tokens": list(text), "log_prob": log_prob, "prior": math.exp(log_prob),
    "visits": 1, "value": 0.0, "first_value": 0.0, "flags": [],
    "moves": list(moves),
    "answer": answer and {
      "text": answer[0], "ends": True, "rest": "", "reward": answer[1],
      "correct": answer[1] == 1, "log_prob": answer[2],
    },
  } | more  # fmt: skip


def move(text, log_prob, state="open", to=None):
  return {
    "tokens": [text], "log_prob": log_prob, "prior": math.exp(log_prob),
    "state": state, "to": to,
  }  # fmt: skip


HALF = math.log(0.5)
#  0 ─┬─ 1 ␣a ─┬─ 3 ␣cat   (reward .5)
#     │        └─ 4 ␣dog   (reward 1: the champion)
#     └─ 2 ␣b ──── 5 <b>   (flagged)
SMALL = {
  "name": "small", "prompt": "Say␣it", "facts": {"rule": "best_first"},
  "joiner": "", "by_reward": False, "champion": 4,
  "nodes": [
    node(0, None, [], 0.0, [1, 2], visits=6, value=0.3),
    node(1, 0, ["␣a"], HALF, [3, 4], visits=3, moves=[move("␣the", -2.0)]),
    node(2, 0, ["␣b"], HALF - 0.1, [5], visits=2,
         moves=[move("␣a", -1.0, "merged", 1)]),
    node(3, 1, ["␣cat"], HALF, answer=("a cat", 0.5, 2 * HALF)),
    node(4, 1, ["␣d", "og"], HALF - 0.1, answer=("a dog", 1, 2 * HALF)),
    node(5, 2, ["<b>"], -0.1, flags=["unsafe"]),
  ],
  "simulations": [
    {"node": n, "outcome": o} for n, o in
    ((1, 0.0), (2, 0.0), (3, 0.5), (4, 1.0), (5, 0.0))
  ],
}  # fmt: skip


def until(page, condition):
  """Waits; the page's policy lets no condition be evaluated within it."""
  deadline = time.monotonic() + 60
  while not page.evaluate(condition):
    assert time.monotonic() < deadline, condition
    page.wait_for_timeout(50)


def seen(page, selector):
  """Elements, once the page has drawn what was done to it: at the next frame.

  What asks for a frame later is called later, within the same frame.
  """
  page.evaluate("new Promise((done) => requestAnimationFrame(done))")
  return page.locator(selector)


def item(page, n, tree=0):
  return seen(page, f"#t{tree}n{n}")


def items(page):
  return seen(page, "[role=treeitem]")


def selected(page):
  return seen(page, "[role=treeitem][aria-selected=true]").get_attribute(
    "data-id"
  )


def facts(page):
  """The numbers in the panel."""
  seen(page, "#details")
  return page.evaluate(
    "Object.fromEntries([...document.querySelectorAll('#details dt')]"
    ".map((dt) => [dt.textContent, dt.nextSibling.textContent]))"
  )


def test_a_click_selects_and_says_what_is_known(show):
  page = show([SMALL])
  assert selected(page) == "4"  # The champion.
  item(page, 1).click()
  assert selected(page) == "1" and page.url.endswith("#node=1")
  panel = seen(page, "#details")
  assert "Node 1" in panel.inner_text()
  assert facts(page) | {"visits": "3", "prior": "0.50"} == facts(page)
  # exp(2 log .5) of the correct answer, over the node's own .5.
  assert facts(page)["success probability ≥"] == "0.50"
  moves = panel.locator("tr").all_inner_texts()
  assert [row.split("\t")[0].strip() for row in moves] == [
    "␣cat", "␣dog", "␣the",
  ]  # fmt: skip
  panel.locator("tr a").first.click()
  until(page, "location.hash == '#node=3'")
  assert selected(page) == "3"
  assert page.title() == "Tree: Say␣it"


def test_branches_close_and_open(show):
  page = show([SMALL])
  assert items(page).count() == 6
  item(page, 1).locator("[data-toggle]").click()
  assert items(page).count() == 4
  assert item(page, 1).get_attribute("aria-expanded") == "false"
  assert "+2" in item(page, 1).inner_text()
  item(page, 1).dblclick()
  assert items(page).count() == 6
  page.click("#collapse")  # All but the way to the champion.
  assert items(page).count() == 5 and item(page, 5).count() == 0
  page.click("#expand")
  assert items(page).count() == 6


def test_keys_move_about(show):
  page = show([SMALL])
  item(page, 0).click()
  for key, expected in (
    ("ArrowRight", "1"), ("ArrowRight", "3"), ("ArrowDown", "4"),
    ("ArrowDown", "2"), ("ArrowRight", "5"), ("ArrowLeft", "2"),
    ("ArrowUp", "1"), ("End", "5"), ("Home", "0"), ("c", "4"),
  ):  # fmt: skip
    page.keyboard.press(key)
    assert selected(page) == expected, key
    focused = page.evaluate("document.activeElement.dataset.id")
    assert focused == expected, key
  item(page, 1).focus()
  page.keyboard.press("ArrowLeft")  # Of what is selected: to its parent.
  assert selected(page) == "1"
  page.keyboard.press("Enter")
  assert item(page, 1).get_attribute("aria-expanded") == "false"
  page.keyboard.press("ArrowRight")
  assert item(page, 1).get_attribute("aria-expanded") == "true"
  page.keyboard.press("?")
  assert seen(page, "#legend").is_visible()
  page.keyboard.press("/")
  assert page.evaluate("document.activeElement.id") == "query"


def test_keys_of_the_browser_stay_its_own(show):
  page = show([SMALL])
  page.evaluate("document.activeElement.blur()")
  page.keyboard.press("Control+p")
  assert seen(page, "#play").inner_text() == "▶ Replay"
  page.click("#back")
  step = page.input_value("#step")
  page.keyboard.press(",")  # The focus is on a button.
  assert int(page.input_value("#step")) == int(step) - 1


def test_what_is_paid_may_be_less_than_nothing(show):
  """The best below is none that nobody was paid; tiny chances are numbers."""
  tree = {
    **SMALL,
    "champion": 2,
    "nodes": [
      node(0, None, [], 0.0, [1], visits=3),
      node(1, 0, ["␣a"], -750.0, [2], visits=2),
      node(2, 1, ["␣b"], -1.0, answer=("a b", -1.0, -751.0)),
    ],
    "simulations": [{"node": n, "outcome": -1.0} for n in (1, 2)],
  }
  page = show([tree])
  for n in (0, 1, 2):
    item(page, n).click()
    assert facts(page)["best reward below"] in ("-1", "-1.00", "−1.00")
    assert "NaN" not in seen(page, "#details").inner_text()


def test_the_search_finds_text_across_tokens(show):
  page = show([SMALL])
  page.click("#collapse")
  page.fill("#query", "a DOG")
  assert seen(page, "#found").inner_text() == "1"
  page.press("#query", "Enter")
  assert selected(page) == "4"
  page.fill("#query", "<b>")
  page.press("#query", "Enter")  # In a branch that was closed.
  assert selected(page) == "5" and item(page, 5).is_visible()
  assert "found" in item(page, 5).get_attribute("class")
  page.fill("#query", "a")
  count = seen(page, "#found").inner_text()
  assert count == "2"  # ␣a, and ␣cat whose step has one of its own.
  page.press("#query", "Shift+Enter")
  assert seen(page, "#found").inner_text() == "2 of 2"
  assert "2 of 2" in seen(page, "#live").inner_text()
  page.fill("#query", "nothing")
  assert seen(page, ".found").count() == 0


def test_the_replay_shows_what_was_there_then(show):
  page = show([SMALL])

  def shown():
    found = items(page)
    return sorted(int(i.get_attribute("data-id")) for i in found.all())

  page.click("#first")
  assert shown() == [0] and "no answer yet" in page.inner_text(".facts")
  page.click("#next")
  assert shown() == [0, 1]
  assert "simulation 1 of 5" in seen(page, "#live").inner_text()
  for _ in range(3):
    page.click("#next")
  assert shown() == [0, 1, 2, 3, 4]
  item(page, 1).click()
  # Itself and two below; outcomes 0, .5 and 1.
  assert facts(page) | {"visits": "3", "value": "0.50"} == facts(page)
  page.click("#back")
  assert facts(page) | {"visits": "2", "value": "0.25"} == facts(page)
  assert "champion" in item(page, 3).get_attribute("class")
  page.click("#play")
  until(page, "document.querySelector('#step').value == '5'")
  until(page, "document.querySelector('#play').textContent.includes('Replay')")
  assert shown() == [0, 1, 2, 3, 4, 5]


def test_moves_not_taken_and_merged_ones_are_shown(show):
  page = show([SMALL])
  assert seen(page, ".pill").count() == 0
  item(page, 0).click()
  page.keyboard.press("m")
  assert sorted(seen(page, ".pill .text").all_inner_texts()) == ["␣a", "␣the"]
  seen(page, ".pill.merged").click()
  assert selected(page) == "1"
  assert "⇄1" in item(page, 1).inner_text()
  assert "lead here too" in page.inner_text("#details").lower()


def test_flags_are_seen_and_said(show):
  page = show([SMALL], "#node=5")
  assert selected(page) == "5"
  assert "⚠" in item(page, 5).inner_text()
  assert "unsafe" in item(page, 5).get_attribute("aria-label")
  assert "marked unsafe" in page.inner_text("#details")


def test_a_tree_is_a_tree_to_a_screen_reader(show):
  page = show([SMALL])
  tree = seen(page, "[role=tree]")
  assert tree.get_attribute("aria-label") == "Tree of small"
  champion = item(page, 4)
  said = champion.get_attribute("aria-label")
  assert said.startswith("dog") and "reward 1.00" in said and "champion" in said
  places = [
    champion.get_attribute(f"aria-{name}")
    for name in ("level", "posinset", "setsize", "selected", "expanded")
  ]
  assert places == ["3", "2", "2", "true", None]
  # One stop of the tab key a tree, and all controls have names.
  assert seen(page, "[role=treeitem][tabindex='0']").count() == 1
  for control in seen(page, "button, input").all():
    if control.is_visible():
      assert control.inner_text() or control.get_attribute("aria-label")


def test_trees_side_by_side_follow_one_another(show):
  other = SMALL | {
    "name": "iteration 60",
    "champion": None,
    "nodes": [
      node(0, None, [], 0.0, [1], visits=2),
      node(1, 0, ["␣b"], -0.1),
    ],
    "simulations": [{"node": 1, "outcome": 0.0}],
  }
  page = show([SMALL, other])
  item(page, 2).click()
  assert item(page, 1, tree=1).get_attribute("aria-selected") == "true"
  assert page.url.endswith("#node=2")
  item(page, 0, tree=1).click()
  assert page.url.endswith("#tree=1&node=0")
  assert item(page, 0).get_attribute("aria-selected") == "true"
  assert "iteration 60" in page.inner_text("#details")
  phone = show([SMALL, other], viewport={"width": 390, "height": 800})
  panes = phone.locator(".pane")
  assert [p.is_visible() for p in panes.all()] == [True, False]
  phone.click("#tabs button >> nth=1")
  assert [p.is_visible() for p in panes.all()] == [False, True]
  linked = show(
    [SMALL, other], "#node=5", viewport={"width": 390, "height": 800}
  )
  box, view = (
    x.bounding_box()
    for x in (item(linked, 5), linked.locator(".view >> nth=0"))
  )
  assert view["x"] <= box["x"] <= view["x"] + view["width"] - box["width"]
  # Nothing is wider than the screen.
  assert phone.evaluate("document.documentElement.scrollWidth") == 390


def test_hostile_text_is_shown_as_text(show):
  evil = "</script><img src=x onerror=alert(1)><b>&lt;"
  tree = SMALL | {
    "name": evil, "prompt": evil, "facts": {evil: evil},
    "nodes": [
      node(0, None, [], 0.0, [1], moves=[move(evil, -1.0)]),
      node(1, 0, [evil], -0.1, answer=(evil, 1, -0.1), flags=[evil]),
    ],
    "champion": 1, "simulations": [{"node": 1, "outcome": 1.0}],
  }  # fmt: skip
  page = show([tree])
  page.click("#untaken")
  item(page, 0).click()
  assert seen(page, "img").count() == 0
  assert evil in page.inner_text("#prompt")
  assert evil in item(page, 1).inner_text()
  assert page.inner_text("#details").count(evil) >= 3


def test_a_large_tree_draws_what_is_in_view_alone(show):
  count = 2000
  below = {n: [c for c in (3 * n + 1, 3 * n + 2, 3 * n + 3) if c < count]
           for n in range(count)}  # fmt: skip
  tree = SMALL | {
    "champion": None,
    "nodes": [
      node(n, (n - 1) // 3 if n else None, [f"␣{n}"], -1.0 if n else 0.0,
           below[n])
      for n in range(count)
    ],
    "simulations": [{"node": n, "outcome": 0.0} for n in range(1, count)],
  }  # fmt: skip
  page = show([tree])
  page.click("#expand")
  assert 10 < items(page).count() < 400
  page.evaluate("location.hash = 'node=1999'")
  until(
    page, "document.querySelector('[aria-selected=true]')?.dataset.id == '1999'"
  )
  assert item(page, 1999).is_visible() and item(page, 0).count() == 0
  page.click("#fit")  # Too far away to read: the canvas draws them.
  until(page, "document.querySelector('.world.far')")
  assert items(page).count() == 1


def test_a_notebook_s_frame_is_explored_as_well(show, tmp_path):
  page = show([SMALL])
  file = tmp_path / "notebook.html"
  file.write_text(explorer.frame([SMALL], "as <text>"))
  page.goto(file.as_uri())
  frame = page.frame_locator("iframe")
  frame.locator("#t0n1").click()
  assert "Node 1" in frame.locator("#details").inner_text()
  # A link would lead to the notebook's own address.
  frame.locator("#details tr a").first.click()
  frame.locator("#details h2", has_text="Node 3").wait_for()
  assert page.url == file.as_uri()
  assert seen(page, "img, script").count() == 0
