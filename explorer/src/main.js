// The page: trees side by side, one selection, one search, one replay.

import { address, describe } from "./details.js";
import { find, make, number, spoken } from "./dom.js";
import { legend } from "./legend.js";
import { goTo, read, search } from "./model.js";
import { Pane } from "./pane.js";

const LONGEST = 20000; // Milliseconds of a replay.
const still = matchMedia("(prefers-reduced-motion: reduce)");

const { trees } = JSON.parse(find("data").textContent);
const on = { select: selected, key: shortcut };
const panes = trees.map((tree, index) => new Pane(read(tree), index, on));
let active = panes[0];
let playing = null;
let matches = [];
let quiet = false; // Whether a selection follows one in another tree.

const steps = Math.max(...panes.map(({ tree }) => tree.simulations.length));

// Something for a screen reader; the last of several wins.
function tell(text) {
  find("live").textContent = text;
}

function selected(node, pane, move) {
  if (quiet) return;
  active = pane;
  for (const one of panes) one.element.classList.toggle("active", one === pane);
  for (const tab of find("tabs").children) {
    tab.setAttribute("aria-pressed", String(tab.dataset.tree === String(pane.index)));
  }
  describe(pane, node);
  if (location.protocol !== "about:") {
    history.replaceState(null, "", address(pane, node));
  }
  follow(node, pane, move);
}

// The same prefix in the other trees.
function follow(node, pane, move) {
  quiet = true;
  for (const other of panes) {
    const same = other.tree.byKey.get(node.key);
    if (other !== pane && same?.now.made) other.select(same, { focus: false, move });
  }
  quiet = false;
}

// Links to nodes: #node=12, or #tree=1&node=12.
function followHash({ focus = true, hash = location.hash } = {}) {
  const wanted = new URLSearchParams(hash.slice(1));
  const pane = panes[Number(wanted.get("tree") ?? 0)];
  const node = pane?.tree.nodes.get(Number(wanted.get("node") ?? NaN));
  if (!node) return false;
  if (!node.now.made) setStep(steps);
  pane.select(node, { focus, center: true });
  return true;
}

// Search.

function look() {
  const query = find("query").value;
  matches = panes.flatMap((pane) => {
    const nodes = search(pane.tree, query);
    pane.found = new Set(nodes);
    pane.refresh();
    return nodes.map((node) => ({ pane, node }));
  });
  matches.at = -1;
  count();
  if (query.trim()) tell(`${matches.length} found`);
}

function count() {
  const { value } = find("query");
  const at = matches.at >= 0 ? `${matches.at + 1} of ` : "";
  find("found").textContent = value.trim() ? `${at}${matches.length}` : "";
}

function nextMatch(by) {
  if (!matches.length) return;
  const { length } = matches;
  matches.at = matches.at < 0 ? (by > 0 ? 0 : length - 1) : (matches.at + by + length) % length;
  const { pane, node } = matches[matches.at];
  if (!node.now.made) setStep(steps);
  pane.select(node, { focus: false, center: true });
  count();
  tell(`${matches.at + 1} of ${length}: ${pane.say(node)}`);
}

// Replay.

function setStep(step) {
  const wanted = Math.min(Math.max(step, 0), steps);
  find("step").value = wanted;
  for (const pane of panes) {
    goTo(pane.tree, Math.min(wanted, pane.tree.simulations.length));
    pane.stepped();
  }
  describe(active, active.selected);
  const text = stepText(wanted);
  find("stepped").textContent = text;
  find("step").setAttribute("aria-valuetext", spoken(text));
  if (!playing) tell(spoken(text));
}

function stepText(step) {
  const { tree } = active;
  const at = Math.min(step, tree.simulations.length);
  const head = `simulation ${at} of ${tree.simulations.length}`;
  const simulation = tree.simulations[at - 1];
  if (!simulation) return head;
  const node = tree.nodes.get(simulation.node);
  const said = node.id === at ? node.said || "(nothing)" : `back to ${node.said || "the prompt"}`;
  const reward = node.answer && node.id === at ? `, reward ${number(node.answer.reward)}` : "";
  return `${head}: ${said}${reward}`;
}

