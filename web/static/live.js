// The tiles: rates and latencies of the last seconds, each with the line of the last minute.
import { byId, bytes, count, el, percent, seconds, setText, svg } from "./dom.js";
import { rate, spread } from "./metrics.js";

const POINTS = 60;
const LATENCY_SCRAPES = 30;
const [WIDTH, HEIGHT] = [240, 44];

// read(now, before, long): before is the scrape before, long the one half a minute ago.
const TILES = [
  { id: "output", title: "Output", unit: "tokens/s", show: count,
    read: (now, before) => ({ value: rate(now, before, "generation_tokens_total") }),
    more: now => `${count(now.get("generation_tokens_total"))} since start` },
  { id: "input", title: "Prompts", unit: "tokens/s", show: count,
    read: (now, before) => ({ value: rate(now, before, "prompt_tokens_total") }),
    more: now => {
      const asked = now.get("prefix_cache_query_tokens_total");
      return `${percent(asked > 0 ? now.get("prefix_cache_hit_tokens_total") / asked : 0)} from cached prefixes`;
    } },
  { id: "first", title: "First token", show: seconds,
    read: (now, before, long) => latency(now, long, "time_to_first_token_seconds") },
  { id: "between", title: "Between tokens", show: seconds,
    read: (now, before, long) => latency(now, long, "inter_token_latency_seconds") },
  { id: "queue", title: "Running", show: count,
    read: now => ({ value: now.get("requests_running") }),
    more: now => `${count(now.get("requests_waiting"))} waiting, ${count(now.get("requests_preempted"))} preempted` },
  { id: "kv", title: "KV in use", show: bytes,
    read: now => ({ value: now.get("kv_used_bytes") }),
    more: now => `of ${bytes(now.get("kv_pool_budget_bytes"))}; ${bytes(now.get("kv_cache_bytes", { part: "slabs" }))} with cached prefixes` },
];

function latency(now, long, name) {
  const { mean, quantile } = spread(now, long, name, 0.95);
  return { value: mean, more: Number.isFinite(mean) ? `95 % within ${seconds(quantile)}` : "nothing to measure" };
}

// A filled line; gaps where there was no value.
function draw(figure, values) {
  const top = Math.max(...values.filter(Number.isFinite), 1e-9);
  const x = i => WIDTH - (values.length - 1 - i) * (WIDTH / (POINTS - 1));
  const y = v => HEIGHT - 2 - (v / top) * (HEIGHT - 6);
  let line = "", area = "", open = -1;
  values.forEach((v, i) => {
    if (!Number.isFinite(v)) return;
    const starts = !Number.isFinite(values[i - 1]);
    if (starts) open = i;
    line += `${starts ? "M" : "L"}${x(i).toFixed(1)} ${y(v).toFixed(1)}`;
    area += `${starts ? `M${x(i).toFixed(1)} ${HEIGHT}L` : "L"}${x(i).toFixed(1)} ${y(v).toFixed(1)}`;
    if (!Number.isFinite(values[i + 1]) && open >= 0) area += `L${x(i).toFixed(1)} ${HEIGHT}Z`;
  });
  figure.replaceChildren(svg("path", { class: "area", d: area }), svg("path", { class: "line", d: line }));
}

export function openLive() {
  const scrapes = [];
  const parts = TILES.map(tile => {
    const value = el("span", { class: "value" }, "–");
    const more = el("p", { class: "more" }, "\u00a0");
    const figure = svg("svg", { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    const number = el("p", { class: "number" }, value, tile.unit ? el("span", { class: "unit" }, tile.unit) : null);
    byId("tiles").append(el("article", { class: "tile", id: "tile-" + tile.id }, el("h3", {}, tile.title), number, more, figure));
    return { tile, value, more, figure, history: [] };
  });
  return now => {
    const before = scrapes.at(-1);
    scrapes.push(now);
    if (scrapes.length > LATENCY_SCRAPES + 1) scrapes.shift();
    for (const { tile, value, more, figure, history } of parts) {
      const got = tile.read(now, before, scrapes[0] === now ? undefined : scrapes[0]);
      history.push(got.value);
      if (history.length > POINTS) history.shift();
      setText(value, tile.show(got.value));
      setText(more, got.more ?? tile.more(now));
      draw(figure, history);
    }
  };
}
