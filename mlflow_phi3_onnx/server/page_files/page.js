"use strict";
const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const KEPT = ["system", ...NUMBERS, "more", "model"];
const LABELS = { user: "You", assistant: "Model", tool: "Result" };
const ENDS = { length: "cut off: no more tokens were allowed", content_filter: "filtered" };

let turns = [];  // of the conversation: messages of OpenAI's, and what is shown beside them
let key = "";
let running = null;  // the AbortController of the request that runs

// What fails in a way that a person can be told of.
class Told extends Error {}

function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text) element.textContent = text;  // never as HTML: a model writes it
  return element;
}

// ---- what is shown

// Show a turn; the function that it returns shows what has changed since.
function show(turn) {
  const article = make("article", turn.role);
  const thoughts = make("details");
  const thought = make("div", "text");
  const text = make("div", "text");
  const calls = make("div");
  const footer = make("footer");
  const copy = make("button", "", "Copy");
  const note = make("span");
  copy.type = "button";
  copy.addEventListener("click", () => copied(turn.content, copy));
  thoughts.append(make("summary", "", "Reasoning"), thought);
  footer.append(copy, note);
  const parts = turn.role === "assistant" ? [thoughts, text, calls, footer] : [text];
  article.append(make("h2", "", LABELS[turn.role]), ...parts);
  $("log").append(article);
  const update = (busy) => {
    article.classList.toggle("busy", busy);
    thoughts.hidden = !turn.reasoning;
    set(thought, turn.reasoning);
    text.hidden = !turn.content && !busy;
    set(text, turn.content);
    calls.replaceChildren(...(turn.tool_calls || []).map((call) => make("pre", "", written(call))));
    footer.hidden = busy;
    copy.hidden = !turn.content;
    note.textContent = turn.note || "";
  };
  update(false);
  return update;
}

// Set a text; one that has grown is added to, which keeps what somebody has selected.
function set(element, text) {
  const before = element.textContent;
  if (!text.startsWith(before)) element.textContent = text;
  else if (text !== before) element.append(text.slice(before.length));
}

function written(call) {
  const { name, arguments: given } = call.function;
  if (!isJson(given)) return `${name} ${given}`;  // it is still being written
  return JSON.stringify({ name, arguments: JSON.parse(given) }, null, 2);
}

function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

function atEnd(change) {
  const log = $("log");
  const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  change();
  if (follows) log.scrollTop = log.scrollHeight;
}

function fail(message) {
  $("error").hidden = !message;
  $("error").textContent = message;
}

