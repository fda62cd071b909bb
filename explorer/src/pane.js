// A tree on the screen: nodes as elements where they can be read and are in
// view, links on a canvas below them; pointer, wheel and keys.

import { select } from "d3-selection";
import { zoom, zoomIdentity } from "d3-zoom";
import { flag } from "./flags.js";
import { make, number, short, spoken, token } from "./dom.js";
import { NODE, PILL, fonts, measure, place } from "./layout.js";
import { band, paint, palette } from "./paint.js";
import { wayTo } from "./model.js";

const FAR = 0.42; // Below this scale nobody can read.
const LEAST = 0.45; // Scale at which a tree is shown whole at first.
const MARGIN = 240; // Pixels around the view in which nodes are there already.
const MANY = 300; // Nodes of a tree of which only the champion's path is open.

export class Pane {
  // `on` is told of: select(node, pane, move), key(name).
  constructor(tree, index, on) {
    Object.assign(this, { tree, index, on, found: new Set(), untaken: false });
    this.items = new Map(); // Elements by what they show.
    this.selected = tree.root;
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.world = make("div", { class: "world", role: "presentation" });
    this.view = make(
      "div",
      { class: "view", role: "tree", "aria-label": `Tree of ${tree.name}` },
      this.canvas,
      this.world,
    );
    this.facts = make("p", { class: "facts" });
    this.element = make(
      "section",
      { class: "pane", "data-tree": index, "aria-label": tree.name },
      make("div", { class: "head" }, make("h2", {}, tree.name), this.facts),
      this.view,
    );
    if (tree.nodes.size > MANY) this.closeAll();
  }

