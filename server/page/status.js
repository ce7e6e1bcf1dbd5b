// The status: memory as bars, models with their actions, the queue, charts, events with reasons. It asks only while it is seen.

import { byId, bytes, call, events, fill, make, seconds } from "./dom.js";

const EVERY_MS = 2000;
const METRICS_EVERY = 2;
const POINTS = 90;
const SHOWN_EVENTS = 200;
const hues = new Map();
const hue = (name) => hues.set(name, hues.get(name) ?? hues.size % 6).get(name);
let listeners = [];

export const onStatus = (listener) => listeners.push(listener);

// Bars whose budget is a small part of the memory show the budget alone, so that its models can be seen.
const WHOLE_FROM = 0.5;

// What models hold, each with its parts: [[part, bytes], ...].
function holdings(models, side) {
  return models.filter(side).map((model) => {
    const held = side(model);
    const parts = Object.entries(held.parts).filter(([, n]) => n > 0);
    const whole = held.measured_bytes ?? held.predicted_bytes;
    const known = parts.reduce((sum, [, n]) => sum + n, 0);
    if (whole > known) parts.push(["rest", whole - known]);
    return { name: model.name, parts, whole: Math.max(whole, known) };
  });
}

function figure(title, memory, models, side, total) {
  const held = holdings(models, side);
  const all = held.flatMap(({ name, parts }) => parts.map(([part, n], place) => [`${name}: ${part}`, n, `h${hue(name)} p${Math.min(place, 4)}`]));
  const used = all.reduce((sum, piece) => sum + piece[1], 0) + memory.cache;
  const beside = [["prefix cache", memory.cache, "cache"], ["free", Math.max(0, memory.budget_bytes - used), "free"]];
  const outside = [["other programs", memory.other_bytes, "other"], ["outside the budget", total - Math.max(used, memory.budget_bytes) - memory.other_bytes, "kept"]];
  const there = ([, n]) => n > 0;
  const drawn = [...all, ...beside, ...(memory.budget_bytes >= WHOLE_FROM * total ? outside : [])].filter(there);
  const sum = Math.max(1, drawn.reduce((whole, piece) => whole + piece[1], 0));
  const bar = make("div", { class: "bar", "aria-hidden": "true" });
  for (const [words, n, kind] of drawn) {
    const segment = make("div", { class: kind, title: `${words} ${bytes(n)}` });
    segment.style.flex = `${n / sum} 0 0`;
    bar.append(segment);
  }
  const names = held.map(({ name, parts, whole }) => [`${name} ${bytes(whole)}: ${parts.map(([part, n]) => `${part} ${bytes(n)}`).join(", ")}`, `h${hue(name)}`]);
  const others = [...beside, ...outside].filter(there).map(([words, n, kind]) => [`${words} ${bytes(n)}`, kind]);
  const listed = [...names, ...others].map(([words, kind]) => make("li", { class: kind }, words));
  const caption = `${title}: ${bytes(memory.reserved_bytes)} of a budget of ${bytes(memory.budget_bytes)} reserved`;
  return make("figure", {}, make("figcaption", {}, caption), bar, make("ul", { class: "key" }, ...listed));
}

// A job that trains holds memory as a model does.
function tenantOf({ id, device_bytes: device, host_bytes: host }, onCard) {
  const side = (n) => ({ predicted_bytes: n, parts: { training: n } });
  return { name: id, ...side(onCard ? device : host), host: side(host) };
}

function showMemory({ memory, models: loaded, training }) {
  const models = training ? [...loaded, tenantOf(training, memory.device === "cuda")] : loaded;
  const main = (model) => model.predicted_bytes == null ? null : model;
  const onCard = memory.device === "cuda";
  const cache = memory.prefix_cache_reserved_bytes;
  const name = onCard ? memory.device_name || "card" : "memory";
  const bars = [figure(name, { ...memory, cache: onCard ? 0 : cache }, models, main, memory.device_total_bytes)];
  if (onCard && memory.host) {
    bars.push(figure("host memory", { ...memory.host, cache }, models, (model) => model.host, memory.host.total_bytes));
  }
  const warnings = memory.warnings.map((warning) => make("p", { class: "bad" }, warning));
  fill(byId("memory"), [...bars, ...warnings]);
}

