// The map of the KV cache: how full each layer and head is, and the pages of one sequence.
//
// One look a turn has both; a chosen layer takes a second, which has its pages alone. Cells are a table, so they read
// as numbers, too; strips are drawn, and told in a table below.
import { byId, bytes, count, el, percent, setOptions, setText, svg } from "./dom.js";
import { Failure, getJson } from "./api.js";
import { rate } from "./metrics.js";

const SINGLE_BLOCKS_MAX = 3000; // beyond it a run is one bar
const TIERS = { device: "in the pool", host: "in host memory", disk: "on disk" };
const ROW = 10; // height of a strip, in its own units

const place = ({ layer, head, shard }, shards) =>
  `layer ${layer}, head ${head}` + (shards > 1 ? `, shard ${shard}` : "");

function setIfNew(node, key, children) {
  if (node.dataset.key === key) return;
  node.dataset.key = key;
  node.replaceChildren(...children());
}

// ---- all sequences ----

function heatTable(heads, shards) {
  const layers = Map.groupBy(heads, head => head.layer);
  const most = Math.max(1, ...heads.map(head => head.slots_live));
  const columns = layers.values().next().value ?? [];
  const names = columns.map(({ head, shard }) =>
    el("th", { scope: "col" }, shards > 1 ? `${head}/${shard}` : String(head)));
  const rows = [...layers].map(([layer, row]) => el("tr", {}, el("th", { scope: "row" }, String(layer)),
    row.map(cell => el("td", { "--v": cell.slots_live / most, title: `${place(cell, shards)}: ${cell.slots_live} entries` },
                       count(cell.slots_live)))));
  return el("table", { class: columns.length > 12 ? "load dense" : "load" },
    el("caption", {}, "All open sequences; columns are heads" + (shards > 1 ? " and shards" : "")),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Layer"), names)), el("tbody", {}, rows));
}

function showPool(counters, settings) {
  const { used, cached, free, total } = counters.pages;
  const part = (name, n) => el("span", { class: "part " + name, "--v": total > 0 ? n / total : 0, title: `${n} pages ${name}` });
  setIfNew(byId("pool"), JSON.stringify(counters.pages), () => [
    el("div", { class: "bar", "aria-hidden": "true" }, part("used", used), part("cached", cached)),
    el("p", { class: "note" }, el("b", {}, count(used)), " pages used, ", el("b", {}, count(cached)),
       " kept for prefixes, ", el("b", {}, count(free)), " free: ", percent((total - free) / total || 0), " full"),
    el("p", { class: "note" }, `${settings.type}, pages of ${settings.page_tokens} tokens, ` +
       `${settings.shards} ${settings.shards > 1 ? `shards by ${settings.placement}` : "shard"}; the first ` +
       `${settings.sink_tokens} and the newest ${settings.window_tokens} tokens are in a ring beside them`)]);
}

// From /metrics: what has gone, and where to.
export function showCounters(now, before) {
  const raw = now.get("kv_encoded_raw_bytes_total");
  const tier = name => `${count(now.get("kv_tier_blocks", { tier: name }))} pages, ${bytes(now.get("kv_tier_bytes", { tier: name }))}`;
  const has = name => now.get("kv_tier_budget_bytes", { tier: name }) > 0;
  const perSecond = name => `${count(rate(now, before, name) || 0)}/s`;
  const rows = [
    ["Entries evicted", `${count(now.get("kv_entries_evicted_total"))} (${perSecond("kv_entries_evicted_total")})`],
    ["Pages evicted", `${count(now.get("kv_pages_evicted_total"))} (${perSecond("kv_pages_evicted_total")})`],
    ["Prefix pages given up", count(now.get("kv_evicted_blocks_total"))],
    ["Encoded pages", raw > 0 ? `${percent(now.get("kv_encoded_bytes_total") / raw)} of their raw bytes` : "none yet"],
    ...(has("host") ? [["Host memory", tier("host")]] : []),
    ...(has("disk") ? [["Disk", tier("disk")]] : []),
  ];
  setIfNew(byId("pool-facts"), JSON.stringify(rows), () =>
    rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

// ---- one sequence ----

const endOf = list => Math.max(0, ...list.runs.map(run => run.block + run.blocks));

function block(run, at, n, pageTokens) {
  const height = Math.max(0.12, Math.min(1, run.slots_live / pageTokens)) * (ROW - 2);
  const box = { x: at + 0.06, width: n - 0.12 };
  return [svg("rect", { ...box, class: `block codec-${run.codec} tier-${run.tier}`, y: ROW - height, height }),
          run.cached ? svg("rect", { ...box, class: "cached", y: 0, height: 1.2 }) : null];
}

function strip(list, view) {
  const bars = list.runs.flatMap(run => view.isCoarse ? block(run, run.block, run.blocks, view.pageTokens)
    : Array.from({ length: run.blocks }, (_, i) => block(run, run.block + i, 1, view.pageTokens)).flat());
  const label = view.shards > 1 ? `${list.layer}.${list.head}.${list.shard}` : `${list.layer}.${list.head}`;
  return el("div", { class: list.head === 0 && list.shard === 0 ? "strip first" : "strip" },
    el("span", { class: "label" }, label),
    svg("svg", { viewBox: `0 0 ${view.width} ${ROW}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { class: "ring", x: view.pagesEnd + 0.1, y: 1, width: Math.max(0.1, view.width - view.pagesEnd - 0.2), height: ROW - 2 }),
      ...bars.filter(bar => bar !== null),
      svg("title", {}, `${place(list, view.shards)}: ${list.pages} pages, ${list.slots_live} entries`)));
}

function tally(runs, key) {
  const sums = {};
  for (const run of runs) sums[run[key]] = (sums[run[key]] ?? 0) + run.blocks;
  return Object.entries(sums).map(([name, n]) => `${n} ${name}`).join(", ") || "none";
}

function mapTable(lists) {
  const heads = ["Layer", "Head", "Shard", "Entries", "Pages", "Codecs", "Tiers", "Cached"];
  return el("table", { class: "plain" },
    el("thead", {}, el("tr", {}, heads.map(name => el("th", { scope: "col" }, name)))),
    el("tbody", {}, lists.map(list => el("tr", {},
      [list.layer, list.head, list.shard, list.slots_live, list.pages, tally(list.runs, "codec"), tally(list.runs, "tier"),
       list.runs.reduce((n, run) => n + (run.cached ? run.blocks : 0), 0)].map(value => el("td", {}, String(value)))))));
}

function legend(runs) {
  const names = key => [...new Set(runs.map(run => run[key]))].sort();
  return [...names("codec").map(name => ["block codec-" + name, name === "none" ? "as computed" : name]),
          ...names("tier").filter(name => name !== "device").map(name => ["block tier-" + name, TIERS[name] ?? name]),
          ...(runs.some(run => run.cached) ? [["cached", "shared with a cached prefix"]] : []),
          ["ring", "ring: newest tokens"]]
    .map(([kind, text]) => el("li", {}, svg("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" },
      svg("rect", { class: kind, x: 1, y: kind === "cached" ? 6 : 1, width: 12, height: kind === "cached" ? 3 : 12 })), text));
}

const describe = seq => {
  const { compression, scheduling, routing } = seq.methods;
  return [compression, scheduling, routing].filter((name, i) => name !== ["none", "none", "full"][i]).join(", ") || "plain";
};

function showSequence({ sequence, sequences, settings }) {
  const seq = sequences.find(({ id }) => id === sequence.id);
  const lists = sequence.heads;
  const runs = lists.flatMap(list => list.runs);
  const pagesEnd = Math.max(0, ...lists.map(endOf));
  const ring = Math.max(1, Math.min(seq.length, settings.window_tokens) / settings.page_tokens);
  const view = { pagesEnd, width: pagesEnd + ring, pageTokens: settings.page_tokens, shards: settings.shards,
                 isCoarse: lists.reduce((n, list) => n + list.pages, 0) > SINGLE_BLOCKS_MAX };
  setText(byId("strip-title"), `Sequence ${seq.id}: ${seq.length} tokens, ${describe(seq)}` +
    (sequence.is_truncated ? "; more than fits, choose a layer" : ""));
  byId("strips").className = lists.length > 64 ? "strips dense" : lists.length > 12 ? "strips" : "strips sparse";
  byId("strips").replaceChildren(...lists.map(list => strip(list, view)));
  setIfNew(byId("legend"), JSON.stringify([...new Set(runs.map(r => r.codec + r.tier + r.cached))]), () => legend(runs));
  const table = byId("map-table");
  const fill = () => table.open && table.lastElementChild.replaceChildren(mapTable(lists));
  table.ontoggle = fill;
  fill();
}

function showNone() {
  const title = byId("strip-title");
  const shown = /^Sequence (\d+)/.exec(title.textContent);
  byId("strips").classList.add("past");
  if (shown) setText(title, `Sequence ${shown[1]} has ended; the last map of it`);
  else if (byId("strips").childElementCount === 0)
    byId("strips").replaceChildren(el("p", { class: "note" }, "No sequence is open. Run one below, or send a request."));
}

// ---- a turn ----

async function look(query) {
  try {
    return await getJson("/debug/kv?" + new URLSearchParams(query));
  } catch (fault) {
    if (fault instanceof Failure && fault.status === 404) return null; // the sequence has ended
    throw fault;
  }
}

export async function lookAtCache() {
  const [seq, layer] = [byId("seq").value, byId("layer").value];
  const all = await look(layer === "" ? { seq } : {}) ?? await look({});
  const { settings, sequences, heads, counters } = all;
  setOptions(byId("layer"), [["", "All"], ...Array.from({ length: settings.layers }, (_, l) => [String(l), String(l)])]);
  setOptions(byId("seq"), [["newest", "Newest"], ...sequences.map(row => [String(row.id), `${row.id}: ${describe(row)}`])]);
  setIfNew(byId("heat"), JSON.stringify(heads), () => [heatTable(heads, settings.shards)]);
  showPool(counters, settings);
  const one = layer === "" ? all : await look({ seq, layer });
  if (one?.sequence) showSequence(one);
  else showNone();
}
