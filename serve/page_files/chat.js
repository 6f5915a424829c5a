// A page to chat on. What a model writes only ever becomes the text of an element, never HTML.
"use strict";

const WORDS = {
  en: {
    skip: "To the message", conversations: "Conversations", settings: "Settings", fresh: "New chat",
    conversation: "Conversation", message: "Message", placeholder: "Write a message", send: "Send",
    stop: "Stop", system: "System prompt", temperature: "Temperature", top_p: "Top-p",
    top_k: "Top-k (0 is off)", min_p: "Min-p", repeat_penalty: "Repeat penalty",
    max_tokens: "Most tokens of a reply (-1: no limit)", seed: "Seed (empty: random)",
    key: "API key", language: "Language", user: "You", assistant: "Model", edit: "Edit",
    retry: "Retry", remove: "Delete", untitled: "Empty chat", done: "The reply is complete.",
    stopped: "Stopped.", writing: "The model writes …",
    kept: "Conversations are kept in this browser alone; the key only until it is closed.",
    lost: "The server cannot be reached.", full: "This browser's storage is full.",
    speed: (rate) => `${rate} tokens/s`, context: (used, all) => `context ${used} of ${all} tokens`,
    memory: (size) => `memory ${size} MB`,
  },
  ja: {
    skip: "入力欄へ", conversations: "会話一覧", settings: "設定", fresh: "新しい会話",
    conversation: "会話", message: "メッセージ", placeholder: "メッセージを入力", send: "送信",
    stop: "停止", system: "システムプロンプト", temperature: "温度", top_p: "Top-p",
    top_k: "Top-k(0 で無効)", min_p: "Min-p", repeat_penalty: "繰り返しペナルティ",
    max_tokens: "返答の最大トークン数(-1 で無制限)", seed: "シード(空欄でランダム)",
    key: "API キー", language: "言語", user: "あなた", assistant: "モデル", edit: "編集",
    retry: "再生成", remove: "削除", untitled: "空の会話", done: "返答が完了しました。",
    stopped: "停止しました。", writing: "返答を生成しています…",
    kept: "会話はこのブラウザーにのみ保存されます。キーはブラウザーを閉じるまで保持されます。",
    lost: "サーバーに接続できません。", full: "ブラウザーの保存領域がいっぱいです。",
    speed: (rate) => `${rate} トークン/秒`,
    context: (used, all) => `コンテキスト ${used} / ${all} トークン`,
    memory: (size) => `メモリ ${size} MB`,
  },
};
const NUMBERS = [
  "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "max_tokens", "seed",
];

const byId = (id) => document.getElementById(id);
const fields = byId("fields").elements;
const state = {
  language: "en", settings: {}, conversations: [], current: null, status: null, running: null,
};

// ---- what is kept

function load(name, fallback) {
  try {
    const value = JSON.parse(localStorage.getItem(`infer-os.${name}`));
    return value === null ? fallback : value;
  } catch {
    return fallback;
  }
}

function keep(name, value) {
  try {
    localStorage.setItem(`infer-os.${name}`, JSON.stringify(value));
  } catch {
    showFault(word("full"));
  }
}

function keepConversations() {
  keep("conversations", state.conversations.filter((one) => one.messages.length > 0));
}

function isConversation(one) {
  return one !== null && typeof one === "object" && typeof one.id === "string" &&
    Array.isArray(one.messages) && one.messages.every((message) =>
      message !== null && typeof message === "object" && typeof message.content === "string" &&
      (message.role === "user" || message.role === "assistant"));
}

// ---- words

function word(name) {
  return WORDS[state.language][name];
}

function speak(language) {
  state.language = language in WORDS ? language : "en";
  document.documentElement.lang = state.language;
  for (const [attribute, target] of [
    ["data-label", "aria-label"], ["data-placeholder", "placeholder"],
  ]) {
    for (const element of document.querySelectorAll(`[${attribute}]`)) {
      element.setAttribute(target, word(element.getAttribute(attribute)));
    }
  }
  for (const element of document.querySelectorAll("[data-text]")) {
    element.textContent = word(element.getAttribute("data-text"));
  }
  fields.language.value = state.language;
  showConversations();
  showMessages();
  showReadout();
}

// ---- what is seen

