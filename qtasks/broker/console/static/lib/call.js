// The envelope of a task's message, {"v": 1, "id", "args", "kwargs", ...}, as the call that it is.
import { JsonNumber, JsonObject, parse, pretty, write } from "./lossless.js";

const SECRET_FORMS = { pickle1: "pickled", codec1: "in a form of the application", sealed1: "encrypted" };

// {args, kwargs, hidden, envelope} of a body; null if it is no envelope. `args` is an array, `kwargs` a JsonObject. `hidden` says
// in which form the arguments are if they cannot be shown; else it is null.
export function readCall(text) {
  const envelope = readJson(text);
  if (!(envelope instanceof JsonObject) || !["1", "2"].includes(envelope.get("v")?.text)) return null;
  const args = envelope.get("args") ?? [];
  const kwargs = envelope.get("kwargs") ?? new JsonObject([]);
  if (!Array.isArray(args) || !(kwargs instanceof JsonObject)) return null;
  const carried = envelope.get("coded") ?? envelope.get("pickled");
  return { args, kwargs, hidden: typeof carried === "string" ? SECRET_FORMS[carried.split(":", 1)[0]] ?? "encoded" : null, envelope };
}

export function readJson(text) {
  try {
    return parse(text ?? "");
  } catch {
    return undefined;
  }
}

// The arguments by position and by name, as one object for a tree.
export const argumentsOf = (call) => new JsonObject([...call.args.map((value, index) => [String(index), value]), ...call.kwargs.members]);

const OF_THE_FIRST_RUN = ["snoozed", "expires_ms"];

// The body with which the broker runs the call again (it gives the envelope a new id): the same arguments, or those of `edited`,
// {args, kwargs} as JSON text. Null for the body as it was. Throws an Error that says what is wrong with `edited`.
export function againBody(call, edited = null) {
  const members = call.envelope.members.filter(([name]) => !OF_THE_FIRST_RUN.includes(name));
  if (edited === null) return members.length === call.envelope.members.length ? null : write(new JsonObject(members));
  const { args, kwargs } = readEdited(edited);
  return write(new JsonObject(members.map(([name, value]) => [name, name === "args" ? args : name === "kwargs" ? kwargs : value])));
}

// The body of a new call with the same arguments, to publish it from elsewhere. Without an id the dispatcher derives one from the
// message, so that it is not taken for the call that has already run. What is bound to its call keeps the id.
export function newCallBody(call) {
  const members = call.envelope.members.filter(([name]) => !OF_THE_FIRST_RUN.includes(name) && (call.hidden || name !== "id"));
  return write(new JsonObject(members));
}

function readEdited(text) {
  let document;
  try {
    document = parse(text);
  } catch (error) {
    throw new Error(`This is not JSON: ${error.message}.`);
  }
  if (!(document instanceof JsonObject)) throw new Error('Expected an object with "args" and "kwargs".');
  const unknown = document.members.find(([name]) => name !== "args" && name !== "kwargs");
  if (unknown) throw new Error(`Unexpected member ${JSON.stringify(unknown[0])}: expected "args" and "kwargs".`);
  const args = document.get("args") ?? [];
  const kwargs = document.get("kwargs") ?? new JsonObject([]);
  if (!Array.isArray(args)) throw new Error('"args" must be a list.');
  if (!(kwargs instanceof JsonObject)) throw new Error('"kwargs" must be an object.');
  return { args, kwargs };
}

export const editable = (call) => pretty(new JsonObject([["args", call.args], ["kwargs", call.kwargs]]));

// The error of a task's failed attempt, {"error", "code", "at"} of its answer; null if the body is something else. `at` are places
// in the user's code, the innermost last.
export function taskError(text) {
  const value = readJson(text);
  const error = value instanceof JsonObject ? value.get("error") : null;
  if (typeof error !== "string") return null;
  const [code, at] = [value.get("code"), value.get("at")];
  return { error, code: typeof code === "string" ? code : null, at: Array.isArray(at) ? at.filter((place) => typeof place === "string") : [] };
}

// The value of an argument as a filter has it; undefined for one that has no label: an object, a list, a number with a fraction.
export function filterText(value) {
  if (value === null || typeof value === "boolean") return String(value);
  if (value instanceof JsonNumber) return /^-?\d+$/.test(value.text) ? value.text : undefined;
  return typeof value === "string" ? value : undefined;
}

// The header lines of a call with the labels by which it is found by its arguments (docs/protocol.md 3.10). `values` is a Map of the arguments.
export async function labelled(headers, names, values) {
  const labels = await Promise.all(names.map(async (name) => {
    if (!values.has(name)) return `qtasks.arg.${name}`;
    const text = filterText(values.get(name));
    if (text === undefined) return null;
    if (/^[!-+\--~]{1,64}$/.test(text)) return `qtasks.arg.${name}=${text}`;
    if (!globalThis.crypto?.subtle) return null; // a page that is not secure: the broker reads the call when it is searched for
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text)));
    return `qtasks.arg.${name}#${[...hash.slice(0, 16)].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
  }));
  const chosen = headers.filter(([name]) => name === "Upstash-Label").map(([, value]) => value);
  const all = [...chosen, ...labels.filter((label) => label !== null)];
  const others = headers.filter(([name]) => name !== "Upstash-Label");
  return all.length ? [...others, ["Upstash-Label", all.join(",")]] : others;
}
