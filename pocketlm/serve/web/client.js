// What the page asks of the server that it came from.

import {loadKey} from "./store.js";

export async function modelFacts() {
  const response = await fetch("api/model", {headers: headers()});
  if (!response.ok) throw new Error(await reason(response));
  return response.json();
}

// Streams an answer: calls onDelta({content, reasoning}) for each piece, and resolves to
// {finish, usage}. An AbortSignal ends it; the server then stops generating.
export async function streamAnswer(request, signal, onDelta) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: headers(),
    body: JSON.stringify({...request, stream: true, stream_options: {include_usage: true}}),
    signal,
  });
  if (!response.ok) throw new Error(await reason(response));
  let finish = null, usage = null;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    if (chunk.usage) usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    if (choice.finish_reason) finish = choice.finish_reason;
    const {content, reasoning_content, reasoning} = choice.delta ?? {};
    const thought = reasoning_content ?? reasoning;
    if (content || thought) onDelta({content: content ?? "", reasoning: thought ?? ""});
  }
  return {finish, usage};
}

export function runCode(code) {
  return post("api/run", {code});
}

export function checkAnswer(answer, expected) {
  return post("api/check", {answer, expected});
}

async function post(path, body) {
  const response = await fetch(path, {
    method: "POST",
    headers: headers(),
    body: JSON.stringify(body),
  });
  if (!response.ok) throw new Error(await reason(response));
  return response.json();
}

function headers() {
  const key = loadKey();
  return {"Content-Type": "application/json", ...(key ? {Authorization: `Bearer ${key}`} : {})};
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

// The data of server-sent events, whatever the borders of the network's pieces.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}
