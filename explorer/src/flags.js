// What may be true of a node beside its numbers; Python names it in `flags`.

export const FLAGS = new Map([
  ["cut_off", { sign: "✂", text: "cut off: no room is left, and there is no answer" }],
  ["unsafe", { sign: "⚠", text: "marked unsafe" }],
  ["pruned", { sign: "✕", text: "pruned: nothing may go on from here" }],
]);

// Of a flag; of one that is not known here its name.
export function flag(name) {
  return FLAGS.get(name) ?? { sign: name, text: name };
}