// One line of the table.
function row(model) {
  const there = model.predicted_bytes != null;
  const measured = model.measured_bytes == null ? "" : `, measured ${bytes(model.measured_bytes)}`;
  const off = Math.round(1000 * (model.prediction_error ?? 0)) / 10 + 0;
  const error = model.prediction_error == null ? "" : ` (${off > 0 ? "+" : ""}${off.toFixed(1)} %)`;
  const stays = model.pinned ? "pinned" : model.unload_in_s == null ? "" : `leaves in ${seconds(Math.ceil(model.unload_in_s / 5) * 5)}`;
  const wrong = model.unusable ?? model.last_error;
  const action = (verb, words) => make("button", { type: "button", "data-verb": verb, "data-model": model.name, "aria-label": `${words} ${model.name}` }, words);
  const cell = (label, ...children) => make("td", { "data-label": label }, ...children);
  return make("tr", {},
    make("td", { class: `name h${hue(model.name)}` }, model.name, make("small", {}, ` ${model.backend}`)),
    cell("State", make("div", {}, model.state, stays && make("div", { class: "soft" }, stays), wrong && make("div", { class: "bad" }, wrong))),
    cell("Memory", there ? `predicted ${bytes(model.predicted_bytes)}${measured}${error}` : "-"),
    cell("Context", model.context ?? "-"),
    cell("Busy", `${model.busy}/${model.parallel ?? "-"}${model.waiting ? `, ${model.waiting} wait` : ""}`),
    cell("Tokens/s", model.tokens_per_s ?? "-"),
    cell("Actions", make("div", {}, model.state === "unloaded" ? action("load", "Load") : action("unload", "Unload"),
      action(model.pinned ? "unpin" : "pin", model.pinned ? "Unpin" : "Pin"))));
}

byId("models").addEventListener("click", async ({ target }) => {
  const { verb, model } = target.dataset;
  if (!verb) return;
  const told = byId("told");
  told.className = "";
  told.textContent = `${verb} ${model} ...`;
  try {
    await call(`v1/models/${model.split("/").map(encodeURIComponent).join("/")}/${verb}`, { method: "POST", json: {} });
    told.textContent = `${verb} ${model}: done`;
  } catch (problem) {
    told.className = "bad";
    told.textContent = `${verb} ${model}: ${problem.message}`;
  }
  look();
});

function trainingWords({ id, model, step, steps, seconds_left: left, stands_still: still }) {
  const at = steps ? `step ${step} of ${steps}${left == null ? "" : `, ${seconds(left)} left`}` : "is being loaded";
  return `${id} teaches ${model}: ${at}${still ? ", stands still beside a request" : ""}`;
}

const series = { "Tokens per second": [], "Time to first token": [], "Inter-token latency": [], "Requests waiting": [], "Loss of the training": [] };
let last = null;

function charts() {
  const shown = Object.entries(series).filter(([name, values]) => !name.startsWith("Loss") || values.some((value) => value != null));
  const found = shown.map(([name, values]) => {
    const most = Math.max(1e-9, ...values.map((value) => value ?? 0));
    let path = "";
    values.forEach((value, place) => {
      if (value != null) path += `${path ? "L" : "M"}${100 + (place - values.length) * 100 / POINTS} ${38 - 36 * value / most}h.1`;
    });
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 100 40");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    const line = svg.appendChild(document.createElementNS(svg.namespaceURI, "path"));
    line.setAttribute("d", path || "M0 38");
    const now = values.findLast((value) => value != null);
    const words = now == null ? "-" : name.startsWith("T") && name.includes("second") ? now.toFixed(1) : name.startsWith("R") ? now : name.startsWith("L") ? now.toFixed(3) : seconds(now);
    return make("figure", {}, make("figcaption", {}, `${name}: `, make("strong", {}, words)), svg);
  });
  fill(byId("charts"), found);
}

