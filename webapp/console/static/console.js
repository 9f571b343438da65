// Polls the console once a second, while the tab is seen, and shows what it says.

import { charts } from "./charts.js";
import { tasks } from "./tasks.js";
import { prepare } from "./try.js";

const state = document.getElementById("state");
const POLL_MS = 1000;
const WAIT_MS = 5000;
const drawn = charts();
let number = 0;
let timer = 0;

function is(name) {
  if (state.dataset.is !== name) {
    state.dataset.is = name;
    state.textContent = state.dataset[name];
  }
}

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function fill(body, rows) {
  body.replaceChildren(...rows.map(([head, ...cells]) => {
    const row = document.createElement("tr");
    const first = document.createElement("th");
    first.scope = "row";
    first.textContent = head;
    row.append(first, ...cells.map((text) => Object.assign(document.createElement("td"), { textContent: text })));
    return row;
  }));
}

function show({ now, sizing }) {
  for (const [name, text] of Object.entries(now.figures)) {
    put(document.querySelector(`[data-figure="${name}"]`), text);
  }
  document.getElementById("no-server").hidden = now.has_server;
  fill(document.querySelector("#processes tbody"), now.processes);
  const verdict = document.getElementById("verdict");
  if (verdict.dataset.kind !== sizing.kind) {
    // The numbers in it change each second, which nobody wants to hear.
    document.getElementById("spoken").textContent = sizing.verdict;
  }
  verdict.dataset.kind = sizing.kind;
  put(verdict, sizing.verdict);
  put(document.getElementById("because"), sizing.because);
  fill(document.querySelector("#figures tbody"), sizing.rows);
}

async function look() {
  const window_s = document.querySelector('[name="window"]:checked').value;
  const answer = await fetch(`/data?since=${number}&window=${window_s}`, { signal: AbortSignal.timeout(WAIT_MS) });
  if (answer.status === 401) {
    location.reload(); // which leads to the sign-in
    return;
  }
  if (!answer.ok) throw new Error(answer.statusText);
  const data = await answer.json();
  drawn.add(data.points, data.number < number);
  number = data.number;
  show(data);
  is("live");
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden) {
    is("paused");
    return;
  }
  try {
    await look();
  } catch {
    is("lost");
  }
  clearTimeout(timer);
  timer = setTimeout(poll, POLL_MS);
}

async function findings() {
  const list = document.getElementById("findings");
  const answer = await fetch("/findings").catch(() => null);
  const found = answer?.ok ? (await answer.json()).findings : null;
  if (!found?.length) {
    const item = document.createElement("li");
    item.lang = document.documentElement.lang;
    item.textContent = found ? list.dataset.none : list.dataset.unknown;
    list.replaceChildren(item);
    return;
  }
  list.replaceChildren(...found.map(({ level, what, why, remedy }) => {
    const item = document.createElement("li");
    item.dataset.level = level;
    const word = Object.assign(document.createElement("span"), { className: "level", textContent: `${level}: ` });
    item.append(word, `${what} ${why} ${remedy}`);
    return item;
  }));
}

document.addEventListener("visibilitychange", poll);
document.getElementById("window").addEventListener("change", poll);
prepare();
tasks();
poll();
findings();
