// The chat page: asks this server's own API, and shows what comes as text and nothing but text.

const $ = (id) => document.getElementById(id);
const KEY = "aicc-key"; // where this tab keeps the key

const NOTED = { stopped: "stopped", "cut off": "cut off: it had all the tokens it may have" }; // of how answers end

let turns = []; // the conversation: {role, content}
let running = null; // the AbortController of the answer that is coming
let models = []; // as /health/ready lists them

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  throw new Refused(answer.status, body?.error?.message ?? `The server answered ${answer.status}.`);
}

// The messages of a stream of server-sent events, one for each line of data.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
  }
}

// Model text as nodes: what stands between lines of ``` as blocks of code, between backquotes as code, the rest as it is.
function written(text) {
  return text.split(/^```.*\n?/m).flatMap((part, i) => {
    if (i % 2) return [element("pre", "", element("code", "", part.replace(/\n$/, "")))];
    const prose = i ? part.replace(/^\n+/, "") : part;
    return prose.split(/`([^`\n]+)`/).map((piece, j) => (j % 2 ? element("code", "", piece) : document.createTextNode(piece)));
  });
}

function element(tag, name, ...content) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...content);
  return made;
}

function addTurn(role, text) {
  const words = element("div", "words", ...written(text));
  const turn = element("li", role, element("h2", "unseen", role === "user" ? "You" : "The model"), words);
  $("turns").append(turn);
  $("welcome").hidden = true;
  return { turn, words };
}

// Follows the end of the conversation, unless its reader has scrolled up.
function following(change) {
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function facts(count, started, first, last, end) {
  const rate = count > 1 && last > first ? `${((count - 1) / (last - first) * 1000).toFixed(1)} tokens/s` : "";
  const begin = first ? `first after ${((first - started) / 1000).toFixed(2)} s` : "";
  return [`${count} token${count === 1 ? "" : "s"}`, rate, begin, NOTED[end]].filter(Boolean).join(" · ");
}

async function answer(asked) {
  const conversation = turns; // a new chat may begin before this one's answer has ended
  conversation.push({ role: "user", content: asked });
  const system = $("system").value.trim();
  const body = {
    model: $("model").value,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...conversation],
    temperature: $("temperature").valueAsNumber,
    max_tokens: $("tokens").valueAsNumber,
    stream: true,
    stream_options: { include_usage: true },
  };
  const { turn, words } = addTurn("assistant", "");
  const line = element("p", "facts");
  turn.append(line);
  turn.classList.add("busy");
  turn.setAttribute("aria-busy", "true");
  running = new AbortController();
  show();
  const started = performance.now();
  let text = "", count = 0, first = 0, last = 0, drawn = true, end = "complete";
  const draw = () => following(() => {
    drawn = true;
    words.replaceChildren(...written(text));
    line.textContent = facts(count, started, first, last, end);
  });
  try {
    const response = await call("v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal: running.signal,
    });
    for await (const event of events(response.body)) {
      if (event.error) throw new Refused(500, event.error.message);
      const choice = event.choices[0];
      if (event.usage) count = event.usage.completion_tokens;
      if (choice?.finish_reason === "length") end = "cut off";
      if (!choice?.delta.content) continue;
      text += choice.delta.content;
      last = performance.now();
      first ||= last;
      count += 1; // as many pieces as tokens, nearly; the usage at the end is exact
      if (drawn) requestAnimationFrame(draw);
      drawn = false;
    }
  } catch (error) {
    end = error.name === "AbortError" ? "stopped" : "failed";
    if (end === "failed") trouble(turn, error);
  }
  draw();
  if (text) conversation.push({ role: "assistant", content: text });
  else if (end !== "complete") {
    conversation.pop(); // an answer that never came leaves no half of a conversation
    $("text").value ||= asked;
    grow();
  }
  turn.classList.remove("busy");
  turn.removeAttribute("aria-busy");
  running = null;
  show();
  $("said").textContent = end === "failed" ? "" : `Answer ${end}: ${text}`;
}

function trouble(turn, error) {
  const message = error instanceof Refused ? error.message : "The server cannot be reached.";
  const line = element("p", "trouble", message);
  line.setAttribute("role", "alert");
  following(() => turn.append(line));
  if (error.status === 401) askKey("That key was not taken.");
}

function show() {
  const chosen = models.find((model) => model.name === $("model").value);
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  $("send").disabled = !$("text").value.trim() || chosen?.status !== "ready";
  if (!chosen) return;
  const { status, loading, device, target } = chosen;
  const where = [target, device].filter(Boolean).join(" · ");
  const progress = loading && `loading the ${loading.phase}, ${loading.number} of ${loading.phases}`;
  tell(status, status === "ready" ? `runs on ${where}` : progress || status);
}

function tell(status, text) {
  if ($("place").textContent === text) return; // a screen reader would say it again
  $("place").className = status;
  $("place").textContent = $("place").title = text;
}

// Looks at the models, and again while any of them is still loading.
async function look() {
  try {
    const now = await (await fetch("health/ready")).json();
    models = now.models.filter((model) => model.status !== "ready" || model.kv_pages > 0);
    const before = $("model").value;
    $("model").replaceChildren(...models.map((model) => new Option(model.name, model.name)));
    if (models.some((model) => model.name === before)) $("model").value = before;
    $("model").disabled = models.length < 2;
    if (!models.length) tell("", "none of this server's models chats");
    if (now.models.some((model) => model.status === "loading")) setTimeout(look, 500);
  } catch {
    tell("failed", "the server cannot be reached");
    setTimeout(look, 2000);
  }
  show();
}

async function askKey(note) {
  if (note) $("key-note").textContent = note;
  if (!$("key").open) $("key").showModal();
}

async function checkKey() {
  try {
    await call("v1/models");
    $("key").close();
    $("text").focus();
  } catch (error) {
    if (error.status === 401) askKey(sessionStorage.getItem(KEY) ? "That key was not taken." : "");
  }
}

function grow() {
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight}px`;
  show();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || running || $("send").disabled) return;
  $("text").value = "";
  grow();
  addTurn("user", text);
  $("log").scrollTop = $("log").scrollHeight;
  answer(text);
});
$("text").addEventListener("input", grow);
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
$("stop").addEventListener("click", () => {
  running?.abort();
  $("text").focus();
});
$("new").addEventListener("click", () => {
  running?.abort();
  turns = [];
  $("turns").replaceChildren();
  $("welcome").hidden = false;
  $("text").focus();
});
$("model").addEventListener("change", show);
$("open-settings").addEventListener("click", () => $("settings").showModal());
$("settings-form").addEventListener("submit", (event) => {
  event.preventDefault();
  $("settings").close();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key-text").value.trim());
  $("key-text").value = "";
  checkKey();
});

look();
checkKey();
