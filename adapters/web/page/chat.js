// The web chat: draws what the server's event stream says, and sends what the fan does.

const texts = JSON.parse(document.body.dataset.texts);
const $ = (id) => document.getElementById(id);
const [scroll, log, write, input] = ["scroll", "log", "write", "text"].map($);
const ICONS = { up: "👍", dn: "👎", fx: "✏️", ag: "🔁" };
const rows = new Map(); // item id → its element
const unsent = new Map(); // id → text that the server has not confirmed
const HIDDEN_SECONDS = 20; // a browser has few connections a server: a hidden tab gives its up
let source, retry, typingTimer, toastTimer, hiddenTimer;
let atEnd = true;

// --- small things ------------------------------------------------------------------------

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function toast(sentence) {
  if (!sentence) return;
  $("toast").textContent = sentence;
  $("toast").classList.add("on");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => $("toast").classList.remove("on"), 3500);
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
  try {
    const answer = await post(path, body);
    toast(answer.toast);
    return answer;
  } catch (error) {
    toast(error.told ?? texts.offline);
    return null;
  }
}

// --- scrolling: follow the text unless the reader went up ----------------------------------

function follow(force = false) {
  if (force || atEnd) scroll.scrollTop = scroll.scrollHeight;
}

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
  const element = make("button", { type: "button", title: texts[action], textContent: ICONS[action] ?? texts[action] });
  element.dataset.action = action;
  element.setAttribute("aria-label", texts[action]);
  if (action === "up" || action === "dn") element.ariaPressed = String(item.vote === action);
  if (action === "fx") element.ariaExpanded = "false";
  return element;
}

function addCopyButtons(body) {
  for (const code of body.querySelectorAll(".code")) {
    code.append(make("button", { type: "button", className: "copy", textContent: texts.copy }));
  }
}

function newRow(item) {
  const row = make("article", { className: item.fan ? "fan" : "bot" });
  const body = make("div", { className: "bubble", dir: "auto" });
  row.append(body);
  if (!item.fan) row.append(make("div", { className: "actions" }));
  log.append(row);
  rows.set(item.id, row);
  return row;
}

function show(item) {
  const row = rows.get(item.id) ?? newRow(item);
  const body = row.querySelector(".bubble");
  row.item = item;
  if (item.fan) {
    body.textContent = item.text;
    row.classList.toggle("failed", false);
    unsent.delete(item.id);
  } else {
    morph(body, item.html);
    row.classList.toggle("running", !item.final);
    drawActions(row, item);
    if (item.final) addCopyButtons(body);
    hideTyping();
  }
  greet();
}

/** The greeting stays until there is a question or an answer: a notice does not hide it. */
function greet() {
  $("greeting").hidden = [...rows.values()].some(({ item }) => item.fan || item.answer);
}

function drawActions(row, item) {
  const actions = row.querySelector(".actions");
  const key = `${item.buttons} ${item.vote}`;
  if (actions.dataset.key === key) return;
  const focused = actions.contains(document.activeElement) && document.activeElement.dataset.action;
  actions.dataset.key = key;
  actions.replaceChildren(...item.buttons.map((action) => button(action, item)));
  if (focused) (actions.querySelector(`[data-action=${focused}]`) ?? input).focus();
}

function sync(items) {
  const ids = new Set(items.map((item) => item.id));
  for (const [id, row] of rows) {
    if (!ids.has(id) && !unsent.has(id)) {
      row.remove();
      rows.delete(id);
    }
  }
  for (const item of items) {
    show(item);
    log.append(rows.get(item.id)); // in the server's order
  }
  for (const id of unsent.keys()) log.append(rows.get(id));
  greet();
  follow();
}

function showTyping() {
  $("typing").hidden = false;
  clearTimeout(typingTimer);
  typingTimer = setTimeout(hideTyping, 6000);
  follow();
}

function hideTyping() {
  $("typing").hidden = true;
}

// --- what the fan does -----------------------------------------------------------------------

async function deliver(id, text) {
  unsent.set(id, text);
  const row = rows.get(id);
  row.classList.remove("failed");
  try {
    const answer = await post("/api/message", { id, text });
    unsent.delete(id);
    if (answer.correct) {
      row.remove();
      rows.delete(id);
      openFix(answer.correct);
    }
  } catch (error) {
    row.classList.add("failed");
    row.title = texts.failed;
    toast(error.told ?? texts.failed);
  }
}

