// What signs, numbers and keys mean.

import { FLAGS } from "./flags.js";
import { make } from "./dom.js";

const SIGNS = [
  ["★", "champion, the best finished answer; the bold line is the way to it"],
  ["n", "visits: simulations that went through the node, its own included"],
  ["p", "prior: the model’s probability of the step, given what is before"],
  ["v", "value: mean outcome of the visits, the thin line below a node"],
  ["⇄", "moves in another order that lead to the same state; they are merged"],
  ...[...FLAGS.values()].map(({ sign, text }) => [sign, text]),
  ["┄", "a move that was not taken (M), of probability .01 or more; all are in the panel"],
  ["␣ ⏎ ⇥", "space, new line, tab, where they would be overlooked"],
  ["■", "the end of a response"],
];
const KEYS = [
  ["← →", "parent, likeliest child"],
  ["↑ ↓", "the branch above, below"],
  ["Enter", "close or open a branch"],
  ["Home End", "first, last node"],
  ["C", "champion"],
  ["F + −", "fit, nearer, farther"],
  ["/ N", "search, next match"],
  ["M", "moves not taken"],
  [", . P", "a simulation back, on, replay"],
];

function list(items, tag) {
  const rows = items.flatMap(([sign, text]) => [
    make("dt", {}, make(tag, {}, sign)),
    make("dd", {}, text),
  ]);
  return make("dl", {}, rows);
}

export function legend() {
  const swatches = [0, 1, 2, 3, 4].map((i) => make("span", { class: `swatch reward-${i}` }));
  const scale = make("p", { class: "scale" }, "reward 0 ", swatches, " 1");
  const widths = make("p", {}, "A link is as wide as its node has visits, and has the colour of the best reward below it.");
  const fragment = document.createDocumentFragment();
  fragment.append(
    make("h2", {}, "Signs"), scale, widths, list(SIGNS, "span"),
    make("h2", {}, "Keys"), list(KEYS, "kbd"),
    make("p", {}, "Drag or scroll to move, pinch or Ctrl and scroll to zoom. The address names the selected node."),
  );
  return fragment;
}
