// What a tree is, at each step of its replay: numbers, no drawing.

// A tree as the page needs it, from its part of the JSON.
export function read(data) {
  const nodes = new Map();
  for (const raw of data.nodes) nodes.set(raw.id, { ...raw, raw });
  for (const node of nodes.values()) {
    node.parent = nodes.get(node.raw.parent) ?? null;
    node.children = node.raw.children.map((id) => nodes.get(id));
    node.closed = false;
  }
  const root = nodes.get(0);
  const order = [];
  const todo = [[root, "", 0, ""]];
  while (todo.length) {
    const [node, before, level, key] = todo.pop();
    order.push(node);
    node.level = level;
    const own = node.tokens.join(data.joiner);
    node.from = before ? before.length + data.joiner.length : 0;
    node.said = before && own ? before + data.joiner + own : before + own;
    node.plain = plain(node.said).toLowerCase();
    // Which prefix it is, in whatever tree.
    node.key = key + node.tokens.map((token) => `\u0000${token}`).join("");
    node.total = node.parent ? node.parent.total + (node.log_prob ?? 0) : 0;
    for (const child of [...node.children].reverse()) {
      todo.push([child, node.said, level + 1, node.key]);
    }
  }
  order.forEach((node, i) => (node.place = i));
  const tree = {
    ...data,
    nodes,
    root,
    order,
    champion: nodes.get(data.champion) ?? null,
    byKey: new Map(order.map((node) => [node.key, node])),
  };
  tree.way = new Set(wayTo(tree.champion));
  for (const node of order) node.merges = [];
  for (const node of order) {
    for (const move of node.moves) {
      if (move.state === "merged") nodes.get(move.to).merges.push(node);
    }
  }
  goTo(tree, data.simulations.length);
  return tree;
}

// Text as one would type it, for the search.
export function plain(text) {
  return text.replaceAll("␣", " ").replaceAll("⏹", "");
}

// A node and those above it, the root first.
export function wayTo(node) {
  const way = [];
  for (let at = node; at; at = at.parent) way.unshift(at);
  return way;
}

// Sets every node's numbers to what they were after so many simulations.
export function goTo(tree, step) {
  const { order, nodes, root, simulations } = tree;
  for (const node of order) node.now = { visits: 0, sum: 0, made: false };
  enter(root);
  for (const simulation of simulations.slice(0, step)) {
    if (!simulation) continue;
    const node = nodes.get(simulation.node);
    const first = !node.now.made;
    if (first) enter(node);
    for (let at = first ? node.parent : node; at; at = at.parent) {
      at.now.visits += 1;
      at.now.sum += simulation.outcome;
    }
  }
  tree.step = step;
  const last = step === simulations.length;
  for (let i = order.length - 1; i >= 0; i -= 1) sumUp(tree, order[i], last);
  tree.best = best(order);
}

function enter(node) {
  node.now.made = true;
  node.now.visits = 1;
  node.now.sum = node.first_value ?? 0;
}

function sumUp(tree, node, last) {
  const { now, answer } = node;
  now.value = now.sum / now.visits;
  // As the search itself counts; it may have come back to a node.
  if (last) Object.assign(now, { visits: node.visits, value: node.value });
  now.answer = now.made ? answer : null;
  now.below = 0;
  now.solved = 0;
  now.best = now.answer ? now.answer.reward : null;
  if (now.answer?.ends) {
    const counts = tree.by_reward ? answer.reward : Number(answer.correct);
    now.solved = counts * Math.exp(answer.log_prob);
  }
  for (const child of node.children) {
    if (!child.now.made) continue;
    now.below += 1 + child.now.below;
    now.solved += child.now.solved;
    if (child.now.best !== null) now.best = Math.max(now.best ?? -Infinity, child.now.best);
  }
}

// The best answer so far: by reward, then by probability, then the first.
function best(order) {
  let found = null;
  const rank = ({ answer, id }) => [-answer.reward, -answer.log_prob, id];
  for (const node of order) {
    if (!node.now.answer) continue;
    if (!found || before(rank(node), rank(found))) found = node;
  }
  return found;
}

function before(a, b) {
  const i = a.findIndex((x, j) => x !== b[j]);
  return i >= 0 && a[i] < b[i];
}

// The probability of success below a node, given that one is there.
export function success(node) {
  const here = Math.exp(node.total);
  return here ? node.now.solved / here : 0; // 0: too small for a number.
}

// Nodes at whose own step a text comes to its end, or whose answer goes on so.
export function search(tree, query) {
  const wanted = query.toLowerCase();
  if (!wanted.trim()) return [];
  return tree.order.filter((node) => {
    const rest = node.answer?.rest;
    if (rest && plain(rest).toLowerCase().includes(wanted)) return true;
    const start = Math.max(0, node.from - wanted.length + 1);
    return node.parent && node.plain.includes(wanted, start);
  });
}
