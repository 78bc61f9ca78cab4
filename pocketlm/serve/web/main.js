// The page: conversations at the side, messages in the middle, a question below.

import {checkAnswer, modelFacts, runCode, streamAnswer} from "./client.js";
import {boxed, rendered} from "./render.js";
import * as store from "./store.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const DRAW_EVERY = 80; // milliseconds between two drawings of an answer that streams

const settings = store.loadSettings();
let conversations = store.loadConversations();
let current = conversations[0] ?? store.newConversation();
let facts = null;
let stop = null; // the AbortController of the answer that streams

// ---- small makers of nodes ----

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function button(text, onclick, attributes = {}) {
  return node("button", {type: "button", onclick, ...attributes}, text);
}

function say(text) {
  $("status").textContent = text;
}

function notice(text) {
  $("notice").textContent = text ?? "";
  $("notice").hidden = !text;
}

const count = (value) => value.toLocaleString("en");
const seconds = (value) => (value < 60 ? `${value.toFixed(1)} s` :
  `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`);

// ---- conversations ----

function keep(conversation = current) {
  conversation.changed = Date.now();
  if (conversation.messages.length && !conversations.includes(conversation)) {
    conversations.unshift(conversation);
  }
  conversations.sort((a, b) => (b.changed ?? 0) - (a.changed ?? 0));
  notice(store.saveConversations(conversations));
}

function open(conversation) {
  stop?.abort();
  current = conversation;
  $("preset").value = current.preset;
  draw();
  closeSide();
  $("question").focus();
}

function remove(conversation) {
  if (conversation === current) stop?.abort();
  conversations = conversations.filter((item) => item !== conversation);
  notice(store.saveConversations(conversations));
  if (conversation === current) open(conversations[0] ?? store.newConversation(current.preset));
  else drawSide();
}

function drawSide() {
  $("conversations").replaceChildren(...conversations.map((conversation) => {
    const title = store.titleOf(conversation);
    const here = conversation === current;
    return node("li", {class: here ? "here" : ""},
      button(title, () => open(conversation), {"aria-current": here && "page", class: "title"}),
      button("×", () => remove(conversation), {"aria-label": `Delete: ${title}`, class: "delete"}));
  }));
}

// ---- messages ----

function draw() {
  drawSide();
  const log = $("log");
  log.replaceChildren(...current.messages.map(messageNode));
  if (!current.messages.length) log.append(welcome());
  drawMeter();
  log.scrollTop = log.scrollHeight;
}

function welcome() {
  const examples = {
    none: ["What is 17 + 25?", "Write a sentence about the sea."],
    maths: ["Solve 3x + 7 = 22.", "What is the area of a circle of radius 3?"],
    python: ["Write a function that reverses a string.", "How do I read a file line by line?"],
    science: ["Why is the sky blue?", "What does a catalyst do?"],
  }[current.preset];
  return node("div", {class: "welcome"},
    node("p", {}, "The model runs on this computer. What you write stays here."),
    node("div", {class: "examples"}, ...examples.map((text) => button(text, () => ask(text)))));
}

function messageNode(message, index) {
  const user = message.role === "user";
  const article = node("article", {class: message.role, "aria-label": user ? "You" : "Model"});
  if (user) {
    article.append(node("div", {class: "text plain"}, message.content));
    article.append(node("div", {class: "tools"}, button("Edit", () => edit(article, index))));
  } else {
    fill(article, message, false);
    const last = index === current.messages.length - 1;
    article.append(node("div", {class: "tools"},
      button("Copy", () => copy(message.content)),
      last ? button("Try again", () => answer(index)) : null,
      node("span", {class: "facts"}, factsOf(message))));
  }
  return article;
}

function factsOf(message) {
  const parts = [];
  if (message.tokens) {
    parts.push(`${count(message.tokens)} tokens`);
    if (message.seconds) {
      parts.push(seconds(message.seconds));
      parts.push(`${(message.tokens / message.seconds).toFixed(1)} tokens/s`);
    }
  }
  if (message.finish === "length") parts.push("cut at the limit of tokens");
  if (message.stopped) parts.push("stopped");
  return parts.join(" · ");
}

// Thinking, then the answer with its buttons, into an article. streaming: no buttons yet.
function fill(article, message, streaming) {
  const parts = [];
  if (message.reasoning) {
    const folded = article.querySelector("details");
    const thinking = streaming && !message.content;
    const time = message.thought ? `, ${seconds(message.thought)}` : "";
    const tokens = message.thinking ? `, ${count(message.thinking)} tokens` : "";
    parts.push(node("details", {class: "thinking", open: folded?.open ?? false},
      node("summary", {}, thinking ? `Thinking${time} …` : `Thought${time}${tokens}`),
      node("div", {class: "text"}, rendered(message.reasoning))));
  }
  const text = node("div", {class: "text"}, rendered(message.content));
  parts.push(text);
  if (streaming && !message.content && !message.reasoning) {
    parts.push(node("p", {class: "wait"}, "Reading …"));
  }
  if (message.error) parts.push(node("p", {class: "error", role: "alert"}, message.error));
  if (!streaming) addTools(text, message, parts);
  article.replaceChildren(...parts);
}

