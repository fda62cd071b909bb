"""How smoothly the page of a large tree moves, in headless Chromium.

Purpose: the tree explorer (`python -m launch.inspect`) is to answer a click
within 100 ms and to pan at 60 frames a second with 2,000 nodes. Needs the
package playwright and a Chromium of the system.
Command: python -m experiments.benchmarks.explorer --nodes=2000

It prints JSON. Of each kind of click: milliseconds until the frame that shows
what it did, in the median and at worst, and what the page's thread computed for
one (`processor_ms`). Of moving, near and from far away: frames a second, the
longest frame, and the same for a frame. On a machine that does other things at
the same time only `processor_ms` says something of the page.
"""

import json
import math
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np
from absl import flags

from tsd_jax.base import config as config_lib

_NODES = flags.DEFINE_integer("nodes", 2000, "Of the tree.")
_CLICKS = flags.DEFINE_integer("clicks", 20, "Of each kind.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the tree.")
_OUTPUT = config_lib.path_flag("output", None, "Keep the page in this file.")

WORDS = (
  "the a of and to in is that it as for was with on be at by this from or an "
  "we can sum so then number times plus minus equals answer first last"
).split()

# Until the frame that shows what an event did has been handed on.
_ACT = """async ([selector, i, value]) => {
  const found = document.querySelectorAll(selector);
  const target = found[i % found.length];
  const start = performance.now();
  if (value !== null) target.value = value;
  const name = value === null ? "click" : "input";
  target.dispatchEvent(new MouseEvent(name, { bubbles: true }));
  await new Promise((done) => requestAnimationFrame(() => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = done;
    port2.postMessage(0);
  }));
  return performance.now() - start;
}"""
# A wheel event a frame, as a hand on a touch pad gives them.
_PAN = """async (frames) => {
  const view = document.querySelector(".view");
  const times = [];
  for (let i = 0; i <= frames; i += 1) {
    times.push(await new Promise(requestAnimationFrame));
    const deltaY = i < frames / 2 ? 40 : -40;
    view.dispatchEvent(new WheelEvent("wheel", {
      deltaX: 6, deltaY, bubbles: true, cancelable: true,
    }));
  }
  return times.slice(1).map((time, i) => time - times[i]);
}"""


def grown(count: int, seed: int) -> dict[str, Any]:
  """A tree as the page takes it, grown at random towards likely moves."""
  rng = np.random.default_rng(seed)
  nodes: list[dict[str, Any]] = [_node(0, None, [], 0.0)]
  scores, opened = [0.0], [0]
  for n in range(1, count):
    chances = np.exp(np.array(scores) - max(scores)) / (1 + np.array(opened))
    parent = int(rng.choice(n, p=chances / chances.sum()))
    p = float(rng.beta(1, 2))
    words = rng.choice(WORDS, size=int(rng.integers(1, 4))).tolist()
    nodes.append(_node(n, parent, ["␣" + word for word in words], math.log(p)))
    nodes[parent]["children"].append(n)
    scores.append(scores[parent] + 0.3 * math.log(p) + 0.2)
    opened.append(0)
    opened[parent] += 3
    if rng.random() < 0.3:
      nodes[n]["answer"] = {
        "text": " ".join(words),
        "ends": True,
        "rest": "",
        "reward": round(float(rng.beta(1, 2)), 3),
        "correct": bool(rng.random() < 0.05),
        "log_prob": scores[n] - 3,
      }
  for n in reversed(range(1, count)):
    nodes[nodes[n]["parent"]]["visits"] += nodes[n]["visits"]
  for node in nodes:
    node["children"].sort(key=lambda child: -nodes[child]["log_prob"])
  answered = [n for n in nodes if n["answer"]]
  return {
    "name": "synthetic",
    "prompt": f"A tree of {count:,} nodes",
    "facts": {},
    "joiner": "",
    "by_reward": False,
    "champion": max(answered, key=lambda n: n["answer"]["reward"])["id"],
    "nodes": nodes,
    "simulations": [
      {
        "node": n,
        "outcome": 0.0 if x["answer"] is None else x["answer"]["reward"],
      }
      for n, x in enumerate(nodes)
      if n
    ],
  }


