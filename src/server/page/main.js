// Puts the page together: what a change, a click or a key does.

import { AdapterList } from "./adapter_list.js";
import { CodeDialog } from "./code_dialog.js";
import { Column } from "./column.js";
import { setText } from "./elements.js";
import { key, setKey } from "./keys.js";
import { samplesOf } from "./prometheus.js";
import { requestOf } from "./request.js";
import { readForm, showMode, writeForm } from "./request_form.js";
import { call, getJson, ORIGIN, ServerError } from "./server.js";
import { columnsOf, fromFragment, toFragment } from "./settings.js";
import { followTheme } from "./theme.js";
import { ThroughputHistory } from "./throughput.js";
import { drawThroughput } from "./throughput_plot.js";

// A browser opens at most six connections to a server: one is left for what the page itself asks.
const MAX_STREAMS = 5;
const POLL_MS = 2000;
const TOKENS_METRIC = "exlora_generated_tokens_total";

const byId = (id) => document.getElementById(id);
const form = byId("request");
const columns = new Map();
const history = new ThroughputHistory();
const codeDialog = new CodeDialog(byId("code"));
const adapterList = new AdapterList(
  { table: byId("adapters"), summary: byId("adapters-summary"), filter: byId("filter") },
  { onChange: settingsChanged, onUnload: unload },
);
let baseModel = { id: "base", root: "base" };
// Ends the run that is under way; null while none is.
let runController = null;
// A key with which the server refused its metrics, so that it isn't asked again and again; null before that.
let keyWithoutMetrics = null;

// --- Settings and columns ---

function settings() {
  return readForm(form, adapterList.picked());
}

function settingsChanged() {
  window.history.replaceState(null, "", `#${toFragment(settings())}`);
  showMode(form);
  showColumns();
}

function takeSettingsFromUrl() {
  const found = fromFragment(location.hash);
  adapterList.setPicked(found.adapters);
  writeForm(form, found);
  showColumns();
}

/** Shows the columns that the settings ask for. Those that stay keep their text. */
function showColumns() {
  const now = settings();
  const wanted = columnsOf(now);
  for (const id of columns.keys()) if (!wanted.some((column) => column.id === id)) columns.delete(id);
  for (const { id, title, adapters } of wanted) {
    if (!columns.has(id)) columns.set(id, new Column(id, showCode));
    columns.get(id).describe(title, adapters);
  }
  const elements = wanted.map(({ id }) => columns.get(id).element);
  const shown = [...byId("columns").children];
  if (elements.length !== shown.length || elements.some((element, i) => element !== shown[i])) {
    byId("columns").replaceChildren(...elements);
  }
  showDifferences(now.difference);
}

function showDifferences(isOn) {
  const base = columns.get("base");
  for (const column of columns.values()) {
    const isOver = column.state === "done" || column.state === "stopped";
    if (isOver && column !== base) column.showDifference(isOn && base?.state === "done" ? base.output : null);
  }
}

function showCode(column) {
  const server = {
    origin: ORIGIN,
    needsKey: key("api") !== "",
    modelPath: baseModel.root,
    adapterPaths: adapterList.paths(),
  };
  codeDialog.open(column.title, requestOf(settings(), column.adapters, baseModel.id), column.adapters, server);
}

// --- Runs ---

async function run() {
  const now = settings();
  const asked = columnsOf(now).map(({ id }) => columns.get(id));
  if (asked.length === 0) {
    setText(byId("status"), "Pick an adapter, or show the base.");
    return;
  }
  runController?.abort();
  const controller = new AbortController();
  runController = controller;
  byId("stop").disabled = false;
  setText(byId("status"), asked.length === 1 ? "Running." : `Running ${asked.length} columns.`);
  const start = performance.now();
  for (const column of asked) column.prepare();
  await runAll(asked, now, controller.signal);
  if (runController !== controller) return; // another run has begun
  runController = null;
  byId("stop").disabled = true;
  showDifferences(settings().difference);
  const failed = asked.filter((column) => column.state === "failed");
  const how = failed.length > 0 ? `${failed.length} of ${asked.length} failed` : controller.signal.aborted ? "Stopped" : "Done";
  setText(byId("status"), `${how} after ${((performance.now() - start) / 1000).toFixed(1)} s.`);
  if (failed.some(({ error }) => error.status === 401)) askForKey();
  poll();
}