  // Once it stands in the page: sizes are known from then on.
  start() {
    this.font = fonts(this.view);
    this.measure();
    this.zoom = zoom()
      .scaleExtent([0.02, 2])
      .clickDistance(4)
      .filter((event) => !event.button && (event.type !== "wheel" || event.ctrlKey || event.metaKey))
      .on("zoom", ({ transform }) => this.moved(transform));
    this.at = zoomIdentity;
    this.stage = select(this.view).call(this.zoom).on("dblclick.zoom", null);
    this.view.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.view.addEventListener("click", (event) => this.click(event));
    this.view.addEventListener("dblclick", (event) => this.doubleClick(event));
    this.view.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.resize()).observe(this.view);
    this.recolour();
    this.place();
    this.resize();
    this.home();
  }

  recolour() {
    this.colours = palette(this.view);
    this.schedule();
  }

  measure() {
    measure(this.tree, this.font, label, (node) => stats(node).flat().join(" "));
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.view;
    if (!width || !height) return;
    const first = !this.size;
    this.size = { width, height };
    this.ratio = window.devicePixelRatio || 1;
    this.canvas.width = width * this.ratio;
    this.canvas.height = height * this.ratio;
    if (first && this.at) this.home();
    this.draw();
  }

  // Where all is after something opened, closed, or the pills came.
  place() {
    const anchor = this.anchor();
    const { x: oldX, y: oldY } = anchor ?? {};
    const placed = place(this.tree, this.untaken);
    this.shown = placed.shown;
    this.extent = placed;
    this.fresh = true;
    this.refreshFacts();
    if (anchor) this.zoom.translateBy(this.stage, oldX - anchor.x, oldY - anchor.y);
    this.schedule();
  }

  // The node that stays where it is: the selected one, or another in view.
  anchor() {
    if (!this.size || !this.shown) return null;
    const seen = this.shown.filter((node) => node.now.made && touches(node, this.inView(0)));
    return seen.includes(this.selected) ? this.selected : (seen[0] ?? null);
  }

  refreshFacts() {
    const { tree } = this;
    const best = tree.best;
    const parts = [
      `${tree.step}/${tree.simulations.length} simulations`,
      `${1 + tree.root.now.below} nodes`,
      best ? `best reward ${number(best.now.answer.reward)}` : "no answer yet",
      `${tree.by_reward ? "reward" : "success"} ≥ ${number(tree.root.now.solved)}`,
    ];
    this.facts.textContent = parts.join(" · ");
  }

  // The selection and the ways that are drawn changed, or the replay went on.
  refresh() {
    this.fresh = true;
    this.refreshFacts();
    this.schedule();
  }

  moved(transform) {
    this.at = transform;
    this.schedule();
  }

  schedule() {
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    if (this.frame) cancelAnimationFrame(this.frame);
    this.frame = undefined;
    if (!this.size || !this.shown) return;
    const { x, y, k } = this.at;
    const far = k < FAR;
    this.way = new Set(wayTo(this.tree.best));
    paint(this.canvas.getContext("2d"), this.at, this.tree, this.shown, {
      colours: this.colours,
      ratio: this.ratio,
      way: this.way,
      found: this.found,
      selected: this.selected,
      untaken: this.untaken,
      far,
    });
    this.world.style.transform = `translate(${x}px, ${y}px) scale(${k})`;
    this.world.classList.toggle("far", far);
    if (this.fresh || !this.isCovered()) this.fill(far);
  }

  inView(margin) {
    const { x, y, k } = this.at;
    return {
      left: (-x - margin) / k,
      top: (-y - margin) / k,
      right: (this.size.width - x + margin) / k,
      bottom: (this.size.height - y + margin) / k,
    };
  }

  // Whether all that is in view has elements already.
  isCovered() {
    const now = this.inView(0);
    const { box, far } = this.covered ?? {};
    return (
      box && far === this.at.k < FAR && box.left <= now.left && box.top <= now.top &&
      box.right >= now.right && box.bottom >= now.bottom
    );
  }

  // Makes the elements of nodes in view and drops those of others.
  fill(far) {
    const box = this.inView(MARGIN);
    const wanted = new Map();
    for (const node of this.shown) {
      if (!node.now.made) continue;
      const near = !far && touches(node, box);
      // The selected one is there for screen readers, wherever it is.
      if (near || node === this.selected) wanted.set(node.id, () => this.item(node));
      if (!near || !this.untaken) continue;
      for (const [i, pill] of node.pills.entries()) {
        wanted.set(`${node.id}/${i}`, () => pillElement(pill, node));
      }
    }
    for (const [id, element] of this.items) {
      if (wanted.has(id)) continue;
      element.remove();
      this.items.delete(id);
    }
    const added = document.createDocumentFragment();
    for (const [id, build] of wanted) {
      const old = this.items.get(id);
      if (old && !this.fresh) continue;
      const element = build();
      this.items.set(id, element);
      if (!old) added.append(element);
      else if (old.contains(document.activeElement)) {
        old.replaceWith(element);
        element.focus({ preventScroll: true });
      } else old.replaceWith(element);
    }
    this.world.append(added);
    this.covered = { box, far };
    this.fresh = false;
  }

  // What of an element changes with the selection; a double click needs the
  // element to stay.
  mark(element, node) {
    if (!element) return;
    const chosen = node === this.selected;
    element.classList.toggle("selected", chosen);
    element.setAttribute("aria-selected", String(chosen));
    element.tabIndex = chosen ? 0 : -1;
  }

  // A node as an element.
  item(node) {
    const { now } = node;
    const kinds = ["node"];
    if (now.answer) kinds.push("answered", `reward-${band(now.answer.reward)}`);
    if (this.way.has(node)) kinds.push("way");
    if (node === this.tree.best) kinds.push("champion");
    if (this.found.has(node)) kinds.push("found");
    if (node.id === this.tree.step && this.tree.step < this.tree.simulations.length) {
      kinds.push("newest");
    }
    for (const flag of node.flags) kinds.push(`flag-${flag}`);
    const made = node.children.filter((child) => child.now.made);
    const siblings = node.parent?.children.filter((child) => child.now.made) ?? [node];
    const element = make(
      "div",
      {
        class: kinds.join(" "),
        role: "treeitem",
        id: `t${this.index}n${node.id}`,
        "data-id": node.id,
        "aria-level": node.level + 1,
        "aria-setsize": siblings.length,
        "aria-posinset": siblings.indexOf(node) + 1,
        "aria-expanded": made.length ? String(!node.closed) : null,
        "aria-label": this.say(node),
      },
      make("div", { class: "line", "aria-hidden": "true" }, this.marks(node, made)),
      make("div", { class: "stats", "aria-hidden": "true" }, stats(node).map(([name, text]) => make("span", {}, make("i", {}, name), text))),
      make("div", { class: "value", "aria-hidden": "true" }),
    );
    this.mark(element, node);
    element.style.left = `${node.x}px`;
    element.style.top = `${node.y}px`;
    element.style.width = `${node.w}px`;
    element.lastChild.style.width = `${100 * Math.min(1, Math.max(0, now.value))}%`;
    return element;
  }

  marks(node, made) {
    const { answer } = node.now;
    const text = node.parent ? node.tokens.map(token) : [make("b", {}, "prompt")];
    return [
      make("span", { class: "text" }, text),
      node.merges.length ? make("span", { class: "badge", title: "moves merged into it" }, `⇄${node.merges.length}`) : null,
      ...node.flags.map((name) => make("span", { class: "badge", title: flag(name).text }, flag(name).sign)),
      answer ? make("span", { class: "reward" }, `${node === this.tree.best ? "★" : ""}${short(answer.reward)}`) : null,
      made.length > 1 || (node.closed && made.length)
        ? make("span", { class: "toggle", "data-toggle": true }, node.closed ? `+${node.now.below}` : "−")
        : null,
    ];
  }

  // What a screen reader says of a node.
  say(node) {
    const { now } = node;
    const parts = [
      node.parent ? spoken(node.tokens.join(this.tree.joiner)) || "white space" : "prompt",
      `visits ${now.visits}`,
      node.parent ? `prior ${number(Math.exp(node.log_prob))}` : null,
      `value ${number(now.value)}`,
      now.answer ? `reward ${number(now.answer.reward)}` : null,
      node === this.tree.best ? "champion" : this.way.has(node) ? "on the champion’s path" : null,
      node.closed && now.below ? `${now.below} nodes closed` : null,
      ...node.flags.map((name) => flag(name).text),
    ];
    return parts.filter(Boolean).join(", ");
  }

  // Selection, opening, closing.

  select(node, { focus = true, center = false, move = true } = {}) {
    const closed = wayTo(node).slice(0, -1).filter((above) => above.closed);
    for (const above of closed) above.closed = false;
    if (closed.length) this.place();
    const old = this.selected;
    this.selected = node;
    if (!this.items.has(node.id)) this.fresh = true;
    if (move) this.show(node, center);
    this.draw();
    for (const one of [old, node]) this.mark(this.items.get(one.id), one);
    if (focus) this.items.get(node.id)?.focus({ preventScroll: true });
    this.on.select(node, this, move);
  }

  toggle(node) {
    if (!node.children.length) return;
    node.closed = !node.closed;
    if (node.closed && wayTo(this.selected).includes(node)) this.selected = node;
    this.place();
    this.select(node);
  }

  openAll() {
    for (const node of this.tree.order) node.closed = false;
    this.place();
  }

  // All but the way to the champion.
  closeAll() {
    const { order, way, root } = this.tree;
    for (const node of order) node.closed = node !== root && !way.has(node);
    if (!this.shown) return;
    while (wayTo(this.selected).slice(0, -1).some((node) => node.closed)) {
      this.selected = this.selected.parent;
    }
    this.place();
  }

  // Moving about.

  // The whole tree, or as much of it as can be seen at all.
  fit() {
    const { width, height } = this.extent;
    const k = Math.min(1, (this.size.width - 48) / width, (this.size.height - 48) / height);
    const x = (this.size.width - k * width) / 2;
    const y = (this.size.height - k * height) / 2;
    this.go(zoomIdentity.translate(x, y).scale(k));
  }

  // The root at the left, or all where it fits at a size to read.
  home() {
    if (!this.size) return;
    const { width, height } = this.extent;
    const scale = Math.min(1, (this.size.width - 48) / width, (this.size.height - 48) / height);
    const k = scale >= LEAST ? scale : 0.75;
    const top = Math.max(24, (this.size.height - k * height) / 2);
    this.zoom.transform(this.stage, zoomIdentity.translate(24, top).scale(k));
  }

  // Brings a node into view; to the middle, or just so far.
  show(node, center) {
    if (!this.size) return;
    const k = center && this.at.k < FAR ? 0.9 : this.at.k;
    const { width, height } = this.size;
    const left = node.x * k + this.at.x;
    const top = node.y * k + this.at.y;
    const [w, h] = [node.w * k, NODE.height * k];
    const seen = left >= 16 && top >= 16 && left + w <= width - 16 && top + h <= height - 16;
    if (seen && k === this.at.k) return;
    if (center) {
      const at = zoomIdentity
        .translate(width / 2 - (node.x + node.w / 2) * k, height / 2 - (node.y + NODE.height / 2) * k)
        .scale(k);
      this.go(at);
      return;
    }
    const inset = (at, size, room) => Math.min(Math.max(at, 24), Math.max(24, room - size - 24));
    const dx = inset(left, w, width) - left;
    const dy = inset(top, h, height) - top;
    this.zoom.translateBy(this.stage, dx / k, dy / k);
  }

  go(transform) {
    this.zoom.transform(this.stage, transform);
  }

  wheel(event) {
    if (event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const { k } = this.at;
    const unit = event.deltaMode === 1 ? 20 : 1;
    const [dx, dy] = event.shiftKey && !event.deltaX ? [event.deltaY, 0] : [event.deltaX, event.deltaY];
    this.zoom.translateBy(this.stage, (-dx * unit) / k, (-dy * unit) / k);
  }

  // The node at a place of the page, where it has no element.
  nodeAt(event) {
    const box = this.view.getBoundingClientRect();
    const [x, y] = this.at.invert([event.clientX - box.left, event.clientY - box.top]);
    return this.shown.find(
      (node) =>
        node.now.made && x >= node.x && x <= node.x + node.w && y >= node.y && y <= node.y + NODE.height,
    );
  }

  click(event) {
    const pill = event.target.closest("[data-to]");
    if (pill) {
      this.select(this.tree.nodes.get(Number(pill.dataset.to)), { center: true });
      return;
    }
    const element = event.target.closest("[data-id]");
    const node = element ? this.tree.nodes.get(Number(element.dataset.id)) : this.nodeAt(event);
    if (!node) return;
    if (event.target.closest("[data-toggle]")) this.toggle(node);
    else this.select(node, { center: !element });
  }

  doubleClick(event) {
    const element = event.target.closest("[data-id]");
    if (!element || event.target.closest("[data-toggle]")) return;
    this.toggle(this.tree.nodes.get(Number(element.dataset.id)));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const node = this.selected;
    const open = node.closed ? [] : made(node.children);
    const list = this.shown.filter((one) => one.now.made);
    const to = {
      ArrowRight: () => (node.closed ? this.toggle(node) : open[0]),
      ArrowLeft: () => node.parent,
      ArrowDown: () => beside(node, 1),
      ArrowUp: () => beside(node, -1),
      Home: () => this.tree.root,
      End: () => list.at(-1),
      Enter: () => this.toggle(node),
      " ": () => this.toggle(node),
      "*": () => this.openAll(),
      c: () => this.tree.best,
      f: () => this.fit(),
      "+": () => this.zoom.scaleBy(this.stage, 1.25),
      "-": () => this.zoom.scaleBy(this.stage, 0.8),
    }[event.key];
    if (!to) {
      if (this.on.key(event.key)) event.preventDefault();
      return;
    }
    event.preventDefault();
    const next = to();
    if (next) this.select(next, { center: next === this.tree.best && event.key === "c" });
  }

  // Replay.

  stepped() {
    if (!this.selected.now.made) {
      this.selected = wayTo(this.selected).filter((node) => node.now.made).at(-1);
    }
    const newest = this.tree.nodes.get(this.tree.step);
    if (newest && this.tree.step < this.tree.simulations.length) {
      const closed = wayTo(newest).slice(0, -1).filter((node) => node.closed);
      for (const node of closed) node.closed = false;
      if (closed.length) this.place();
      this.show(newest, false);
    }
    this.refresh();
  }
}

