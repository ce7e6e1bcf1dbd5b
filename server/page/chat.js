// The chat: asks /v1/chat/completions, shows the answer as it comes, reasoning and calls apart. Kept in this page alone.
// A model that draws is asked for an image.

import { byId, call, events, make, seconds } from "./dom.js";
import { look, onStatus } from "./status.js";

const MAX_IMAGE_BYTES = 20 * 2 ** 20;
const LEAST_TIMED_S = 0.1; // what comes in one piece has no speed
const log = byId("log");
const spent = byId("spent");
let models = [];
let messages = [];
let images = [];
let running = null;
let recorder = null;

const can = (model, word) => model?.capabilities.includes(word);
const chosen = () => models.find((model) => model.id === byId("model").value);

function offered() {
  byId("see").hidden = !can(chosen(), "vision");
  byId("speak").hidden = !models.some((model) => can(model, "transcription")) || !navigator.mediaDevices || !window.MediaRecorder;
}

async function list() {
  models = (await (await call("v1/models")).json()).data;
  const select = byId("model");
  const before = select.value;
  const chats = models.filter((model) => (can(model, "chat") || can(model, "image_generation")) && !model.unusable);
  select.replaceChildren(...chats.map((model) => make("option", { value: model.id }, model.id)));
  if (chats.some((model) => model.id === before)) select.value = before;
  byId("send").disabled = !chats.length;
  offered();
}

function say(text, bad = false) {
  spent.className = bad ? "bad" : "";
  spent.textContent = text;
}

