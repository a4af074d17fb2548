// The page: connects its parts to the server and says when that fails.
import { byId, setText, showNote } from "./dom.js";
import { Failure, getJson, getText, key } from "./api.js";
import { lookAtCache, showCounters } from "./cache.js";
import { openExperts } from "./experts.js";
import { openLive } from "./live.js";
import { Metrics } from "./metrics.js";
import { learnChoices, openPlayground } from "./playground.js";

const METRICS_MS = 1000;
const CACHE_MS = 1000;
const THEME = "pikv-theme";

let isPaused = false;
let knows = false; // the model and the choices
let silentSince = null;
let before; // the scrape before

// ---- what is wrong ----

function setState(state, text) {
  byId("state").dataset.state = state;
  setText(byId("state"), text);
}

function openKeyForm(isOpen) {
  byId("key-form").hidden = !isOpen;
  byId("key-button").setAttribute("aria-expanded", String(isOpen));
}

function notice(text) {
  setText(byId("notice"), text);
}

function showSilence() {
  silentSince ??= new Date().toLocaleTimeString();
  setState("gone", "No answer");
  notice(`The server has not answered since ${silentSince}. Trying again every second.`);
}

// ---- turns ----

async function scrape() {
  const metrics = new Metrics(await getText("/metrics"), performance.now());
  const isReady = metrics.get("ready") === 1;
  if (silentSince !== null) {
    silentSince = null;
    knows = false; // perhaps another one
    notice("");
  }
  setState(isReady ? "ready" : "wait", isReady ? "Ready" : "Not ready");
  return { metrics, isReady };
}

async function learn() {
  const [models, { version }] = await Promise.all([getJson("/v1/models"), getJson("/version")]);
  const [model] = models.data;
  setText(byId("model"), `${model.id}, ${model.max_model_len} tokens of context`);
  setText(byId("version"), `pikv ${version}`);
  document.title = `${model.id} · pikv`;
  byId("max-tokens").max = model.max_model_len;
  await learnChoices();
  knows = true;
  notice("");
}

function refused(fault) {
  if (fault.status !== 401) {
    notice(fault.message);
    return;
  }
  openKeyForm(true);
  notice(key.get() === "" ? "This server wants an API key: enter it above to see the cache and to run prompts."
                          : "The server does not accept this API key.");
}

function openTurns() {
  const [live, experts] = [openLive(), openExperts()];
  return {
    async metrics() {
      try {
        const { metrics, isReady } = await scrape();
        live(metrics);
        experts(metrics);
        showCounters(metrics, before);
        before = metrics;
        if (isReady && !knows) await learn();
      } catch (fault) {
        if (!(fault instanceof Failure)) throw fault;
        if (fault.status === 0) showSilence();
        else refused(fault);
      }
    },
    async cache() {
      if (!knows) return; // the other turn says why
      try {
        await lookAtCache();
        showNote(byId("cache-note"), "");
      } catch (fault) {
        if (!(fault instanceof Failure)) throw fault;
        if (fault.status !== 0) showNote(byId("cache-note"), `No map: ${fault.message}`);
        if (fault.status === 401) knows = false;
      }
    },
  };
}

// A turn, a pause, a turn. What it returns makes the pause end now.
function repeat(turn, interval) {
  let timer = null;
  const next = async () => {
    timer = null;
    if (!isPaused && !document.hidden) await turn();
    timer = setTimeout(next, interval);
  };
  next();
  return () => {
    if (timer === null) return; // it is at it
    clearTimeout(timer);
    next();
  };
}

// ---- controls ----

function openTheme() {
  const set = theme => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  };
  const kept = localStorage.getItem(THEME) ?? "auto";
  for (const radio of document.querySelectorAll("input[name=theme]")) {
    radio.checked = radio.value === kept;
    radio.addEventListener("change", () => {
      localStorage.setItem(THEME, radio.value);
      set(radio.value);
    });
  }
  set(kept);
}

function openKey(wake) {
  byId("key").value = key.get();
  const use = value => {
    key.set(value);
    byId("key").value = value;
    knows = false;
    notice("");
    openKeyForm(false);
    byId("key-button").focus();
    wake();
  };
  byId("key-button").addEventListener("click", () => {
    openKeyForm(byId("key-form").hidden);
    if (!byId("key-form").hidden) byId("key").focus();
  });
  byId("key-form").addEventListener("submit", event => {
    event.preventDefault();
    use(byId("key").value.trim());
  });
  byId("key-forget").addEventListener("click", () => use(""));
}

openTheme();
openPlayground();
const turns = openTurns();
const wakes = [repeat(turns.metrics, METRICS_MS), repeat(turns.cache, CACHE_MS)];
const wake = () => wakes.forEach(turn => turn());
openKey(wake);
byId("pause").addEventListener("click", () => {
  isPaused = !isPaused;
  byId("pause").setAttribute("aria-pressed", String(isPaused));
  wake();
});
document.addEventListener("visibilitychange", wake);
for (const id of ["seq", "layer"]) byId(id).addEventListener("change", wake);
