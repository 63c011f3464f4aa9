// The web chat: draws what the server's event stream says, and sends what the fan does.

const texts = JSON.parse(document.body.dataset.texts);
const $ = (id) => document.getElementById(id);
const [scroll, log, write, input] = ["scroll", "log", "write", "text"].map($);
const ICONS = { up: "👍", dn: "👎", fx: "✏️", ag: "🔁" };
const rows = new Map(); // item id → its element
const unsent = new Set(); // ids of what the server has not confirmed
const drafts = new Map(); // what was typed into a form, which when opened again still holds it
const HIDDEN_SECONDS = 20; // a browser has few connections a server: a hidden tab gives its up
const timers = {};
let source, atEnd = true;

function later(name, seconds, action) {
  clearTimeout(timers[name]);
  timers[name] = setTimeout(action, seconds * 1000);
}

const newId = () => crypto.randomUUID?.() ?? `${Date.now()}-${String(Math.random()).slice(2)}`;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function toast(sentence) {
  if (!sentence) return;
  $("toast").textContent = sentence;
  $("toast").classList.add("on");
  later("toast", 3.5, () => $("toast").classList.remove("on"));
}

async function post(path, body) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Farense": "1" },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(20000),
  });
  const answer = await response.json();
  if (response.status === 401) location.reload();
  if (!response.ok) throw Object.assign(new Error(answer.error), { told: answer.error });
  return answer;
}

async function attempt(path, body) {
  const answer = await post(path, body).catch((error) => toast(error.told ?? texts.offline));
  toast(answer?.toast);
  return answer;
}

// --- scrolling: follow the text unless the reader went up ----------------------------------

const follow = (force = false) => (force || atEnd) && scroll.scrollTo(0, scroll.scrollHeight);

function watchScroll() {
  atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 48;
  $("down").hidden = atEnd;
}

// --- drawing -------------------------------------------------------------------------------

/** Replace only the blocks that changed: a selection survives, and long answers stay cheap. */
function morph(target, html) {
  const next = [...make("template", { innerHTML: html }).content.childNodes];
  next.forEach((node, i) => {
    const old = target.childNodes[i];
    if (!old) target.append(node);
    else if (!old.isEqualNode(node)) old.replaceWith(node);
  });
  while (target.childNodes.length > next.length) target.lastChild.remove();
}

function button(action, item) {
  const title = texts[action];
  const textContent = ICONS[action] ?? title;
  const element = make("button", { type: "button", title, ariaLabel: title, textContent });
  element.dataset.action = action;
  if (action === "up" || action === "dn") element.ariaPressed = String(item.vote === action);
  return element;
}

function choiceButton({ label, data }) {
  const element = make("button", { type: "button", className: "choice", textContent: label });
  element.dataset.choice = data;
  return element;
}

function addCopyButtons(body) {
  if (!navigator.clipboard) return; // there is none without https, except on this machine
  const copy = () => make("button", { type: "button", className: "copy", textContent: texts.copy });
  body.querySelectorAll(".code").forEach((code) => code.append(copy()));
}

function newRow(item) {
  const parts = ["bubble", "actions"].map((className) => make("div", { className, dir: "auto" }));
  const row = make("article", { className: item.fan ? "fan" : "bot" }, ...parts);
  rows.set(item.id, row);
  log.append(row);
  return row;
}

function show(item) {
  const row = rows.get(item.id) ?? newRow(item);
  const body = row.querySelector(".bubble");
  row.item = item;
  if (item.fan) {
    body.textContent = item.text;
    row.classList.remove("failed");
    unsent.delete(item.id);
  } else {
    morph(body, item.html);
    row.classList.toggle("running", !item.final);
    drawActions(row, item);
    if (item.final) addCopyButtons(body);
    showTyping(false);
  }
  greet();
}

function drop(id) {
  rows.get(id)?.remove();
  rows.delete(id);
  greet();
}

/** The greeting stays until there is a question or an answer: a notice does not hide it. */
function greet() {
  $("greeting").hidden = [...rows.values()].some(({ item }) => item.fan || item.answer);
}

function drawActions(row, item) {
  const actions = row.querySelector(".actions");
  const key = `${item.buttons} ${item.vote} ${JSON.stringify(item.choices)}`;
  if (actions.dataset.key === key) return;
  const place = [...actions.children].indexOf(document.activeElement);
  const { action } = actions.children[place]?.dataset ?? {};
  actions.dataset.key = key;
  const buttons = item.buttons.map((action) => button(action, item));
  actions.replaceChildren(...buttons, ...item.choices.map(choiceButton));
  if (place < 0) return;
  const same = action ? actions.querySelector(`[data-action=${action}]`) : actions.children[place];
  (same ?? input).focus();
}

function sync(items) {
  const ids = new Set(items.map((item) => item.id));
  for (const id of rows.keys()) if (!ids.has(id) && !unsent.has(id)) drop(id);
  items.forEach(show);
  for (const id of [...ids, ...unsent]) log.append(rows.get(id)); // in the server's order
  greet();
  follow();
}

function showTyping(on) {
  $("typing").hidden = !on;
  if (on) later("typing", 6, () => showTyping(false));
  follow();
}

function update(item) {
  const isEnd = item.final && (rows.get(item.id)?.classList.contains("running") ?? true);
  show(item);
  if (isEnd) $("announce").textContent = rows.get(item.id).querySelector(".bubble").textContent;
  follow();
}

