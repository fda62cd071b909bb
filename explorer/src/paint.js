// The canvas below the nodes: links, and from far away the nodes themselves.

import { NODE, PILL } from "./layout.js";

// Colours of the page's style, which follows the light.
export function palette(element) {
  const style = getComputedStyle(element);
  const colour = (name) => style.getPropertyValue(name).trim();
  return {
    link: colour("--link"),
    way: colour("--way"),
    node: colour("--node"),
    mark: colour("--mark"),
    focus: colour("--focus"),
    merge: colour("--merge"),
    reward: [0, 1, 2, 3, 4].map((i) => colour(`--reward-${i}`)),
  };
}

// One of five colours for a number from 0 to 1.
export function band(x) {
  return Math.min(4, Math.max(0, Math.round(x * 4)));
}

// How wide a link is: by its share of the visits.
function thickness(node, root) {
  return 1.5 + 6 * Math.sqrt(node.now.visits / root.now.visits);
}

// From a node's right side to its child's left, around a corner.
function trace(canvas, node) {
  const from = node.parent;
  const [x0, y0] = [from.x + from.w, from.y + NODE.height / 2];
  const [x1, y1] = [node.x, node.y + NODE.height / 2];
  canvas.moveTo(x0, y0);
  bend(canvas, x0, y0, x1, y1);
}

function bend(canvas, x0, y0, x1, y1) {
  if (y1 === y0) {
    canvas.lineTo(x1, y1);
    return;
  }
  const corner = x0 + 12;
  const r = Math.min(12, Math.abs(y1 - y0) / 2);
  canvas.arcTo(corner, y0, corner, y1, r);
  canvas.arcTo(corner, y1, x1, y1, r);
  canvas.lineTo(x1, y1);
}

// Draws what lies in the view: {x, y, k} and the canvas' size in pixels.
export function paint(canvas, view, tree, shown, options) {
  const { colours, ratio, way, far, untaken } = options;
  const { width, height } = canvas.canvas;
  canvas.setTransform(1, 0, 0, 1, 0, 0);
  canvas.clearRect(0, 0, width, height);
  const k = view.k * ratio;
  canvas.setTransform(k, 0, 0, k, view.x * ratio, view.y * ratio);
  const box = {
    left: -view.x / view.k,
    top: -view.y / view.k,
    right: (width / ratio - view.x) / view.k,
    bottom: (height / ratio - view.y) / view.k,
  };
  const seen = shown.filter((node) => node.parent && node.now.made && crosses(node, box));
  canvas.lineCap = "butt";
  links(canvas, seen.filter((node) => !way.has(node)), tree, colours);
  if (untaken && !far) mergeLinks(canvas, shown, tree, colours);
  links(canvas, seen.filter((node) => way.has(node)), tree, colours, colours.way);
  if (far) dots(canvas, shown, box, options);
}

function crosses(node, box) {
  const from = node.parent;
  return (
    from.x + from.w <= box.right && node.x >= box.left &&
    from.y <= box.bottom && node.y + NODE.height >= box.top
  );
}

// Links by colour and width, each kind as one path.
function links(canvas, nodes, tree, colours, own) {
  const kinds = new Map();
  for (const node of nodes) {
    const colour = own ??
      (node.now.best === null ? colours.link : colours.reward[band(node.now.best)]);
    const wide = Math.round(thickness(node, tree.root) * 2) / 2;
    const kind = `${node.now.best ?? -1} ${wide}`;
    const same = kinds.get(kind) ?? { colour, wide, nodes: [] };
    same.nodes.push(node);
    kinds.set(kind, same);
  }
  for (const { colour, wide, nodes: same } of kinds.values()) {
    canvas.beginPath();
    canvas.strokeStyle = colour;
    canvas.lineWidth = wide;
    canvas.globalAlpha = own ? 1 : 0.7;
    for (const node of same) trace(canvas, node);
    canvas.stroke();
  }
  canvas.globalAlpha = 1;
}

// From moves that were not taken to where they would have led.
function mergeLinks(canvas, shown, tree, colours) {
  canvas.save();
  canvas.setLineDash([4, 4]);
  canvas.lineWidth = 1.5;
  canvas.strokeStyle = colours.merge;
  const places = new Set(shown);
  canvas.beginPath();
  for (const node of shown) {
    if (!node.now.made) continue;
    for (const pill of node.pills) {
      const target = tree.nodes.get(pill.move.to);
      if (!places.has(target)) continue;
      const [px, py] = [node.x + node.w, node.y + pill.down + PILL.height / 2];
      const [tx, ty] = [target.x + target.w / 2, target.y];
      const [down, side] = [ty > py ? -1 : 1, 40];
      canvas.moveTo(px, py);
      canvas.bezierCurveTo(
        px + side, py, tx, (down > 0 ? ty + NODE.height : ty) + down * 60,
        tx, down > 0 ? ty + NODE.height : ty,
      );
    }
  }
  canvas.stroke();
  canvas.restore();
}

// Nodes from far away: a block each, of the colour of its reward.
function dots(canvas, shown, box, { colours, way, found, selected }) {
  for (const node of shown) {
    if (!node.now.made || node.x > box.right || node.x + node.w < box.left) continue;
    if (node.y > box.bottom || node.y + NODE.height < box.top) continue;
    const { answer } = node.now;
    canvas.fillStyle = answer ? colours.reward[band(answer.reward)] : colours.node;
    canvas.beginPath();
    canvas.roundRect(node.x, node.y, node.w, NODE.height, 8);
    canvas.fill();
    const ring = node === selected ? colours.focus
      : found.has(node) ? colours.mark : way.has(node) ? colours.way : null;
    if (ring) {
      canvas.lineWidth = 6;
      canvas.strokeStyle = ring;
      canvas.stroke();
    }
  }
}
