// Expert load: a table of layers and experts, a cell as dark as its share.
import { byId, count, el, percent } from "./dom.js";

const MINUTE_MS = 60000;

// {layer: [tokens by expert]}
function loads(metrics) {
  const layers = [];
  for (const { labels, value } of metrics.all("moe_expert_tokens_total"))
    (layers[Number(labels.layer)] ??= [])[Number(labels.expert)] = value;
  return layers;
}

function row(layer, tokens) {
  const total = tokens.reduce((sum, n) => sum + n, 0);
  const most = Math.max(...tokens);
  const cells = tokens.map(n => {
    const share = total > 0 ? n / total : 0;
    return el("td", { "--v": most > 0 ? n / most : 0, class: n === most && n > 0 ? "most" : undefined, title: `${count(n)} tokens` },
              total > 0 ? (share * 100).toFixed(0) : "–");
  });
  const imbalance = total > 0 ? (most * tokens.length / total).toFixed(2) : "–";
  return el("tr", {}, el("th", { scope: "row" }, String(layer)), cells, el("td", { class: "ratio" }, imbalance));
}

export function openExperts() {
  const span = () => document.querySelector("input[name=span]:checked").value;
  const history = []; // [{at, layers}]
  let shown = ""; // a table that says the same is left alone
  const show = () => {
    const now = history.at(-1);
    if (!now) return;
    if (now.layers.length === 0) {
      byId("experts").replaceChildren(el("p", { class: "note" }, "This model has no experts."));
      return;
    }
    const old = span() === "minute" ? history[0].layers : null;
    const grown = now.layers.map((tokens, l) => tokens.map((n, e) => Math.max(0, n - (old?.[l]?.[e] ?? 0))));
    if (shown === JSON.stringify(grown)) return;
    shown = JSON.stringify(grown);
    const all = grown.flat().reduce((sum, n) => sum + n, 0);
    const heads = now.layers[0].map((_, e) => el("th", { scope: "col" }, String(e)));
    byId("experts").replaceChildren(el("table", { class: "load" },
      el("caption", {}, `${count(all)} choices; numbers are percent of the layer, equal load is ${percent(1 / heads.length)}`),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Layer"), heads,
                         el("th", { scope: "col" }, "Most / mean"))),
      el("tbody", {}, grown.map((tokens, l) => row(l, tokens)))));
  };
  for (const radio of document.querySelectorAll("input[name=span]")) radio.addEventListener("change", show);
  return metrics => {
    const layers = loads(metrics);
    const last = history.at(-1);
    if (last && layers[0]?.[0] < last.layers[0]?.[0]) history.length = 0; // another server
    history.push({ at: metrics.at, layers });
    while (history.length > 2 && metrics.at - history[1].at > MINUTE_MS) history.shift();
    show();
  };
}