function addTools(text, message, parts) {
  for (const pre of text.querySelectorAll("pre")) {
    const code = pre.querySelector("code");
    const bar = node("div", {class: "code-bar"}, button("Copy", () => copy(code.textContent)));
    const python = /language-(python|py)\b/.test(code.className);
    if (python && current.preset === "python" && facts?.run) {
      bar.prepend(button("Run", (event) => run(event.target, code.textContent, pre)));
    }
    pre.tabIndex = 0;
    pre.before(bar);
  }
  const final = boxed(message.content);
  if (final !== null && current.preset === "maths" && facts?.check) parts.push(checkNode(final));
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied");
  } catch {
    notice("The browser does not let this page copy.");
  }
}

async function run(source, code, pre) {
  source.disabled = true;
  const next = pre.nextElementSibling?.classList.contains("output") ? pre.nextElementSibling : null;
  next?.remove();
  const output = node("div", {class: "output", role: "status"}, "Running …");
  pre.after(output);
  try {
    const result = await runCode(code);
    const verdict = result.ended ? `Ended: ${result.ended}` : "Finished";
    const texts = [[result.stdout, ""], [result.stderr, "stderr"]].filter(([text]) => text);
    output.replaceChildren(
      node("p", {}, `${verdict}, ${seconds(result.seconds)}`),
      ...texts.map(([text, kind]) => node("pre", {tabindex: 0, class: kind}, text)));
  } catch (error) {
    output.replaceChildren(node("p", {class: "error"}, error.message));
  }
  source.disabled = false;
}

function checkNode(final) {
  const yours = node("input", {"aria-label": "Your own answer", placeholder: "Your own answer"});
  const verdict = node("span", {role: "status"});
  const form = node("form", {class: "check"}, yours, node("button", {}, "Check"), verdict);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!yours.value.trim()) return;
    try {
      const {equal} = await checkAnswer(final, yours.value);
      verdict.textContent = equal ? "Equal to the model's." : `Not equal to the model's ${final}.`;
    } catch (error) {
      verdict.textContent = error.message;
    }
  });
  return form;
}

function edit(article, index) {
  const message = current.messages[index];
  const field = node("textarea", {rows: 3, "aria-label": "The question, edited"});
  field.value = message.content;
  article.replaceChildren(field, node("div", {class: "tools always"},
    button("Send again", () => {
      if (stop) return notice("Stop the answer first.");
      if (!field.value.trim()) return;
      current.messages.length = index;
      ask(field.value);
    }),
    button("Cancel", draw)));
  field.focus();
}

// ---- asking ----

function ask(text) {
  if (stop) return;
  current.messages.push({role: "user", content: text.trim()});
  answer(current.messages.length);
}

function requestOf(conversation, upTo) {
  const messages = conversation.messages.slice(0, upTo)
    .filter((message) => message.role === "user" || message.content)
    .map(({role, content}) => ({role, content})); // thinking stays out of later turns
  const system = conversation.system.trim();
  if (system) messages.unshift({role: "system", content: system});
  const request = {model: facts?.id ?? "model", messages};
  for (const name of NUMBERS) {
    if (typeof settings[name] === "number") request[name] = settings[name];
  }
  return request;
}

// The answer that stands at `index`, made anew.
async function answer(index) {
  if (stop) return;
  const conversation = current;
  conversation.messages.length = index;
  const message = {role: "assistant", content: "", reasoning: ""};
  const request = requestOf(conversation, index);
  conversation.messages.push(message);
  keep();
  draw();
  const article = $("log").lastElementChild;
  const began = performance.now();
  const since = () => (performance.now() - began) / 1000;
  const controller = stop = new AbortController();
  sending(true);
  fill(article, message, true);
  let drawn = 0, timer = 0, saved = began;
  const redraw = () => {
    timer = 0;
    drawn = performance.now();
    if (conversation !== current) return;
    const log = $("log"), low = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    fill(article, message, true);
    if (low) log.scrollTop = log.scrollHeight;
  };
  try {
    const {finish, usage} = await streamAnswer(request, controller.signal, (delta) => {
      message.reasoning += delta.reasoning;
      if (delta.reasoning) message.thought = since();
      message.content += delta.content;
      if (!timer) timer = setTimeout(redraw, Math.max(0, drawn + DRAW_EVERY - performance.now()));
      if (performance.now() - saved > 1000) { // what a reload would find
        saved = performance.now();
        store.saveConversations(conversations);
      }
    });
    message.finish = finish;
    message.tokens = usage?.completion_tokens;
    message.thinking = usage?.completion_tokens_details?.reasoning_tokens;
    message.total = usage?.total_tokens;
  } catch (error) {
    if (controller.signal.aborted) message.stopped = true;
    else message.error = error.message;
  }
  clearTimeout(timer);
  message.seconds = since();
  if (stop === controller) {
    stop = null;
    sending(false);
  }
  if (conversations.includes(conversation)) keep(conversation);
  if (conversation === current) draw();
  say(message.error ?? (message.stopped ? "Stopped" : `Answered. ${factsOf(message)}`));
}