// Text with fenced code in blocks of its own.
function shown(parent, text) {
  parent.replaceChildren(...text.split(/^```[^\n]*\n?/m).map((part, place) => place % 2
    ? make("pre", {}, make("code", {}, part.replace(/\n$/, "")))
    : make("div", { class: "text" }, part)));
}

function turn(role, text, pictures = []) {
  const body = make("div", {});
  shown(body, text);
  const block = make("div", { class: `turn ${role}` }, make("p", { class: "who" }, role), body, ...pictures.map((url, i) => make("img", { src: url, alt: `image ${i + 1} of this message` })));
  log.append(block);
  log.scrollTop = log.scrollHeight;
  return { block, body };
}

function body() {
  const system = byId("system").value.trim();
  const asked = {
    model: byId("model").value,
    stream: true,
    stream_options: { include_usage: true },
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
  };
  if (byId("temperature").value) asked.temperature = Number(byId("temperature").value);
  if (byId("most").value) asked.max_tokens = Number(byId("most").value);
  if (byId("think").value) asked.chat_template_kwargs = { enable_thinking: byId("think").value === "on" };
  const tools = byId("tools").value.trim();
  if (tools) asked.tools = JSON.parse(tools).map((tool) => tool.type ? tool : { type: "function", function: tool });
  return asked;
}

// One answer on the page, drawn at most once a frame however fast it comes.
class Answer {
  constructor() {
    this.text = this.reasoning = "";
    this.calls = [];
    const { block, body: place } = turn("assistant", "");
    this.place = place;
    this.thought = make("div", { class: "text" });
    this.details = make("details", { hidden: true, open: true }, make("summary", {}, "Reasoning"), this.thought);
    this.made = make("div", {});
    place.before(this.details);
    block.append(this.made);
  }

  take(delta) {
    this.text += delta.content ?? "";
    this.reasoning += delta.reasoning_content ?? "";
    for (const piece of delta.tool_calls ?? []) {
      const held = this.calls[piece.index] ??= { id: "", type: "function", function: { name: "", arguments: "" } };
      held.id ||= piece.id ?? "";
      held.function.name += piece.function?.name ?? "";
      held.function.arguments += piece.function?.arguments ?? "";
    }
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    this.details.hidden = !this.reasoning;
    if (this.text) this.details.open = false;
    this.thought.textContent = this.reasoning;
    shown(this.place, this.text);
    this.made.replaceChildren(...this.calls.map(({ function: { name, arguments: given } }) => make("div", { class: "call" }, make("strong", {}, `calls ${name}`), make("pre", {}, given))));
    if (follows) log.scrollTop = log.scrollHeight;
  }

  message() {
    const said = { role: "assistant", content: this.text || null };
    if (this.reasoning) said.reasoning_content = this.reasoning;
    if (this.calls.length) said.tool_calls = this.calls;
    return said;
  }

  // A field for each call's result; the conversation goes on once all are there.
  wantResults() {
    const fields = this.calls.map((made) => make("textarea", { rows: 2, "aria-label": `result of ${made.function.name}` }));
    const form = make("form", { submit: (event) => {
      event.preventDefault();
      form.remove();
      this.calls.forEach((made, i) => {
        messages.push({ role: "tool", tool_call_id: made.id, content: fields[i].value });
        turn("tool", `${made.function.name}: ${fields[i].value}`);
      });
      answer();
    } }, ...fields, make("button", {}, "Send results"));
    this.made.append(form);
    fields[0].focus();
  }
}

function begun() {
  running = new AbortController();
  byId("stop").disabled = false;
  byId("send").disabled = true;
  say("waiting");
}

function ended(problem) {
  if (problem) say(problem.name === "AbortError" ? "stopped" : problem.message, problem.name !== "AbortError");
  running = null;
  byId("stop").disabled = true;
  byId("send").disabled = false;
  look();
}

// An image, and what it looks like on its way.
async function draw(prompt) {
  begun();
  const from = performance.now();
  const { block, body: place } = turn("assistant", "");
  const image = make("img", { alt: prompt, hidden: true });
  place.append(image);
  try {
    const asked = { model: byId("model").value, prompt, stream: true, partial_images: 3 };
    const stream = await call("v1/images/generations", { method: "POST", json: asked, signal: running.signal });
    for await (const data of events(stream)) {
      if (data === "[DONE]") continue;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      image.src = `data:image/png;base64,${event.b64_json}`;
      image.hidden = false;
      log.scrollTop = log.scrollHeight;
      if (event.seed !== undefined) say(`${event.size}, seed ${event.seed}, ${seconds((performance.now() - from) / 1000)}`);
    }
    ended();
  } catch (problem) {
    block.remove();
    ended(problem);
  }
}

async function answer() {
  let asked;
  try {
    asked = body();
  } catch (problem) {
    say(`Tools: ${problem.message}`, true);
    return;
  }
  begun();
  const from = performance.now();
  const made = new Answer();
  let first = null;
  let usage = null;
  let reason = null;
  try {
    const stream = await call("v1/chat/completions", { method: "POST", json: asked, signal: running.signal });
    for await (const data of events(stream)) {
      if (data === "[DONE]") continue;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage ?? usage;
      for (const choice of chunk.choices) {
        if (choice.delta.content || choice.delta.reasoning_content || choice.delta.tool_calls) first ??= performance.now();
        made.take(choice.delta);
        reason = choice.finish_reason ?? reason;
      }
    }
    const took = (performance.now() - (first ?? from)) / 1000;
    const n = usage?.completion_tokens ?? 0;
    say(`${n} tokens, first after ${seconds(((first ?? from) - from) / 1000)}${n > 1 && took >= LEAST_TIMED_S ? `, ${(n / took).toFixed(1)} tokens/s` : ""}${reason === "length" ? ", cut at the limit" : ""}`);
    ended();
  } catch (problem) {
    ended(problem);
  }
  made.draw();
  if (made.text || made.reasoning || made.calls.length) {
    if (!reason) made.calls = [];
    messages.push(made.message());
    if (made.calls.length) made.wantResults();
  } else {
    made.place.parentElement.remove();
    if (messages.at(-1)?.role === "user") messages.pop();
  }
}

function send(event) {
  event?.preventDefault();
  const text = byId("say").value.trim();
  if (running || byId("send").disabled || (!text && !images.length)) return;
  const waits = messages.at(-1)?.tool_calls;
  if (waits) {
    say("The model waits for the results of its calls.", true);
    return;
  }
  if (can(chosen(), "image_generation")) {
    if (images.length) {
      say(`${byId("model").value} draws from words alone. Remove the attached images.`, true);
      return;
    }
    turn("user", text);
    byId("say").value = "";
    draw(text);
    return;
  }
  const parts = images.map((url) => ({ type: "image_url", image_url: { url } }));
  messages.push({ role: "user", content: parts.length ? [...parts, { type: "text", text }] : text });
  turn("user", text, images);
  byId("say").value = "";
  images = [];
  pictures();
  answer();
}

function pictures() {
  byId("attached").replaceChildren(...images.map((url, place) => make("li", {},
    make("img", { src: url, alt: `attached image ${place + 1}` }),
    make("button", { type: "button", "aria-label": `Remove image ${place + 1}`, click: () => { images.splice(place, 1); pictures(); } }, "Remove"))));
}

function attach(files) {
  for (const file of files) {
    const wrong = byId("see").hidden ? `is not attached: ${byId("model").value} does not see`
      : !file.type.startsWith("image/") ? "is no image"
      : file.size > MAX_IMAGE_BYTES ? "is larger than 20 MiB" : null;
    if (wrong) {
      say(`${file.name} ${wrong}`, true);
      continue;
    }
    const reader = new FileReader();
    reader.onload = () => { images.push(reader.result); pictures(); };
    reader.readAsDataURL(file);
  }
}

async function heard(pieces, type) {
  const form = new FormData();
  form.append("file", new File(pieces, `speech.${type.includes("mp4") ? "mp4" : "webm"}`, { type }));
  form.append("model", models.find((model) => can(model, "transcription")).id);
  say("transcribing");
  try {
    const { text } = await (await call("v1/audio/transcriptions", { method: "POST", body: form })).json();
    byId("say").value = `${byId("say").value} ${text}`.trim();
    say("");
    byId("say").focus();
  } catch (problem) {
    say(problem.message, true);
  }
}

async function speak() {
  if (recorder) {
    recorder.stop();
    return;
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (problem) {
    say(`no microphone: ${problem.message}`, true);
    return;
  }
  const pieces = [];
  recorder = new MediaRecorder(stream);
  recorder.ondataavailable = ({ data }) => pieces.push(data);
  recorder.onstop = () => {
    for (const track of stream.getTracks()) track.stop();
    byId("speak").setAttribute("aria-pressed", "false");
    byId("speak").textContent = "Speak";
    const { mimeType } = recorder;
    recorder = null;
    heard(pieces, mimeType);
  };
  recorder.start();
  byId("speak").setAttribute("aria-pressed", "true");
  byId("speak").textContent = "Stop listening";
}

export function begin() {
  let names = "";
  onStatus((status) => {
    const now = status.models.map((model) => `${model.name} ${model.unusable} ${model.state}`).join("\n");
    if (now !== names) list().then(() => { names = now; }, (problem) => say(problem.message, true));
  });
  byId("ask").addEventListener("submit", send);
  byId("say").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
  });
  byId("say").addEventListener("paste", (event) => attach(event.clipboardData.files));
  byId("ask").addEventListener("dragover", (event) => event.preventDefault());
  byId("ask").addEventListener("drop", (event) => { event.preventDefault(); attach(event.dataTransfer.files); });
  byId("image").addEventListener("change", ({ target }) => { attach(target.files); target.value = ""; });
  byId("stop").addEventListener("click", () => running?.abort());
  byId("speak").addEventListener("click", speak);
  byId("model").addEventListener("change", offered);
  byId("fresh").addEventListener("click", () => {
    running?.abort();
    messages = [];
    images = [];
    pictures();
    log.replaceChildren();
    say("");
    byId("say").focus();
  });
}
