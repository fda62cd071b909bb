// What is known of the selected node, beside the tree.

import { find, make, number, spoken, token } from "./dom.js";
import { flag } from "./flags.js";
import { band } from "./paint.js";
import { success, wayTo } from "./model.js";

const STATES = {
  taken: "taken",
  open: "not taken",
  ends: "ends here",
  merged: "merged",
  undrawn: "not drawn",
};
export function link(pane, node, ...children) {
  return make("a", { href: address(pane, node) }, children);
}

// The address of a node within the page.
export function address(pane, node) {
  return pane.index ? `#tree=${pane.index}&node=${node.id}` : `#node=${node.id}`;
}

// A line of tokens; each leads to its node.
function path(pane, node) {
  const steps = wayTo(node).slice(1).map((at) =>
    make("a", { href: address(pane, at), class: at === node ? "here" : null, title: `node ${at.id}` },
      at.tokens.map(token)),
  );
  return make("p", { class: "path" }, steps.length ? steps : [make("i", {}, "the prompt")]);
}

function table(rows) {
  const cells = rows
    .filter(([, value]) => value !== null)
    .flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
  return make("dl", {}, cells);
}

export function describe(pane, node) {
  const { tree } = pane;
  const { now } = node;
  const last = tree.step === tree.simulations.length;
  const parts = [
    make("h2", {}, node.parent ? `Node ${node.id}` : "Prompt", make("small", {}, tree.name)),
    node.parent ? path(pane, node) : make("p", { class: "path" }, tree.prompt),
    ...node.flags.map((name) => make("p", { class: "flag" }, `${flag(name).sign} ${flag(name).text}`)),
    table([
      ["visits", `${now.visits}`],
      ["prior", node.parent ? number(Math.exp(node.log_prob)) : null],
      ["as the rule weighs it", differs(node) ? number(node.prior) : null],
      ["log-probability", node.parent ? number(node.total) : null],
      ["value", number(now.value)],
      ["best reward below", now.best === null ? null : number(now.best)],
      [tree.by_reward ? "reward of a sample ≥" : "success probability ≥", number(success(node))],
      ["simulation", node.parent ? `${node.id} of ${tree.simulations.length}` : null],
      ...(node.parent ? [] : Object.entries(tree.facts)),
    ]),
    answer(now.answer, node === tree.best),
    moves(pane, node, last),
    merges(pane, node),
  ];
  find("details").replaceChildren(...parts.filter((part) => part !== null));
}

// Whether the rule's prior is another number than the model's.
function differs(node) {
  return node.prior !== null && Math.abs(node.prior - Math.exp(node.log_prob)) > 1e-4;
}

function answer(found, champion) {
  if (!found) return null;
  const lines = found.text.replaceAll("⏎", "⏎\n");
  const correct = found.correct ? "correct" : "not marked correct";
  return make(
    "div",
    { class: `answer reward-${band(found.reward)}` },
    make("h3", {}, champion ? "★ Champion" : "Answer found here"),
    make("pre", {}, lines || "(empty)"),
    make("p", {}, `reward ${number(found.reward)}, ${correct}, log-probability ${number(found.log_prob)}`),
    found.ends ? null : make("p", {}, `sampled beyond this node: ${found.rest || "the end"}`),
  );
}

// All that the node offered, likeliest first.
function moves(pane, node, last) {
  const taken = node.children
    .filter((child) => child.now.made)
    .map((child) => ({
      tokens: child.tokens,
      p: Math.exp(child.log_prob),
      state: "taken",
      to: child.id,
    }));
  // Of an earlier moment only what was taken is known.
  const others = node.moves.map((move) => ({
    ...move,
    p: move.log_prob === null ? move.prior : Math.exp(move.log_prob),
  }));
  const all = [...taken, ...others].sort((a, b) => b.p - a.p);
  if (!all.length) return null;
  const row = (move) => {
    const text = move.tokens.length ? move.tokens.map(token) : [make("i", {}, "another draw")];
    const target = pane.tree.nodes.get(move.to);
    const bar = make("span", { class: "bar" });
    bar.style.width = `${Math.round(100 * Math.min(1, move.p))}%`;
    return make(
      "tr",
      { class: move.state },
      make("td", {}, target ? link(pane, target, text) : text),
      make("td", { class: "prob" }, bar, number(move.p)),
      make("td", {}, STATES[move.state]),
    );
  };
  return make(
    "div",
    {},
    make("h3", {}, last ? "Moves" : "Moves, as they were at the end"),
    make("table", {}, make("tbody", {}, all.map(row))),
  );
}

function merges(pane, node) {
  if (!node.merges.length) return null;
  const items = node.merges.map((from) =>
    make("li", {}, link(pane, from, from.parent ? from.said : "the prompt")));
  return make("div", {}, make("h3", {}, "Moves that lead here too, from"), make("ul", {}, items));
}

// What the live region says of a selection.
export function announced(node) {
  return spoken(node.said) || "prompt";
}
