// Building elements, and numbers in words. Text goes in as text, never as markup.

export const byId = id => document.getElementById(id);

function make(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === undefined || value === null) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value); // style attributes are not allowed here
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter(child => child !== null && child !== undefined));
  return node;
}

export const el = (tag, attributes = {}, ...children) =>
  make(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) =>
  make(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text; // a screen reader hears changes only
}

export function showNote(node, text) {
  setText(node, text);
  node.hidden = text === "";
}

// Keeps what is chosen where it is still there.
export function setOptions(select, options) {
  const key = JSON.stringify(options);
  if (select.dataset.key === key) return;
  select.dataset.key = key;
  const chosen = select.value;
  select.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
}

export function count(n) {
  if (!Number.isFinite(n)) return "–";
  if (n !== 0 && Math.abs(n) < 10) return String(+n.toFixed(n < 1 ? 2 : 1));
  if (n < 10000) return String(Math.round(n));
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]])
    if (n >= size) return (n / size).toPrecision(3) + " " + unit;
  return String(Math.round(n));
}

export function bytes(n) {
  if (!Number.isFinite(n)) return "–";
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]])
    if (n >= size) return +(n / size).toPrecision(3) + " " + unit;
  return n + " B";
}

export function seconds(s) {
  if (!Number.isFinite(s)) return "–";
  if (s < 0.9995) return (s * 1000 < 10 ? (s * 1000).toFixed(1) : Math.round(s * 1000)) + " ms";
  return s.toFixed(s < 10 ? 2 : 1) + " s";
}

export function percent(share) {
  if (!Number.isFinite(share)) return "–";
  return (share * 100).toFixed(share > 0 && share < 0.1 ? 1 : 0) + " %";
}
