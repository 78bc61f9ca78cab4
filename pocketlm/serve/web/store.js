// Conversations and settings, kept in this browser alone.

export const CONVERSATIONS = "pocketlm.conversations";
const SETTINGS = "pocketlm.settings", KEY = "pocketlm.key";

export const PRESETS = {
  none: {name: "No role", system: ""},
  maths: {
    name: "Maths tutor",
    system: "You are a patient maths tutor. Work step by step, and put the final answer in " +
      "\\boxed{}.",
  },
  python: {
    name: "Python helper",
    system: "You help with Python. Explain briefly, then give one complete program in a code block.",
  },
  science: {
    name: "Science",
    system: "You explain science in plain words, with one example.",
  },
};

export function loadConversations() {
  const kept = read(CONVERSATIONS, []);
  return Array.isArray(kept) ? kept.filter(isConversation) : [];
}

// The sentence that says why not, where the browser keeps nothing more.
export function saveConversations(conversations) {
  return write(CONVERSATIONS, conversations);
}

export function loadSettings() {
  const kept = read(SETTINGS, {});
  return kept && typeof kept === "object" ? kept : {};
}

export function saveSettings(settings) {
  return write(SETTINGS, settings);
}

// The server's key, where it wants one: until this tab is closed, or the page where the browser
// keeps nothing.
let key = "";

export function loadKey() {
  try {
    return sessionStorage.getItem(KEY) ?? key;
  } catch {
    return key;
  }
}

export function saveKey(value) {
  key = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch { /* it is in `key` */ }
}

export function newConversation(preset = "none") {
  const id = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) =>
    byte.toString(16).padStart(2, "0")).join("");
  return {id, preset, system: PRESETS[preset].system, messages: []};
}

export function titleOf(conversation) {
  const first = conversation.messages.find((message) => message.role === "user");
  return first ? first.content.trim().split("\n")[0].slice(0, 60) : "New conversation";
}

function isConversation(item) {
  return item && typeof item.id === "string" && item.preset in PRESETS &&
    typeof item.system === "string" && Array.isArray(item.messages) &&
    item.messages.every((message) => message && typeof message.content === "string" &&
      (message.role === "user" || message.role === "assistant"));
}

function read(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return null;
  } catch (error) {
    return `This browser keeps no more (${error.name}): delete old conversations.`;
  }
}
