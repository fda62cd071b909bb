// Elements made by hand: texts are texts, whatever is in them.

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null));
  return element;
}

export const find = (id) => document.getElementById(id);

// Two digits, or where they would say nothing the order of magnitude.
export function number(x) {
  if (x === null || x === undefined) return "–";
  if (x !== 0 && Math.abs(x) < 0.005) return x.toExponential(0);
  return x.toFixed(2);
}

// Probabilities and rewards without the nought before the point.
export function short(x) {
  return number(x).replace(/^(-?)0\./, "$1.");
}

const SIGNS = new Set("␣⏎⇥␍⏹");

// A token, its signs for white space set apart from its text.
export function token(text) {
  const parts = [];
  for (const char of text) {
    const sign = SIGNS.has(char);
    const last = parts.at(-1);
    if (last && last.sign === sign) last.text += char;
    else parts.push({ sign, text: char });
  }
  const inner = parts.map((part) =>
    part.sign ? make("i", {}, part.text.replaceAll("⏹", "■")) : document.createTextNode(part.text),
  );
  return make("span", { class: "token" }, inner);
}

// How a screen reader says a text.
export function spoken(text) {
  return text
    .replaceAll("␣", " ")
    .replaceAll("⏎", " new line ")
    .replaceAll("⇥", " tab ")
    .replaceAll("␍", " carriage return ")
    .replaceAll("⏹", " end")
    .trim();
}