/** Runs the columns side by side, as many at a time as the browser has connections for. */
async function runAll(asked, now, signal) {
  const waiting = [...asked];
  const runNext = async () => {
    for (let column = waiting.shift(); column !== undefined; column = waiting.shift()) {
      if (signal.aborted) column.cancel();
      else await column.run(requestOf(now, column.adapters, baseModel.id), signal);
    }
  };
  await Promise.all(Array.from({ length: MAX_STREAMS }, runNext));
}

function stop() {
  runController?.abort();
}

// --- Adapters ---

async function load() {
  const name = byId("load-name").value.trim();
  const path = byId("load-path").value.trim() || name;
  await changeAdapters(`Loading ${name} …`, "v1/load_lora_adapter", { lora_name: name, lora_path: path }, `Loaded ${name}.`);
}

async function unload(name) {
  await changeAdapters(`Unloading ${name} …`, "v1/unload_lora_adapter", { lora_name: name }, `Unloaded ${name}.`);
}

async function changeAdapters(before, path, body, after) {
  const status = byId("adapters-status");
  setKey("admin", byId("admin-key").value);
  setText(status, before);
  try {
    await call(path, { body, keyKind: "admin" });
    setText(status, after);
  } catch (error) {
    const isKeyWrong = error instanceof ServerError && [401, 403].includes(error.status);
    setText(status, isKeyWrong ? `Loading and unloading take the admin key. ${error.message}` : error.message);
    if (isKeyWrong) {
      byId("load").open = true;
      byId("admin-key").focus();
    }
  }
  await poll();
}

// --- What the server says about itself ---

async function connect() {
  try {
    const { data } = await getJson("v1/models");
    baseModel = data.find((model) => !model.parent) ?? baseModel;
    setText(byId("model"), baseModel.id);
    document.title = `${baseModel.id} – exlora`;
    byId("api-key-form").hidden = true;
  } catch (error) {
    if (error.status === 401) askForKey();
    setText(byId("connection"), error.message);
    return false;
  }
  return true;
}

function askForKey() {
  byId("api-key-form").hidden = false;
  byId("api-key").focus();
}

async function poll() {
  await Promise.all([pollAdapters(), pollMetrics()]);
}

async function pollAdapters() {
  try {
    adapterList.show(await getJson("v1/adapters"));
    setText(byId("connection"), "");
  } catch (error) {
    setText(byId("connection"), error.message);
  }
}

async function pollMetrics() {
  const status = byId("throughput-status");
  const keyKind = key("admin") ? "admin" : "api";
  if (key(keyKind) === keyWithoutMetrics) return;
  try {
    const text = await (await call("metrics", { keyKind })).text();
    const samples = samplesOf(text, TOKENS_METRIC);
    history.add(performance.now() / 1000, new Map(samples.map(({ labels, value }) => [labels.get("adapter") ?? "base", value])));
    const isIdle = history.series().size === 0;
    setText(status, isIdle ? "nothing was generated in the last minutes" : "of each adapter, over all requests");
    drawThroughput(history, { container: byId("plot"), legend: byId("legend") });
  } catch (error) {
    const isRefused = [401, 403].includes(error.status);
    if (isRefused) keyWithoutMetrics = key(keyKind);
    setText(status, isRefused ? "shown once the admin key is given, under Load an adapter" : error.message);
  }
}

/** Polls while the page is seen; connects again when the server was away. */
async function pollForever() {
  let isConnected = false;
  for (;;) {
    const waitsForKey = !byId("api-key-form").hidden;
    if (!document.hidden && !waitsForKey) {
      isConnected = isConnected || (await connect());
      if (isConnected) await poll();
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

// --- Events ---

form.addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
form.addEventListener("change", settingsChanged);
// Controls of the form that lie elsewhere on the page.
for (const control of form.elements) if (!form.contains(control)) control.addEventListener("change", settingsChanged);
byId("stop").addEventListener("click", stop);
byId("load-form").addEventListener("submit", (event) => {
  event.preventDefault();
  load();
});
byId("admin-key").addEventListener("change", () => {
  setKey("admin", byId("admin-key").value);
  poll();
});
byId("api-key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  setKey("api", byId("api-key").value);
  if (await connect()) await poll();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !byId("code").open) {
    event.preventDefault();
    form.requestSubmit();
  } else if (event.key === "Escape" && runController !== null && !byId("code").open) {
    stop();
  }
});
addEventListener("hashchange", takeSettingsFromUrl);
new ResizeObserver(() => drawThroughput(history, { container: byId("plot"), legend: byId("legend") })).observe(byId("plot"));

followTheme(byId("theme"));
byId("admin-key").value = key("admin");
takeSettingsFromUrl();
pollForever();
