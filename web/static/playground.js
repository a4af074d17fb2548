// One prompt under several settings of the cache, side by side.
//
// Columns run one after another unless told otherwise: sequences that run together share every step, and would
// all be as fast as the slowest. Each run has a salt of its own, so that none finds another's prefix cached.
import { byId, bytes, count, el, seconds, setText, showNote } from "./dom.js";
import { getJson, stream } from "./api.js";

const COLUMNS_MAX = 4;
const FIRST = [{}, { codec: "int4" }]; // the columns that the page begins with
const LATER = [{ codec: "int8", scheduling: "snapkv", budget: 0.5 }, { codec: "none", routing: "topk" }];
const PROMPT = `Once upon a time there lived in a small house at the edge of a great forest a woodcutter with his wife and their three children. The eldest was strong, the second was clever, and the youngest, whom everybody called Thumbling because he was so small, was kind to every living thing. One winter the snow lay so deep that the woodcutter could not go to his work, and soon there was nothing left in the house but a loaf of bread and a little salt.

"Let me go to the king," said the youngest, "and ask him for work." The brothers laughed, but the mother gave him half of the loaf, and he set out. On the way he met an old woman who sat on a stone and shivered. "Give me something to eat," said she, "for I have had nothing in three days." Thumbling gave her all his bread, and the old woman took from her pocket a golden key. "Keep it well," said she, "for there is a door in the king's castle that no one can open."`;

const choices = { names: null, numbers: {}, isFree: false }; // of the server
const columns = [];
let running = null; // AbortController while something runs

// ---- one column ----

const LETTERS = "ABCD";
const FIELDS = [
  { key: "codec", text: "Codec", list: "codec", none: "none" },
  { key: "selection", text: "Keep of the prompt", list: "selection", none: "" },
  { key: "scheduling", text: "Keep while running", list: "scheduling", none: "none" },
  { key: "budget", text: "Budget", number: 0.5 },
  { key: "routing", text: "Read", list: "routing", none: "full" },
  { key: "routingNumber", text: "Read how much", number: 0.25 },
];

// The `kv` of a request, with what differs from the server's own methods alone.
function kvOf(column) {
  const value = name => column.fields[name].value;
  const kv = {};
  const put = (name, wanted) => { if (wanted !== choices.methods[name]) kv[name] = wanted; };
  put("compression", (value("selection") ? value("selection") + "," : "") + value("codec"));
  put("scheduling", value("scheduling"));
  put("routing", value("routing"));
  if (!column.fields.budget.disabled) kv.budget = Number(value("budget"));
  if (!column.fields.routingNumber.disabled)
    kv[choices.routing_numbers[value("routing")]] = Number(value("routingNumber"));
  return kv;
}

function settle(column) {
  const { fields } = column;
  fields.budget.disabled = fields.selection.value === "" && fields.scheduling.value === "none";
  const number = choices.routing_numbers[fields.routing.value];
  fields.routingNumber.disabled = number === undefined;
  if (number !== column.number) {
    column.number = number;
    fields.routingNumber.value = choices.numbers[number] ?? "";
  }
  const kv = kvOf(column);
  setText(column.title, Object.values(kv).join(", ") || "as the server is set");
  const pairs = Object.entries(kv).map(([name, wanted]) => `"${name}": ${JSON.stringify(wanted)}`);
  setText(column.request, `"kv": {${pairs.join(", ")}}`);
}

function fieldOf(column, { key, text, list, none, number }, preset) {
  const id = `${key}-${column.letter}`;
  const wanted = preset[key] ?? none ?? number;
  const input = list
    ? el("select", { id }, ...(none === "" ? [el("option", { value: "" }, "all")] : []),
         ...choices.names[list].map(name => el("option", { value: name }, name)))
    : el("input", { id, type: "number", min: 0, step: "any" });
  input.value = wanted;
  column.fields[key] = input;
  input.addEventListener("input", () => settle(column));
  return el("label", { for: id }, text, input);
}

function fillFields(column) {
  column.fields = {};
  column.number = undefined;
  column.settings.replaceChildren(el("legend", { class: "hidden" }, `Settings of column ${column.letter}`),
    ...FIELDS.map(field => fieldOf(column, field, column.preset)));
  column.settings.disabled = !choices.isFree;
  settle(column);
}

function addColumn(preset) {
  const letter = LETTERS[columns.length];
  const column = {
    letter, preset,
    title: el("span", { class: "note" }),
    settings: el("fieldset", { class: "settings" }),
    request: el("code", { class: "request" }),
    facts: el("dl", { class: "facts" }),
    text: el("div", { class: "text", tabindex: 0, role: "log", "aria-label": `Text of column ${letter}` }),
  };
  column.node = el("article", { class: "panel column", id: "column-" + letter, "aria-label": `Column ${letter}` },
    el("h3", {}, letter, column.title), column.settings, column.request, column.facts, column.text);
  columns.push(column);
  byId("columns").append(column.node);
  byId("add").disabled = columns.length === COLUMNS_MAX;
  if (choices.names !== null) fillFields(column);
}

// ---- a run ----

function showFacts(column, facts) {
  column.facts.replaceChildren(...facts.filter(fact => fact !== null).map(([name, value, more, share]) =>
    el("div", { class: share === undefined ? undefined : "measured", "--v": share },
       el("dt", {}, name), el("dd", {}, value, more ? el("small", {}, " " + more) : null))));
}

