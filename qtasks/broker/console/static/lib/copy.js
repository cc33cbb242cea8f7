// A message as text that a person can run again: for a shell, for Python, for the command line of qtasks.
//
// Each gives {text, notes}: `notes` are sentences about what the text does not say. The token is never in it; the shell and Python take
// it from QSTASH_TOKEN. Characters that would hide what a line does, such as those that turn the direction of writing, are escaped
// where the language can.
import { newCallBody } from "./call.js";
import { JsonNumber, JsonObject } from "./lossless.js";

const PLAIN_WORD = /^[A-Za-z0-9_./:-]+$/;

// One word of a POSIX shell.
export const shellWord = (text) => (PLAIN_WORD.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

const INVISIBLE = /[\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

// A string that JSON and Python read alike.
const stringLiteral = (text) => JSON.stringify(text).replace(INVISIBLE, (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`);

function jsonText(value) {
  if (value instanceof JsonNumber) return value.text;
  if (value instanceof JsonObject) return `{${value.members.map(([name, item]) => `${stringLiteral(name)}: ${jsonText(item)}`).join(", ")}}`;
  if (Array.isArray(value)) return `[${value.map(jsonText).join(", ")}]`;
  return typeof value === "string" ? stringLiteral(value) : String(value);
}

const PYTHON_WORDS = new Map([[true, "True"], [false, "False"], [null, "None"]]);

export function pythonText(value) {
  if (value instanceof JsonNumber) return value.text;
  if (value instanceof JsonObject) return `{${value.members.map(([name, item]) => `${stringLiteral(name)}: ${pythonText(item)}`).join(", ")}}`;
  if (Array.isArray(value)) return `[${value.map(pythonText).join(", ")}]`;
  return typeof value === "string" ? stringLiteral(value) : PYTHON_WORDS.get(value);
}

const KEYWORDS = new Set("False None True and as assert async await break class continue def del elif else except finally for from global if import in is lambda nonlocal not or pass raise return try while with yield".split(" "));
const isName = (text) => /^[A-Za-z_][A-Za-z0-9_]*$/.test(text) && !KEYWORDS.has(text);

// `2, b=3`: the arguments between the parentheses of a Python call; `show` writes one value.
export function argumentText(call, show = pythonText) {
  const named = call.kwargs.members.filter(([name]) => isName(name)).map(([name, value]) => `${name}=${show(value)}`);
  const others = call.kwargs.members.filter(([name]) => !isName(name));
  return [...call.args.map(show), ...named, ...(others.length ? [`**${show(new JsonObject(others))}`] : [])].join(", ");
}

const HIDDEN = /^REDACTED:/;

function forwarded(header, notes) {
  const lines = Object.entries(header ?? {}).flatMap(([name, values]) => values.map((value) => [name, value]));
  const hidden = [...new Set(lines.filter(([, value]) => HIDDEN.test(value)).map(([name]) => name))];
  if (hidden.length) notes.push(`Left out, because the broker shows only their hash: ${hidden.join(", ")}.`);
  return lines.filter(([, value]) => !HIDDEN.test(value));
}

function limits(message) {
  return Object.entries({ parallelism: message.parallelism, rate: message.rate, period: message.rate && message.period ? `${message.period}s` : null })
    .filter(([, value]) => value !== undefined && value !== null).map(([name, value]) => `${name}=${value}`).join(", ");
}

// The headers of the request that publishes the message again, with those that its destination gets.
function publishHeaders(message, notes) {
  const lines = forwarded(message.header, notes).map(([name, value]) => [/^content-type$/i.test(name) ? "Content-Type" : `Upstash-Forward-${name}`, value]);
  const add = (name, value) => value !== undefined && value !== null && value !== "" && lines.push([name, String(value)]);
  add("Upstash-Method", message.method === "POST" ? null : message.method);
  add("Upstash-Retries", message.maxRetries);
  add("Upstash-Retry-Delay", message.retryDelayExpression);
  add("Upstash-Callback", message.callback);
  add("Upstash-Failure-Callback", message.failureCallback);
  for (const [prefix, header] of [["Upstash-Callback-Forward-", message.callbackHeader], ["Upstash-Failure-Callback-Forward-", message.failureCallbackHeader]]) {
    for (const [name, value] of forwarded(header, notes)) lines.push([prefix + name, value]);
  }
  add("Upstash-Label", message.labels?.join(","));
  if (message.flowControlKey) {
    add("Upstash-Flow-Control-Key", message.flowControlKey);
    add("Upstash-Flow-Control-Value", limits(message));
  }
  return lines;
}

function bodyOf(message, body, notes) {
  const text = body ?? message.body ?? "";
  if (body === null && HIDDEN.test(text)) {
    notes.push("The body is left out, because the broker shows only its hash.");
    return { text: "" };
  }
  return message.bodyBase64 && body === null ? { base64: message.bodyBase64 } : { text };
}

function toBase64(text) {
  return btoa(Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join(""));
}

// What reports the end of a call names the call: the report of a new one must not be taken for that of the old one.
const withoutCall = (url) => url?.replace(/([?&])call=[^&]*(&|$)/, (_, before, after) => (after ? before : ""));

// The request to `service` (its base address) as a command of a shell; that of a task's message makes a new call.
export function asCurl(source, service, call) {
  const notes = [];
  const isNew = call && !call.hidden;
  const body = call ? newCallBody(call) : null;
  const message = isNew ? { ...source, failureCallback: withoutCall(source.failureCallback) } : source;
  const path = message.queueName ? `enqueue/${encodeURIComponent(message.queueName)}` : "publish";
  const lines = publishHeaders(message, notes);
  const content = bodyOf(message, body, notes);
  const base64 = content.base64 ?? (content.text.includes("\0") ? toBase64(content.text) : null);
  const options = [
    `-H "Authorization: Bearer $QSTASH_TOKEN"`,
    ...(lines.some(([name]) => name === "Content-Type") ? [] : ["-H 'Content-Type:'"]),
    ...lines.map(([name, value]) => `-H ${shellWord(value === "" ? `${name};` : `${name}: ${value}`)}`),
    base64 === null ? `--data-raw ${shellWord(content.text)}` : "--data-binary @-",
  ];
  const command = `curl -X POST --globoff --path-as-is ${shellWord(`${service}/v2/${path}/${message.url}`)}`;
  return { text: `${base64 === null ? "" : `printf %s ${shellWord(base64)} | base64 -d | `}${[command, ...options].join(" \\\n  ")}`, notes };
}

// The call of the task for Python; the whole publication for messages that call no task.
export function asPython(message, service, task, call) {
  if (call && !call.hidden && task) {
    const name = task.split(".").at(-1);
    const notes = isName(name) ? [] : [`The name of the task, ${task}, is not a name of Python: call its function.`];
    return { text: `${isName(name) ? name : "task"}.delay(${argumentText(call)})`, notes };
  }
  const notes = [];
  const content = bodyOf(message, null, notes);
  const headers = forwarded(message.header, notes);
  const type = headers.find(([name]) => /^content-type$/i.test(name))?.[1];
  const others = new Map();
  for (const [name, value] of headers) {
    if (!/^content-type$/i.test(name)) others.set(name, others.has(name) ? `${others.get(name)}, ${value}` : value);
  }
  const lines = [
    message.queueName && ["queue", stringLiteral(message.queueName)],
    ["url", stringLiteral(message.url)],
    ["body", content.base64 ? `base64.b64decode(${stringLiteral(content.base64)})` : stringLiteral(content.text)],
    type !== undefined && ["content_type", stringLiteral(type)],
    message.method !== "POST" && ["method", stringLiteral(message.method)],
    others.size > 0 && ["headers", pythonText(new JsonObject([...others]))],
    ["retries", String(message.maxRetries)],
    message.retryDelayExpression && ["retry_delay", stringLiteral(message.retryDelayExpression)],
    message.callback && ["callback", stringLiteral(message.callback)],
    message.failureCallback && ["failure_callback", stringLiteral(message.failureCallback)],
    message.labels?.length && ["label", pythonText(message.labels)],
    message.flowControlKey && ["flow_control", pythonText(flowOf(message))],
  ].filter(Boolean);
  const imports = `${content.base64 ? "import base64\n" : ""}import os\n\nfrom qtasks.qstash import QStash\n\n`;
  const client = `client = QStash(os.environ["QSTASH_TOKEN"], base_url=${stringLiteral(service)})\n`;
  const calls = lines.map(([name, value]) => `    ${name}=${value},\n`).join("");
  return { text: `${imports}${client}client.message.${message.queueName ? "enqueue" : "publish"}(\n${calls})`, notes };
}

function flowOf(message) {
  const numbers = ["parallelism", "rate", ...(message.rate ? ["period"] : [])].filter((name) => message[name] !== undefined && message[name] !== null);
  return new JsonObject([["key", message.flowControlKey], ...numbers.map((name) => [name, new JsonNumber(String(message[name]))])]);
}

const READ_AS_JSON = new Set(["true", "false", "null", "NaN", "Infinity"]);

function commandWord(value) {
  if (typeof value === "string" && /^[A-Za-z_][A-Za-z0-9_./]*$/.test(value) && !READ_AS_JSON.has(value)) return value;
  return shellWord(jsonText(value));
}

// `qtasks send TASK ARGS`; null where the arguments are not known or no task is called.
export function asCommand(task, call) {
  if (!call || call.hidden || !task) return null;
  const named = call.kwargs.members.length ? ["--kwargs", shellWord(jsonText(call.kwargs))] : [];
  return { text: ["qtasks send", ...named, ...(task.startsWith("-") ? ["--"] : []), task, ...call.args.map(commandWord)].join(" "), notes: [] };
}