function sending(yes) {
  $("send").textContent = yes ? "Stop" : "Send";
  $("send").classList.toggle("stop", yes);
  $("log").setAttribute("aria-busy", yes);
  if (yes) say("Answering");
}

function drawMeter() {
  const context = facts?.context;
  const used = current.messages.findLast((message) => message.total)?.total ?? 0;
  $("meter").textContent = context ?
    `${count(Math.max(0, context - used))} of ${count(context)} tokens of context left.` : "";
}

// ---- the rest ----

function closeSide() {
  document.body.classList.remove("side-open");
  $("menu").setAttribute("aria-expanded", "false");
  $("veil").hidden = true;
}

function theme() {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const now = settings.theme ?? system;
  document.documentElement.dataset.theme = now;
  $("theme").textContent = now === "dark" ? "Light" : "Dark";
}

function fit() {
  const field = $("question");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, 240)}px`;
}

function showCard() {
  const {file, bytes, parameters, bits, trained_for, agreement, context, licence} = facts ?? {};
  const rows = [
    ["File", file],
    ["Size", bytes && `${(bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 0)} MB`],
    ["Parameters", parameters && count(parameters)],
    ["Bits a weight", bits],
    ["Trained for", trained_for ?? "no four-bit grid"],
    ["Agrees with the model it was made from", agreement &&
      `${(100 * agreement.top_token).toFixed(1)} % of ${count(agreement.tokens)} likeliest tokens`],
    ["Context", context && `${count(context)} tokens`],
    ["Licence", licence],
  ].map(([name, value]) => [name, value ?? "not written down"]);
  $("card-facts").replaceChildren(...rows.flatMap(([name, value]) =>
    [node("dt", {}, name), node("dd", {}, String(value))]));
  $("card").showModal();
}

function showSettings() {
  $("system").value = current.system;
  $("key").value = store.loadKey();
  for (const name of NUMBERS) $(name).value = settings[name] ?? "";
  $("settings").showModal();
}

function takeSettings() {
  current.system = $("system").value;
  store.saveKey($("key").value);
  if (!facts) readFacts();
  for (const name of NUMBERS) {
    const value = $(name).valueAsNumber;
    if (Number.isNaN(value)) delete settings[name];
    else settings[name] = value;
  }
  store.saveSettings(settings);
  if (current.messages.length) keep();
}

function wire() {
  for (const [key, preset] of Object.entries(store.PRESETS)) {
    $("preset").append(node("option", {value: key}, preset.name));
  }
  $("preset").addEventListener("change", () => {
    current.preset = $("preset").value;
    current.system = store.PRESETS[current.preset].system;
    if (current.messages.length) keep();
    draw();
  });
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (stop) return stop.abort();
    const text = $("question").value;
    if (!text.trim()) return;
    $("question").value = "";
    fit();
    ask(text);
  });
  $("question").addEventListener("input", fit);
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!stop) $("composer").requestSubmit();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (document.body.classList.contains("side-open")) closeSide();
    else stop?.abort();
  });
  $("new").addEventListener("click", () => open(store.newConversation(current.preset)));
  $("menu").addEventListener("click", () => {
    const opened = document.body.classList.toggle("side-open");
    $("menu").setAttribute("aria-expanded", opened);
    $("veil").hidden = !opened;
    if (opened) $("new").focus();
  });
  $("veil").addEventListener("click", closeSide);
  $("theme").addEventListener("click", () => {
    settings.theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    store.saveSettings(settings);
    theme();
  });
  // another tab kept something: both lists become one, and what is open here stays as it is here
  window.addEventListener("storage", (event) => {
    if (event.key !== store.CONVERSATIONS) return;
    conversations = store.loadConversations()
      .map((conversation) => (conversation.id === current.id ? current : conversation));
    drawSide();
  });
  $("show-card").addEventListener("click", showCard);
  $("show-settings").addEventListener("click", showSettings);
  $("settings").addEventListener("close", takeSettings);
}

async function readFacts() {
  try {
    facts = await modelFacts();
    $("model-name").textContent = facts.id;
    document.title = `${facts.id} · pocketlm`;
    notice(null);
    draw();
  } catch (error) {
    notice(`The model does not answer: ${error.message}.`);
  }
}

wire();
theme();
$("preset").value = current.preset;
draw();
readFacts();