function stop() {
  clearInterval(playing);
  playing = null;
  find("play").textContent = "▶ Replay";
}

function play() {
  if (playing) {
    stop();
    tell("stopped");
    return;
  }
  if (Number(find("step").value) >= steps) setStep(0);
  const pause = still.matches ? 1000 : Math.max(30, Math.min(500, LONGEST / steps));
  find("play").textContent = "❚❚ Stop";
  playing = setInterval(() => {
    setStep(Number(find("step").value) + 1);
    if (Number(find("step").value) >= steps) {
      stop();
      tell(find("stepped").textContent);
    }
  }, pause);
}

function stepBy(by) {
  stop();
  setStep(Number(find("step").value) + by);
}

// Buttons and keys.

function toggleMoves() {
  const button = find("untaken");
  const shown = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(shown));
  for (const pane of panes) {
    pane.untaken = shown;
    pane.place();
  }
}

function toggleLegend() {
  const panel = find("legend");
  panel.hidden = !panel.hidden;
  find("help").setAttribute("aria-expanded", String(!panel.hidden));
}

const KEYS = {
  "/": () => find("query").focus(),
  "?": toggleLegend,
  m: toggleMoves,
  p: play,
  ",": () => stepBy(-1),
  ".": () => stepBy(1),
  n: () => nextMatch(1),
  N: () => nextMatch(-1),
};

// Whether a key that a tree has no use for means something to the page.
function shortcut(key) {
  KEYS[key]?.();
  return key in KEYS;
}

function listen() {
  const clicks = {
    expand: () => panes.forEach((pane) => pane.openAll()),
    collapse: () => panes.forEach((pane) => pane.closeAll()),
    fit: () => panes.forEach((pane) => pane.fit()),
    untaken: toggleMoves,
    help: toggleLegend,
    first: () => stepBy(-steps),
    back: () => stepBy(-1),
    next: () => stepBy(1),
    play,
  };
  for (const [id, action] of Object.entries(clicks)) {
    find(id).addEventListener("click", action);
  }
  find("query").addEventListener("input", look);
  find("query").addEventListener("keydown", (event) => {
    if (event.key === "Enter") nextMatch(event.shiftKey ? -1 : 1);
    if (event.key === "Escape") active.select(active.selected);
  });
  find("step").addEventListener("input", (event) => {
    stop();
    setStep(Number(event.target.value));
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // The browser's.
    if (event.target.closest("input, [role=tree]")) return; // They have their own.
    if (shortcut(event.key)) event.preventDefault();
  });
  // In a notebook's frame a link would lead to the notebook's own address.
  find("details").addEventListener("click", (event) => {
    const to = event.target.closest("a")?.getAttribute("href");
    if (!to || location.protocol !== "about:") return;
    event.preventDefault();
    followHash({ hash: to });
  });
  window.addEventListener("hashchange", () => followHash());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
    panes.forEach((pane) => pane.recolour()),
  );
}

function start() {
  const { tree } = active;
  find("prompt").textContent = tree.prompt;
  document.title = `Tree: ${tree.prompt}`;
  find("step").max = steps;
  find("legend").append(legend());
  find("panes").append(...panes.map((pane) => pane.element));
  find("panes").classList.toggle("several", panes.length > 1);
  if (panes.length > 1) {
    find("tabs").hidden = false;
    find("tabs").append(...panes.map((pane) => {
      const tab = make("button", { "data-tree": pane.index, "aria-pressed": "false" }, pane.tree.name);
      tab.addEventListener("click", () => pane.select(pane.selected));
      return tab;
    }));
  }
  listen();
  active.element.classList.add("active"); // On a small screen the one that has a size.
  for (const pane of panes) pane.start();
  setStep(steps);
  if (!followHash({ focus: false })) {
    active.select(tree.best ?? tree.root, { focus: false, move: false });
  }
  tell("");
}

start();
