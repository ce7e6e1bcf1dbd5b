// What the parts of the page share: elements made of text alone, requests with the key, streams read event by event.

export const byId = (id) => document.getElementById(id);

// An element with attributes and children. Text is always text: nothing here reads markup.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child != null).map((child) => child.nodeType ? child : String(child)));
  return element;
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(n) {
  let unit = 0;
  for (; n >= 1024 && unit < UNITS.length - 1; unit++) n /= 1024;
  return `${unit && n < 100 ? n.toFixed(1) : Math.round(n)} ${UNITS[unit]}`;
}

export function seconds(s) {
  if (s < 1) return `${Math.round(s * 1000)} ms`;
  if (s < 60) return `${s < 10 ? s.toFixed(1) : Math.round(s)} s`;
  return s < 3600 ? `${Math.round(s / 60)} min` : `${Math.floor(s / 3600)} h ${Math.round(s % 3600 / 60)} min`;
}

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const key = byId("key");
let waiting = [];

key.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("onecard-key", byId("secret").value);
  byId("secret").value = "";
  key.hidden = true;
  for (const go of waiting) go();
  waiting = [];
});

// Until a person has given another key.
function asked() {
  if (key.hidden) {
    key.hidden = false;
    byId("secret").focus();
  }
  return new Promise((go) => waiting.push(go));
}

// A request of this page; raises Refused with the server's own sentence. Without a right key it waits for one.
export async function call(path, options = {}) {
  for (;;) {
    const used = sessionStorage.getItem("onecard-key");
    const headers = { ...options.headers, ...(used ? { authorization: `Bearer ${used}` } : {}) };
    const body = options.json === undefined ? options.body : JSON.stringify(options.json);
    if (options.json !== undefined) headers["content-type"] = "application/json";
    const answer = await fetch(path, { ...options, headers, body, cache: "no-store", credentials: "omit" });
    if (answer.ok) return answer;
    if (answer.status === 401) {
      if (used === sessionStorage.getItem("onecard-key")) await asked();
      continue;
    }
    const told = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, told.error?.message ?? `the server answered ${answer.status}`);
  }
}

// The data of every event of a stream, comments left out.
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      for (let end; (end = rest.indexOf("\n\n")) >= 0; rest = rest.slice(end + 2)) {
        const data = rest.slice(0, end).split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
        if (data.length) yield data.join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// As many as there are: rows that stay keep their elements, so that focus and scrolling are not lost.
export function fill(parent, wanted) {
  wanted.forEach((element, place) => {
    const there = parent.children[place];
    if (!there) parent.append(element);
    else if (!there.isEqualNode(element)) there.replaceWith(element);
  });
  while (parent.children.length > wanted.length) parent.lastElementChild.remove();
}