async function copied(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // a page that came over plain HTTP from elsewhere has no clipboard
    const area = document.body.appendChild(make("textarea", "", text));
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

const isEmpty = (turn) => !turn.content && !turn.reasoning && !turn.tool_calls;

// The tool calls whose results are still to be given.
function open() {
  const given = new Set(turns.map((turn) => turn.tool_call_id));
  return turns.flatMap((turn) => turn.tool_calls || []).filter((call) => !given.has(call.id));
}

function refresh() {
  const [call] = open();
  $("question-label").textContent = call ? `Result of ${call.function.name}` : "Message";
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  $("new").disabled = running !== null;
  $("log").setAttribute("aria-busy", String(running !== null));
}

// ---- what is kept, in this tab and while it lasts

function keep() {
  const fields = Object.fromEntries(KEPT.map((id) => [id, $(id).value]));
  try {
    sessionStorage.setItem("chat", JSON.stringify({ turns, key, fields, question: $("question").value }));
  } catch { /* without storage, or with a full one, nothing outlives a reload */ }
}

function recall() {
  let kept = {};
  try {
    kept = JSON.parse(sessionStorage.getItem("chat")) || {};
  } catch { /* as above */ }
  turns = kept.turns || [];
  key = kept.key || "";
  $("question").value = kept.question || "";
  for (const [id, value] of Object.entries(kept.fields || {})) if (id !== "model") $(id).value = value;
  // An answer that had not begun is as if it had not been asked for.
  if (turns.at(-1)?.role === "assistant" && isEmpty(turns.at(-1))) turns.pop();
  if (turns.at(-1)?.role === "user") $("question").value ||= turns.pop().content;
  turns.forEach(show);
  $("log").scrollTop = $("log").scrollHeight;
  return (kept.fields || {}).model;
}

// ---- the server

// Ask the server. Paths are relative, for a server that is behind a prefix.
async function ask(path, options = {}) {
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...(options.body && { "Content-Type": "application/json" }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Told("The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  if (response.status === 401) askForKey();
  const told = await response.json().catch(() => null);
  const message = told?.error?.message || `The server answered with status ${response.status}.`;
  const wait = response.headers.get("Retry-After");
  throw new Told(wait ? `${message} Try again in ${wait} s.` : message);
}

function askForKey() {
  $("key-form").hidden = false;
  $("key").focus();
}

async function loadModels(chosen) {
  try {
    const { data } = await (await ask("v1/models")).json();
    $("model").replaceChildren(...data.map(({ id, max_model_len }) => {
      const option = new Option(id, id, false, id === chosen);
      option.dataset.about = max_model_len ? `${max_model_len.toLocaleString("en")} tokens of context` : "";
      return option;
    }));
    describeModel();
    $("key-form").hidden = true;
    return true;
  } catch (error) {
    const first = $("key-form").hidden === false && !key;  // to be asked for a key is no failure
    fail(first ? "" : wordsOf(error));
    return false;
  }
}

function describeModel() {
  $("about-model").textContent = $("model").selectedOptions[0]?.dataset.about || "";
}

function wordsOf(error) {
  return error instanceof Told ? error.message : `The page failed: ${error.message}`;
}

// Yield the data of a stream's events.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Told("The connection was lost before the answer's end.");
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (block === "data: [DONE]") return;
      if (block.startsWith("data: ")) yield JSON.parse(block.slice(6));  // others are comments
    }
  }
}

// ---- a turn

function readMore() {
  const text = $("more").value.trim();
  if (!text) return {};
  try {
    const more = JSON.parse(text);
    if (typeof more === "object" && more !== null && !Array.isArray(more)) return more;
  } catch { /* told below */ }
  $("settings").open = true;
  $("more").focus();
  throw new Told('More parameters must be a JSON object, such as {"top_k": 5}.');
}

function requestOf() {
  const more = readMore();
  const messages = turns.map(({ role, content, tool_calls, tool_call_id }) => (
    { role, content, ...(tool_calls && { tool_calls }), ...(tool_call_id && { tool_call_id }) }
  ));
  if ($("system").value.trim()) messages.unshift({ role: "system", content: $("system").value });
  const given = NUMBERS.filter((id) => $(id).value !== "").map((id) => [id, $(id).valueAsNumber]);
  const model = $("model").value ? { model: $("model").value } : {};
  return { ...model, messages, ...Object.fromEntries(given), ...more, stream: true, stream_options: { include_usage: true } };
}

// Add what a chunk brings to a turn; tell whether it brought something.
function add(turn, delta) {
  const found = delta.content || delta.reasoning_content || delta.tool_calls;
  turn.content += delta.content || "";
  turn.reasoning += delta.reasoning_content || "";
  for (const part of delta.tool_calls || []) {
    turn.tool_calls ||= [];
    const call = turn.tool_calls[part.index] ||= { id: part.id, type: "function", function: { name: "", arguments: "" } };
    call.function.name += part.function?.name || "";
    call.function.arguments += part.function?.arguments || "";
  }
  return Boolean(found);
}