// --- what the fan does -----------------------------------------------------------------------

async function deliver(id, text) {
  unsent.add(id);
  const row = rows.get(id);
  row.classList.remove("failed");
  try {
    const answer = await post("/api/message", { id, text });
    unsent.delete(id);
    if (answer.shown === false) drop(id); // a command that does something instead
    if (answer.correct) openFix(answer.correct);
  } catch (error) {
    row.classList.add("failed");
    row.title = texts.failed;
    toast(error.told ?? texts.failed);
  }
}

function say(text) {
  if (!text.trim()) return;
  const id = newId();
  show({ id, fan: true, text });
  follow(true);
  deliver(id, text);
}

function openFix(answer) {
  const row = [...rows.values()].find((candidate) => candidate.item.answer === answer);
  const send = async (text) => (await attempt("/api/correct", { answer_id: answer, text }))?.done;
  if (row) openForm(row, "fix", answer, row.item.text, send);
}

/** Ask for a text below a row; what `send` does not take stays there, nothing typed is lost. */
function openForm(row, template, key, begin, send) {
  if (row.querySelector("form")) return row.querySelector("form textarea").focus();
  const form = $(template).content.firstElementChild.cloneNode(true);
  const area = form.querySelector("textarea");
  area.value = drafts.get(key) || begin;
  area.oninput = () => drafts.set(key, area.value);
  form.onsubmit = async (event) => {
    event.preventDefault();
    if (!area.value.trim()) return area.focus();
    if (await send(area.value)) closeForm(row, key);
  };
  form.querySelector("[type=button]").onclick = () => closeForm(row, key);
  form.onkeydown = (event) => event.key === "Escape" && closeForm(row, key);
  row.append(form);
  area.setSelectionRange(0, 0);
  area.focus();
  form.scrollIntoView({ block: "nearest" });
}

function closeForm(row, key) {
  row.querySelector("form").remove();
  const openers = [...row.querySelectorAll("[data-action=fx], .choice")];
  (openers.find(({ dataset }) => (dataset.choice ?? key) === key) ?? input).focus();
}

function choose(row, data) {
  const send = (text) => attempt("/api/tap", { id: row.item.id, data, text });
  if (data.startsWith("?")) openForm(row, "form", data, "", send);
  else send();
}

async function onLogClick({ target }) {
  const row = target.closest("article");
  const { item } = row ?? {};
  const { action } = target.closest("[data-action]")?.dataset ?? {};
  if (target.closest(".failed")) deliver(item.id, item.text);
  else if (action === "fx") openFix(item.answer);
  else if (action) attempt("/api/press", { action, answer_id: item.answer });
  else if (target.matches(".choice")) choose(row, target.dataset.choice);
  else if (target.matches(".copy")) {
    await navigator.clipboard.writeText(target.parentElement.querySelector("code").textContent);
    toast(texts.copied);
  }
}

function grow() {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
  $("send").disabled = !input.value.trim();
}

// --- the stream of events --------------------------------------------------------------------

function connected(up) {
  $("dot").className = up ? "up" : "down";
  $("status").textContent = up ? texts.online : texts.connecting;
  Object.assign($("banner"), { hidden: up, textContent: up ? "" : texts.offline });
}

function connect() {
  source?.close();
  source = new EventSource("/api/events");
  source.onopen = () => connected(true);
  source.onerror = async () => {
    connected(false);
    if (source.readyState !== EventSource.CLOSED) return; // it tries again by itself
    const response = await fetch("/api/history").catch(() => null);
    if (response?.status === 401) location.reload(); // the password or the cookie is gone
    later("retry", 2, connect);
  };
  source.addEventListener("sync", (event) => sync(JSON.parse(event.data)));
  source.addEventListener("typing", () => showTyping(true));
  source.addEventListener("item", (event) => update(JSON.parse(event.data)));
}

function onVisibility() {
  if (document.hidden) return later("hidden", HIDDEN_SECONDS, () => source.close());
  clearTimeout(timers.hidden);
  if (source.readyState === EventSource.CLOSED) connect();
}

function onWrite(event) {
  event.preventDefault();
  say(input.value);
  input.value = "";
  grow();
}

function startChat() {
  write.onsubmit = onWrite;
  input.oninput = grow;
  input.onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    write.requestSubmit();
  };
  log.onclick = onLogClick;
  $("greeting").onclick = ({ target }) => target.matches(".chip") && say(target.textContent);
  $("new").onclick = () => attempt("/api/command", { name: "novo", id: newId() });
  $("down").onclick = () => follow(true);
  scroll.onscroll = watchScroll;
  new ResizeObserver(() => follow()).observe(scroll);
  document.onvisibilitychange = onVisibility;
  grow();
  connect();
}

async function logIn(event) {
  event.preventDefault();
  if (await attempt("/login", { password: $("password").value })) location.reload();
}

$("theme").onclick = () => {
  const chosen = document.documentElement.dataset;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  chosen.theme = (chosen.theme ?? system) === "dark" ? "light" : "dark";
  document.cookie = `farense_theme=${chosen.theme}; path=/; max-age=31536000; SameSite=Strict`;
};

if (log) startChat();
else $("login").onsubmit = logIn;