function made(tag, text, className) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function button(text, action) {
  const element = made("button", text);
  element.type = "button";
  element.addEventListener("click", action);
  return element;
}

function showFault(text) {
  byId("fault").textContent = text;
  byId("fault").hidden = !text;
}

function showConversations() {
  const list = byId("conversations");
  list.replaceChildren();
  for (const one of state.conversations) {
    const item = made("li");
    const title = one.messages.length > 0 ? one.messages[0].content.slice(0, 60) : word("untitled");
    const open = button(title || word("untitled"), () => choose(one));
    open.className = "title";
    if (one === state.current) open.setAttribute("aria-current", "true");
    const remove = button("✕", () => removeConversation(one));
    remove.setAttribute("aria-label", `${word("remove")}: ${title}`);
    item.append(open, remove);
    list.append(item);
  }
}

function messageElement(message, index) {
  const article = made("article", "", message.role);
  const head = made("div", "", "who");
  head.append(made("span", word(message.role)));
  if (state.running === null) {
    if (message.role === "user") {
      head.append(button(word("edit"), () => edit(index)));
    } else if (index === state.current.messages.length - 1) {
      head.append(button(word("retry"), () => retry()));
    }
  }
  article.append(head, made("div", message.content, "text"));
  return article;
}

function showMessages() {
  if (state.current === null) return;
  const log = byId("log");
  log.replaceChildren(...state.current.messages.map(messageElement));
  const { messages } = state.current;
  if (state.running === null && messages.length > 0 && messages.at(-1).role === "user") {
    log.lastElementChild.firstElementChild.append(button(word("retry"), () => retry()));
  }
  log.scrollTop = log.scrollHeight;
}

function showRunning() {
  byId("send").hidden = state.running !== null;
  byId("stop").hidden = state.running === null;
  showMessages();
}

function showReadout() {
  const parts = [];
  const { status, current } = state;
  if (current !== null && current.rate) parts.push(word("speed")(current.rate));
  if (status !== null) {
    parts.push(word("context")(current?.used ?? 0, status.context));
    parts.push(word("memory")(Math.round(status.memory.rss_bytes / 1e6)));
  }
  byId("readout").textContent = parts.join(" · ");
}

// ---- the server

function headers() {
  const key = fields.key.value;
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

async function refusal(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `${response.status} ${response.statusText}`;
  }
}

async function readStatus() {
  try {
    const response = await fetch("/status", { headers: headers() });
    if (!response.ok) {
      showFault(await refusal(response));
      return;
    }
    state.status = await response.json();
  } catch {
    showFault(word("lost"));
    return;
  }
  showFault("");
  byId("model").textContent = state.status.model;
  for (const name of NUMBERS) {
    if (name in state.status.defaults) fields[name].placeholder = state.status.defaults[name];
  }
  showReadout();
}