def _node(
  n: int, parent: int | None, tokens: list[str], log_prob: float
) -> dict[str, Any]:
  return {
    "id": n,
    "parent": parent,
    "children": [],
    "tokens": tokens,
    "log_prob": log_prob,
    "prior": math.exp(log_prob),
    "visits": 1,
    "value": 0.5,
    "first_value": 0.5,
    "flags": [],
    "answer": None,
    "moves": [
      {
        "tokens": [f"␣{word}"],
        "log_prob": -2.5,
        "prior": 0.08,
        "state": "open",
        "to": None,
      }
      for word in WORDS[:6]
    ],
  }


class Meter:
  """Measures a page: on the clock, and the processor time of its thread."""

  def __init__(self, page: Any):
    """Asks the browser to count."""
    self._page = page
    self._session = page.context.new_cdp_session(page)
    domain = {"timeDomain": "threadTicks"}
    self._session.send("Performance.enable", domain)

  def _busy(self) -> float:
    """Milliseconds that the page's thread has computed so far."""
    metrics = self._session.send("Performance.getMetrics")["metrics"]
    found = {metric["name"]: metric["value"] for metric in metrics}
    return 1000 * found["TaskDuration"]

  def acts(self, selector: str, values: list[str | None]) -> dict[str, float]:
    """Clicks, or inputs of values: milliseconds each."""
    times, before = [], self._busy()
    for i, value in enumerate(values):
      times.append(self._page.evaluate(_ACT, [selector, 7 * i, value]))
    busy = (self._busy() - before) / len(values)
    return _rounded(
      median_ms=float(np.median(times)), worst_ms=max(times), processor_ms=busy
    )

  def pan(self, frames: int = 240) -> dict[str, float]:
    """A hand's way over the tree and back."""
    before = self._busy()
    times = self._page.evaluate(_PAN, frames)
    busy = (self._busy() - before) / frames
    return _rounded(
      frames_a_second=1000 * len(times) / sum(times),
      longest_ms=max(times),
      processor_ms=busy,
    )


def _rounded(**numbers: float) -> dict[str, float]:
  return {name: round(x, 1) for name, x in numbers.items()}


def measure(page: Any, clicks: int, nodes: int) -> dict[str, Any]:
  """Figures of a page that shows the tree."""
  meter, several = Meter(page), [None] * clicks
  found: dict[str, Any] = {"open_all": meter.acts("#expand", [None] * 5)}
  page.click("#fit")
  found["pan_far"] = meter.pan()
  page.evaluate("location.hash = 'node=0'")  # Near again.
  page.wait_for_timeout(500)
  found["pan"] = meter.pan()
  found["elements"] = page.locator(".node").count()
  found["select"] = meter.acts(".node", several)
  found["close"] = meter.acts(".node [data-toggle]", several)
  page.click("#expand")
  found["moves_not_taken"] = meter.acts("#untaken", [None] * 4)
  found["search"] = meter.acts("#query", [*WORDS[:clicks], ""])
  steps = np.linspace(0, nodes - 1, clicks).astype(int).tolist()
  found["replay"] = meter.acts("#step", [str(step) for step in steps])
  return found


def main(overrides: dict[str, str]) -> None:
  """Makes the page, opens it, prints what was measured."""
  del overrides
  try:
    from playwright.sync_api import sync_playwright
  except ImportError:
    raise config_lib.UserError(
      "the benchmark drives a browser: pip install playwright"
    ) from None
  path = shutil.which("chromium") or shutil.which("google-chrome")
  if path is None:
    raise config_lib.UserError("there is no chromium: install the system's")
  from tsd_jax.search import explorer

  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(_OUTPUT.value or pathlib.Path(folder) / "tree.html")
    explorer.save(file, [grown(_NODES.value, _SEED.value)])
    with sync_playwright() as driver:
      browser = driver.chromium.launch(
        executable_path=path, args=["--no-sandbox"]
      )
      page = browser.new_page(viewport={"width": 1440, "height": 900})
      page.goto(file.resolve().as_uri())
      page.wait_for_selector(".node")
      found = measure(page, _CLICKS.value, _NODES.value)
      facts = {
        "command": config_lib.command(
          "experiments.benchmarks.explorer", workdir=False
        ),
        "nodes": _NODES.value,
        "page_bytes": file.stat().st_size,
        "browser": browser.version,
      }
      browser.close()
  print(json.dumps(facts | found, indent=2))


if __name__ == "__main__":
  config_lib.run(main)
