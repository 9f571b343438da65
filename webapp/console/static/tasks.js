// Shows the queue, asked on its own: a server of the queue that is silent holds nothing else up. One task can be cancelled.

const POLL_MS = 2000;
const WAIT_MS = 5000;
const section = document.getElementById("tasks");
let timer = 0;
let number = 0;

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function say(text) {
  document.getElementById("said").textContent = text;
}

async function cancel(id) {
  try {
    const answer = await fetch("/tasks/cancel", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ task_id: id }),
      signal: AbortSignal.timeout(WAIT_MS),
    });
    say(answer.ok ? (await answer.json()).said : `${section.dataset.lost} (${answer.status})`);
  } catch {
    say(section.dataset.lost);
  }
  await look();
}

function row(id) {
  const line = document.createElement("tr");
  const head = Object.assign(document.createElement("th"), { scope: "row", textContent: id, id: `task-${id}` });
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: section.dataset.cancel });
  button.setAttribute("aria-describedby", head.id);
  button.addEventListener("click", () => cancel(id));
  const place = document.createElement("td");
  place.append(button);
  line.append(head, ...[1, 2, 3].map(() => document.createElement("td")), place);
  line.dataset.id = id;
  return line;
}

// A row that stays is not made anew: its button may have the focus.
function fill(body, rows) {
  const wanted = new Set(rows.map(([id]) => id));
  const hadFocus = body.contains(document.activeElement);
  for (const line of [...body.rows]) if (!wanted.has(line.dataset.id)) line.remove();
  const known = new Map([...body.rows].map((line) => [line.dataset.id, line]));
  rows.forEach(([id, ...cells], place) => {
    const line = known.get(id) ?? row(id);
    if (body.rows[place] !== line) body.insertBefore(line, body.rows[place] ?? null);
    cells.forEach((text, n) => put(line.cells[n + 1], text));
  });
  if (hadFocus && !body.contains(document.activeElement)) section.querySelector("h2").focus();
}

function show({ away, figures, rows }) {
  const note = document.getElementById("queue-away");
  put(note, away);
  note.hidden = !away;
  for (const place of section.querySelectorAll("[data-figure]")) put(place, figures[place.dataset.figure] ?? "–");
  document.getElementById("open-tasks").hidden = !rows.length;
  document.getElementById("no-tasks").hidden = Boolean(rows.length || away);
  fill(section.querySelector("tbody"), rows);
}

async function look() {
  clearTimeout(timer);
  if (document.hidden) return;
  const mine = ++number;
  try {
    const answer = await fetch("/tasks", { signal: AbortSignal.timeout(WAIT_MS) });
    // An older look that comes in late would bring a cancelled task back.
    if (answer.ok && mine === number) show(await answer.json());
  } catch {
    // The console itself does not answer: the head of the page says so.
  }
  if (mine === number) timer = setTimeout(look, POLL_MS);
}

export function tasks() {
  if (!section) return;
  document.addEventListener("visibilitychange", look);
  look();
}