function body() {
  const system = fields.system.value.trim();
  const messages = state.current.messages.map(({ role, content }) => ({ role, content }));
  const asked = {
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true, stream_options: { include_usage: true },
  };
  for (const name of NUMBERS) {
    if (fields[name].value !== "") asked[name] = Number(fields[name].value);
  }
  return JSON.stringify(asked);
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const blocks = held.split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      if (!block.startsWith("data: ")) continue;
      const data = block.slice(6);
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function answer() {
  const conversation = state.current;
  const reply = { role: "assistant", content: "" };
  const request = { method: "POST", headers: headers(), body: body() };
  const running = new AbortController();
  state.running = running;
  showFault("");
  byId("said").textContent = word("writing");
  showRunning();
  const pending = messageElement(reply, -1);
  byId("log").append(pending);
  let said = "done";
  try {
    const response = await fetch("/v1/chat/completions", { ...request, signal: running.signal });
    if (!response.ok) throw new Error(await refusal(response));
    await receive(response.body, conversation, reply, pending.lastElementChild);
  } catch (error) {
    said = "stopped";
    if (error.name !== "AbortError") {
      showFault(error instanceof TypeError ? word("lost") : error.message);
    }
  }
  state.running = null;
  if (reply.content) conversation.messages.push(reply);
  keepConversations();
  byId("said").textContent = said === "done" ? `${reply.content} ${word("done")}` : word(said);
  showRunning();
  await readStatusQuietly();
}

async function receive(stream, conversation, reply, element) {
  const log = byId("log");
  let first = 0;
  let count = 0;
  for await (const event of events(stream)) {
    if (event.error) throw new Error(event.error.message);
    if (event.usage) {
      conversation.used = event.usage.total_tokens;
      count = event.usage.completion_tokens;
    }
    const text = event.choices[0]?.delta?.content;
    if (text) {
      first ||= performance.now();
      reply.content += text;
      count += 1;
      const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      element.textContent = reply.content;
      if (isAtEnd) log.scrollTop = log.scrollHeight;
    }
    const seconds = (performance.now() - first) / 1000;
    if (first && seconds > 0) conversation.rate = (count / seconds).toFixed(1);
    showReadout();
  }
}

async function readStatusQuietly() {
  try {
    const response = await fetch("/status", { headers: headers() });
    if (response.ok) state.status = await response.json();
  } catch {
    // the next message says so
  }
  showReadout();
}

// ---- what is done

function stop() {
  if (state.running !== null) state.running.abort();
}

function send(text) {
  if (state.running !== null || !text.trim()) return;
  state.current.messages.push({ role: "user", content: text });
  keepConversations();
  showConversations();
  answer();
}

function retry() {
  if (state.running !== null) return;
  const { messages } = state.current;
  if (messages.at(-1)?.role === "assistant") messages.pop();
  if (messages.length > 0) answer();
}

function edit(index) {
  if (state.running !== null) return;
  const { messages } = state.current;
  byId("message").value = messages[index].content;
  messages.splice(index);
  keepConversations();
  showConversations();
  showMessages();
  byId("message").focus();
}

function choose(conversation) {
  stop();
  state.current = conversation;
  keep("current", conversation.id);
  showConversations();
  showMessages();
  showReadout();
  showFault("");
  openPanel("side", false);
  byId("message").focus();
}

function begin() {
  const empty = state.conversations.find((one) => one.messages.length === 0);
  const conversation = empty ?? { id: String(Date.now() + Math.random()), messages: [] };
  if (!empty) state.conversations.unshift(conversation);
  choose(conversation);
}

function removeConversation(conversation) {
  if (conversation === state.current) stop();
  state.conversations = state.conversations.filter((one) => one !== conversation);
  keepConversations();
  if (conversation === state.current) begin();
  else showConversations();
}

function openPanel(name, isOpen) {
  const panel = byId(name);
  if (name === "side") panel.classList.toggle("open", isOpen);
  else panel.hidden = !isOpen;
  byId(`open-${name}`).setAttribute("aria-expanded", String(isOpen));
}

function isPanelOpen(name) {
  return byId(`open-${name}`).getAttribute("aria-expanded") === "true";
}

function keepSettings() {
  const kept = {};
  for (const name of ["system", ...NUMBERS]) kept[name] = fields[name].value;
  keep("settings", kept);
}

// ---- the beginning

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const message = byId("message");
  if (state.running !== null) return;
  const text = message.value;
  message.value = "";
  send(text);
});
byId("message").addEventListener("keydown", (event) => {
  // Enter that ends a conversion of kana is not one that sends
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("composer").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  stop();
  openPanel("side", false);
  openPanel("settings", false);
});
byId("stop").addEventListener("click", stop);
byId("new").addEventListener("click", begin);
for (const name of ["side", "settings"]) {
  byId(`open-${name}`).addEventListener("click", () => openPanel(name, !isPanelOpen(name)));
}
byId("fields").addEventListener("submit", (event) => event.preventDefault());
byId("fields").addEventListener("change", (event) => {
  if (event.target.name === "language") {
    keep("language", event.target.value);
    speak(event.target.value);
  } else if (event.target.name === "key") {
    sessionStorage.setItem("infer-os.key", event.target.value);
    readStatus();
  } else {
    keepSettings();
  }
});

const kept = load("settings", {});
for (const name of ["system", ...NUMBERS]) {
  if (kept !== null && typeof kept[name] === "string") fields[name].value = kept[name];
}
fields.key.value = sessionStorage.getItem("infer-os.key") ?? "";
const found = load("conversations", []);
state.conversations = Array.isArray(found) ? found.filter(isConversation) : [];
const last = state.conversations.find((one) => one.id === load("current", ""));
speak(load("language", navigator.language.slice(0, 2)));
if (last) choose(last);
else begin();
readStatus();