// Stream one answer into a turn.
async function stream(turn, update) {
  const began = performance.now();
  let first = null;
  let last = began;
  let usage = null;
  let reason = null;
  try {
    const response = await ask("v1/chat/completions", {
      method: "POST", body: JSON.stringify(requestOf()), signal: running.signal,
    });
    for await (const chunk of events(response.body)) {
      if (chunk.error) throw new Told(chunk.error.message);
      usage = chunk.usage || usage;
      for (const choice of chunk.choices) {
        reason = choice.finish_reason || reason;
        if (!add(turn, choice.delta)) continue;
        last = performance.now();
        first ??= last;
        atEnd(() => update(true));
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    reason = "stopped";
  } finally {
    // A call that was cut off is none: no function can take it, and no template can show it.
    const whole = (turn.tool_calls || []).filter(({ function: { arguments: given } }) => isJson(given));
    if (whole.length) turn.tool_calls = whole;
    else delete turn.tool_calls;
    turn.note = noteOf({ began, first, last, usage, reason });
  }
}

function noteOf({ began, first, last, usage, reason }) {
  const parts = [];
  if (usage) parts.push(`${usage.prompt_tokens} tokens in, ${usage.completion_tokens} out`);
  if (usage && usage.completion_tokens > 1 && last > first) {
    parts.push(`${(((usage.completion_tokens - 1) * 1000) / (last - first)).toFixed(1)} tokens/s`);
  }
  if (first !== null) parts.push(`first after ${((first - began) / 1000).toFixed(2)} s`);
  if (reason === "stopped") parts.push("stopped");
  else if (!reason) parts.push("not finished");
  else if (ENDS[reason]) parts.push(ENDS[reason]);
  return parts.join(" · ");
}

async function send() {
  const question = $("question");
  const asked = question.value;
  const inputs = $("settings-form");
  if (!inputs.checkValidity()) $("settings").open = true;  // a bubble needs its field to be seen
  if (running || !asked.trim() || !inputs.reportValidity()) return;
  fail("");
  const [call] = open();
  const before = turns.length;
  const shown = $("log").childElementCount;
  const mine = call ? { role: "tool", tool_call_id: call.id, content: asked } : { role: "user", content: asked };
  turns.push({ ...mine, reasoning: "" });
  show(turns[before]);
  question.value = "";
  if (open().length) return done("");  // of several calls, each result is asked for
  const turn = { role: "assistant", content: "", reasoning: "" };
  const update = show(turn);
  update(true);
  $("log").scrollTop = $("log").scrollHeight;
  running = new AbortController();
  refresh();
  $("status").textContent = "Answering …";
  let status = "Answered.";
  try {
    const answered = stream(turn, update);
    turns.push(turn);  // once the request has been written, which must not hold it
    await answered;
    if (running.signal.aborted) status = "Stopped.";
  } catch (error) {
    fail(wordsOf(error));
    status = "";
  }
  running = null;
  if (isEmpty(turn)) {  // nothing came: the question may be asked again
    turns.length = before;
    while ($("log").childElementCount > shown) $("log").lastChild.remove();
    if (!question.value) question.value = asked;
  }
  atEnd(() => update(false));
  done(status);
}

function done(status) {
  $("status").textContent = status;
  refresh();
  keep();
  if (!document.activeElement || document.activeElement === document.body) $("question").focus();
}

function stop() {
  running?.abort();
}

// ---- what a person does

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
});
$("stop").addEventListener("click", () => {
  stop();
  $("question").focus();
});
$("new").addEventListener("click", () => {
  turns = [];
  $("log").replaceChildren();
  fail("");
  done("");
  $("question").focus();
});
$("settings-form").addEventListener("submit", (event) => event.preventDefault());
$("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  fail("");
  if (await loadModels($("model").value)) $("question").focus();
  keep();
});
$("model").addEventListener("change", describeModel);
addEventListener("pagehide", keep);

const chosen = recall();
$("key").value = key;
$("settings").open = matchMedia("(min-width: 50rem)").matches;
refresh();
loadModels(chosen);