function touches(node, box) {
  return (
    node.x <= box.right && node.x + node.w >= box.left &&
    node.y <= box.bottom && node.y + NODE.height >= box.top
  );
}

const made = (nodes) => nodes.filter((node) => node.now.made);

// The node below or above: a sibling, or the nearest one of a node above.
function beside(node, by) {
  for (let at = node; at.parent; at = at.parent) {
    const siblings = made(at.parent.children);
    const next = siblings[siblings.indexOf(at) + by];
    if (next) return next;
  }
  return null;
}

function label(node) {
  return node.parent ? node.tokens.join(" ") : "prompt";
}

function stats(node) {
  const { now } = node;
  return [
    ["n", `${now.visits}`],
    ...(node.parent ? [["p", short(Math.exp(node.log_prob))]] : []),
    ["v", short(now.value)],
  ];
}

// A move that was not taken.
function pillElement(pill, node) {
  const { move } = pill;
  const said = move.tokens.length ? move.tokens.map(token) : [make("i", {}, pill.text)];
  const prob = short(pill.p);
  const element = make(
    "div",
    {
      class: `pill ${move.state}`,
      "data-to": move.to,
      title: `${move.state === "merged" ? "leads where another node is" : "not taken"}, below node ${node.id}`,
      "aria-hidden": "true",
    },
    make("span", { class: "text" }, said),
    make("span", { class: "prob" }, move.state === "merged" ? `${prob} ⇄` : prob),
  );
  element.style.left = `${node.x + PILL.indent}px`;
  element.style.top = `${node.y + pill.down}px`;
  element.style.width = `${node.w - PILL.indent}px`;
  return element;
}
