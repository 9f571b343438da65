// Sends what a person tries to the console, which asks the application. Answers are shown as text, never as HTML.

const form = document.getElementById("question");
const answers = document.getElementById("answers");
const sending = document.getElementById("sending");
const button = form.querySelector("button");

const made = (name, properties, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};

function kind() {
  return form.elements.kind.value;
}

function arrange() {
  const label = form.querySelector('label[for="text"]');
  label.textContent = label.dataset[kind()];
  form.querySelector(".context").hidden = kind() !== "parse";
  form.querySelector(".beside").hidden = kind() === "batch";
}

function article({ title, text, error, facts }) {
  const terms = facts.flatMap(([name, value]) => [
    made("dt", { textContent: name }),
    made("dd", { textContent: value }),
  ]);
  const said = error ? made("p", { className: "error", textContent: error }) : made("p", { className: "text", textContent: text });
  return made("article", {}, made("h3", { textContent: title }), said, made("dl", {}, ...terms));
}

async function ask(mode) {
  const { text, scene, realm, target_realm } = form.elements;
  const body = { kind: kind(), mode, text: text.value };
  if (kind() === "parse") Object.assign(body, { scene: scene.value, realm: realm.value, target_realm: target_realm.value });
  const lost = { title: mode, text: "", error: form.dataset.lost, facts: [] };
  try {
    const answer = await fetch("/try", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    return answer.ok ? await answer.json() : { ...lost, error: `${lost.error} (${answer.status})` };
  } catch {
    return lost;
  }
}

async function send(event) {
  event.preventDefault();
  if (button.getAttribute("aria-disabled") === "true") return;
  button.setAttribute("aria-disabled", "true"); // a disabled one would lose the focus
  sending.textContent = form.dataset.sending;
  const modes = form.elements.beside.checked && kind() !== "batch" ? ["async", "sync"] : ["async"];
  answers.replaceChildren();
  const places = modes.map(() => answers.appendChild(document.createElement("div")));
  await Promise.all(modes.map(async (mode, n) => places[n].replaceChildren(article(await ask(mode)))));
  sending.textContent = "";
  button.removeAttribute("aria-disabled");
}

export function prepare() {
  form.addEventListener("submit", send);
  form.addEventListener("change", arrange);
  arrange();
}