function point(name, value) {
  series[name].push(value);
  if (series[name].length > POINTS) series[name].shift();
}

// Sums and counts of two histograms, over all models.
function latencies(page) {
  const found = {};
  for (const [, name, end, value] of page.matchAll(/^onecard_(time_to_first_token_seconds|inter_token_latency_seconds)_(sum|count)(?:\{[^\n]*\})? (\S+)$/gm)) {
    found[name + end] = (found[name + end] ?? 0) + Number(value);
  }
  const mean = (name) => {
    const n = last ? found[`${name}count`] - last[`${name}count`] : 0;
    return n > 0 ? (found[`${name}sum`] - last[`${name}sum`]) / n : null;
  };
  point("Time to first token", mean("time_to_first_token_seconds"));
  point("Inter-token latency", mean("inter_token_latency_seconds"));
  last = found;
}

// A screen reader is told once.
function write(id, text) {
  if (byId(id).textContent !== text) byId(id).textContent = text;
}

let turn = 0;
let hasMetrics = true;

export async function look() {
  try {
    const status = await (await call("v1/status")).json();
    write("state", `${status.memory.device_name || status.memory.device}, ${status.models.filter((model) => model.state === "ready").length} of ${status.models.length} models loaded`);
    showMemory(status);
    fill(byId("models").tBodies[0], status.models.map(row));
    const waiting = status.queue.map(({ model, waiting: n }) => `${n} for ${model}`);
    write("queue", waiting.length ? `Queue: ${waiting.join(", ")}` : "Queue: empty");
    write("training", status.training ? trainingWords(status.training) : "");
    point("Loss of the training", status.training?.loss ?? null);
    point("Tokens per second", status.models.reduce((sum, model) => sum + (model.tokens_per_s ?? 0), 0));
    point("Requests waiting", status.queue.reduce((sum, entry) => sum + entry.waiting, 0));
    if (hasMetrics && turn++ % METRICS_EVERY === 0) {
      await call("metrics").then((page) => page.text()).then(latencies, (problem) => { hasMetrics = problem.status !== 404; });
    }
    charts();
    for (const listener of listeners) listener(status);
  } catch (problem) {
    write("state", `no answer: ${problem.message}`);
  }
}

function told({ time, what, model, reason, figures }) {
  const more = Object.entries(figures ?? {}).map(([name, value]) => `${name} ${name.endsWith("bytes") ? bytes(value) : value}`).join(", ");
  const at = new Date(time * 1000);
  const words = `${[what, model].filter(Boolean).join(" ")}${reason ? `, ${reason}` : ""}${more ? ` (${more})` : ""}`;
  return make("li", {}, make("time", { datetime: at.toISOString(), class: "soft" }, at.toLocaleTimeString()), " ", words);
}

// A configuration that was not taken over stays told until one is.
function toldOfConfig({ what, reason }) {
  if (what === "config_refused") write("config", `The configuration was not taken over, the one before goes on: ${reason}`);
  if (what === "config_reloaded") write("config", "");
}

async function follow() {
  for (let pause = 1000; ; pause = Math.min(pause * 2, 60000)) {
    try {
      const list = byId("events");
      const stream = await call("v1/events?last=128");
      list.replaceChildren();
      write("config", "");
      for await (const data of events(stream)) {
        pause = 500;
        const happening = JSON.parse(data);
        list.prepend(told(happening));
        toldOfConfig(happening);
        while (list.children.length > SHOWN_EVENTS) list.lastElementChild.remove();
      }
    } catch {
      // The server is away or refuses more readers: the state line says so, and it is asked again.
    }
    await new Promise((go) => setTimeout(go, pause));
  }
}

export function begin() {
  const again = async () => {
    if (!document.hidden) await look();
    setTimeout(again, EVERY_MS);
  };
  document.addEventListener("visibilitychange", () => document.hidden || look());
  again();
  follow();
}