function say(text) {
  if (!text.trim()) return;
  const id = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random().toString(36).slice(2)}`;
  show({ id, fan: true, text });
  follow(true);
  deliver(id, text);
}

function openFix(answer) {
  const row = [...rows.values()].find((candidate) => candidate.item.answer === answer);
  if (!row || row.querySelector("form")) return row?.querySelector("form textarea").focus();
  const area = make("textarea", { value: row.item.text, rows: 6 });
  area.setAttribute("aria-label", texts.fix);
  const form = make("form", { className: "fix" },
    make("p", { textContent: texts.fix }), area,
    make("button", { type: "submit", textContent: texts.save }),
    make("button", { type: "button", textContent: texts.cancel, onclick: () => closeFix(row) }));
  form.onsubmit = async (event) => {
    event.preventDefault();
    if (await attempt("/api/correct", { answer_id: answer, text: area.value })) closeFix(row);
  };
  form.onkeydown = (event) => event.key === "Escape" && closeFix(row);
  row.append(form);
  row.querySelector("[data-action=fx]").ariaExpanded = "true";
  area.setSelectionRange(0, 0);
  area.focus();
  form.scrollIntoView({ block: "nearest" });
}

function closeFix(row) {
  row.querySelector("form").remove();
  const opener = row.querySelector("[data-action=fx]");
  opener.ariaExpanded = "false";
  opener.focus();
}

async function onLogClick(event) {
  const failed = event.target.closest(".failed");
  if (failed) return deliver(failed.item.id, failed.item.text);
  const pressed = event.target.closest("[data-action]");
  if (!pressed) return copyCode(event.target.closest(".copy"));
  const { item } = pressed.closest("article");
  if (pressed.dataset.action === "fx") return openFix(item.answer);
  await attempt("/api/press", { action: pressed.dataset.action, answer_id: item.answer });
}

async function copyCode(element) {
  if (!element) return;
  await navigator.clipboard.writeText(element.parentElement.querySelector("code").textContent);
  toast(texts.copied);
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
  $("banner").hidden = up;
  $("banner").textContent = up ? "" : texts.offline;
}

function connect() {
  clearTimeout(retry);
  source?.close();
  source = new EventSource("/api/events");
  source.onopen = () => connected(true);
  source.onerror = async () => {
    connected(false);
    if (source.readyState !== EventSource.CLOSED) return; // it tries again by itself
    const response = await fetch("/api/history").catch(() => null);
    if (response?.status === 401) location.reload(); // the password or the cookie is gone
    retry = setTimeout(connect, 2000);
  };
  source.addEventListener("sync", (event) => sync(JSON.parse(event.data)));
  source.addEventListener("typing", showTyping);
  source.addEventListener("item", (event) => {
    const item = JSON.parse(event.data);
    const isEnd = item.final && (rows.get(item.id)?.classList.contains("running") ?? true);
    show(item);
    if (isEnd) $("announce").textContent = rows.get(item.id).querySelector(".bubble").textContent;
    follow();
  });
}

function onVisibility() {
  clearTimeout(hiddenTimer);
  if (document.hidden) hiddenTimer = setTimeout(() => source.close(), HIDDEN_SECONDS * 1000);
  else if (source.readyState === EventSource.CLOSED) connect();
}

function startChat() {
  write.onsubmit = (event) => {
    event.preventDefault();
    say(input.value);
    input.value = "";
    grow();
  };
  input.oninput = grow;
  input.onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    write.requestSubmit();
  };
  log.onclick = onLogClick;
  $("greeting").onclick = ({ target }) => target.matches(".chip") && say(target.textContent);
  $("new").onclick = () => {
    attempt("/api/command", { name: "novo", id: crypto.randomUUID() });
    input.focus();
  };
  $("down").onclick = () => follow(true);
  scroll.onscroll = watchScroll;
  new ResizeObserver(() => follow()).observe(scroll);
  document.onvisibilitychange = onVisibility;
  grow();
  connect();
}

function startLogin() {
  $("login").onsubmit = async (event) => {
    event.preventDefault();
    if (await attempt("/login", { password: $("password").value })) location.reload();
    else $("password").select();
  };
}

$("theme").onclick = () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  document.cookie = `farense_theme=${root.dataset.theme}; path=/; max-age=31536000; SameSite=Strict`;
};

if (log) startChat();
else startLogin();
