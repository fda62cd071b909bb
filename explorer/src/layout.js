// Where nodes stand: the likeliest child goes on in its parent's line, the
// others branch off below, so that a path reads like a line of text.

export const NODE = { height: 40, row: 52, gap: 34, chain: 14 };
export const PILL = { height: 20, row: 23, indent: 12 };
const CHIP = { pad: 22, most: 300, least: 34 };
const LEAST = 0.01; // Probability of a move that is drawn below its node.
const MOST_PILLS = 4;

const context = document.createElement("canvas").getContext("2d");

function width(text, font) {
  context.font = font;
  return context.measureText(text).width;
}

// Fonts as the page has them, for widths.
export function fonts(element) {
  const mono = getComputedStyle(element).getPropertyValue("--mono");
  return {
    text: `600 13px ${mono}`,
    stats: `11px ${mono}`,
    pill: `11px ${mono}`,
  };
}

// Widths of nodes and of the moves that they did not take; once a tree.
export function measure(tree, font, label, stats) {
  for (const node of tree.order) {
    const text = width(label(node), font.text);
    const extra = (node.answer ? 46 : 0) + (node.children.length ? 22 : 0);
    const lines = Math.max(text + extra, width(stats(node), font.stats));
    node.w = Math.ceil(Math.min(Math.max(lines, CHIP.least), CHIP.most)) + CHIP.pad;
    node.pills = pills(node);
    for (const [i, pill] of node.pills.entries()) {
      const needed = PILL.indent + width(`${pill.text} .00`, font.pill) + 18;
      node.w = Math.max(node.w, Math.ceil(Math.min(needed, CHIP.most)));
      pill.down = NODE.height + 4 + i * PILL.row;
    }
  }
}

// The likeliest moves that were not taken; those that end are the node's own.
function pills(node) {
  const found = node.moves
    .filter((move) => move.state !== "ends")
    .map((move) => ({
      move,
      p: move.log_prob === null ? move.prior : Math.exp(move.log_prob),
      text: move.tokens.join("") || "another draw",
    }))
    .filter(({ move, p }) => p >= LEAST || move.state === "merged");
  return found.sort((a, b) => b.p - a.p).slice(0, MOST_PILLS);
}

// Places what is open; returns those nodes in order, and how large all is.
export function place(tree, untaken) {
  const shown = [];
  const todo = [tree.root];
  let bottom = 0;
  let right = 0;
  tree.root.x = 0;
  while (todo.length) {
    const node = todo.pop();
    if (!leads(node)) {
      // What leads on stays in the line; anything else takes the next one.
      node.y = bottom;
      bottom += lineHeight(node, untaken);
    } else node.y = node.parent.y;
    shown.push(node);
    right = Math.max(right, node.x + node.w);
    const children = node.closed ? [] : node.children;
    const gap = children.length > 1 ? NODE.gap : NODE.chain;
    for (const child of children) child.x = node.x + node.w + gap;
    todo.push(...[...children].reverse());
  }
  return { shown, width: right, height: bottom - (NODE.row - NODE.height) };
}

function leads(node) {
  return node.parent?.children[0] === node;
}

// Of a node and what leads on from it, with the moves that they did not take.
function lineHeight(start, untaken) {
  let most = 0;
  for (let node = start; node && untaken; node = node.closed ? null : node.children[0]) {
    most = Math.max(most, node.pills.length);
  }
  return NODE.row + most * PILL.row;
}