function savings({ resident_bytes: held, uncompressed_bytes: raw }) {
  return raw > held * 1.005 ? `of ${bytes(raw)} raw, ${(raw / held).toFixed(2)} times less` : "nothing saved";
}

function factsOf({ usage, first, last, started, n }) {
  const tokens = usage?.completion_tokens ?? n;
  const kv = usage?.kv;
  const speed = tokens > 1 && last > first ? (tokens - 1) / ((last - first) / 1000) : NaN;
  return [
    kv ? ["Held", bytes(kv.resident_bytes), savings(kv), kv.resident_bytes] : ["Held", "…"],
    ["Speed", `${count(speed)} tokens/s`],
    ["First token", seconds((first - started) / 1000)],
    ["Tokens", count(tokens)],
    kv && kv.pages_evicted > 0 ? ["Evicted", `${count(kv.pages_evicted)} pages`] : null,
    kv && kv.pages_demoted > 0 ? ["Left the pool", `${count(kv.pages_demoted)} pages`] : null,
    kv?.mean_certificate !== undefined ? ["Unread attention", "at most " + kv.mean_certificate.toPrecision(2), "mean bound"] : null,
  ];
}

async function runColumn(column, body, signal) {
  const run = column.run = { started: performance.now(), n: 0, text: "" };
  const kv = choices.isFree ? kvOf(column) : {};
  const output = document.createTextNode("");
  column.text.replaceChildren(output);
  column.text.setAttribute("aria-busy", "true"); // a screen reader waits for the end
  column.node.dataset.state = "runs";
  showFacts(column, factsOf(run));
  try {
    for await (const event of stream("/v1/completions", { ...body, kv, cache_salt: `page-${crypto.getRandomValues(new Uint32Array(2)).join("-")}` }, signal)) {
      const piece = event.choices[0]?.text ?? "";
      if (event.choices.length > 0) {
        run.last = performance.now();
        run.first ??= run.last;
        run.n++;
      }
      run.text += piece;
      output.appendData(piece);
      run.usage = event.usage ?? run.usage;
    }
    column.node.dataset.state = "done";
  } catch (fault) {
    run.failed = signal.aborted ? "Stopped." : fault.message;
    column.node.dataset.state = "failed";
    column.text.append(el("p", { class: "notice" }, run.failed));
  }
  column.text.removeAttribute("aria-busy");
  showFacts(column, factsOf(run).map(fact => fact?.slice(0, 3) ?? null));
}

// Characters that two texts begin with alike.
function common(a, b) {
  let n = 0;
  while (n < a.length && n < b.length && a[n] === b[n]) n++;
  return n;
}

// When all are done: bars of one scale, and where texts part from the first column's.
function compare(done) {
  const most = Math.max(...done.map(column => column.run.usage?.kv?.uncompressed_bytes ?? 0));
  const [first, ...others] = done;
  for (const column of done) {
    const facts = factsOf(column.run).map(fact => fact?.[3] === undefined ? fact : [...fact.slice(0, 3), fact[3] / most]);
    if (others.includes(column) && !first.run.failed) {
      const [text, same] = [column.run.text, common(first.run.text, column.run.text)];
      const isSame = text === first.run.text;
      facts.push(["Text", isSame ? `the same as ${first.letter}` : `as ${first.letter} for ${same} characters`]);
      if (!isSame) column.text.replaceChildren(text.slice(0, same), el("mark", {}, text.slice(same)));
    }
    showFacts(column, facts);
  }
}

async function run(event) {
  event.preventDefault();
  if (running !== null) return;
  running = new AbortController();
  const number = id => Number(byId(id).value);
  const body = { prompt: byId("prompt").value, max_tokens: number("max-tokens"), temperature: number("temperature"), seed: number("seed") };
  const chosen = choices.isFree ? columns : columns.slice(0, 1);
  const focused = document.activeElement; // a disabled button loses it
  byId("run").disabled = true;
  byId("stop").disabled = false;
  for (const column of columns) {
    column.text.replaceChildren();
    column.facts.replaceChildren();
    delete column.node.dataset.state;
  }
  setText(byId("play-state"), "Running.");
  const { signal } = running;
  if (byId("together").checked) await Promise.all(chosen.map(column => runColumn(column, body, signal)));
  else for (const column of chosen) if (!signal.aborted) await runColumn(column, body, signal);
  const done = chosen.filter(column => column.run?.usage);
  if (done.length > 0) compare(done);
  setText(byId("play-state"), chosen.map(column => column.run?.failed ? `Column ${column.letter}: ${column.run.failed}`
    : `Column ${column.letter} is done.`).join(" "));
  running = null;
  byId("run").disabled = false;
  byId("stop").disabled = true;
  if (document.activeElement === document.body) focused.focus();
}

// ---- life ----

export function openPlayground() {
  byId("prompt").value = PROMPT;
  for (const preset of FIRST) addColumn(preset);
  byId("play").addEventListener("submit", run);
  byId("stop").addEventListener("click", () => running?.abort());
  byId("add").addEventListener("click", () => {
    addColumn(LATER[columns.length - FIRST.length]);
    columns.at(-1).settings.querySelector("select")?.focus();
  });
}

// What the server lets requests choose; again when the key or the server has changed.
export async function learnChoices() {
  const { request_methods: isFree, ...more } = await getJson("/debug/kv/methods");
  Object.assign(choices, more, { isFree });
  showNote(byId("play-note"), isFree ? "" : "This server runs without --kv-request-methods: requests have its own settings of the " +
    "cache, and only column A runs.");
  for (const column of columns) fillFields(column);
}
