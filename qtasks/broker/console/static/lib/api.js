// The requests of the pages. Paths are those of docs/console.md, below `console/api/`.
import { signal } from "./view.js";

const BASE = new URL("console/api/", document.baseURI.replace(/[#?].*$/, ""));

export const session = signal(null); // what GET session answered; null until then

export class ApiError extends Error {
  constructor(status, body) {
    super(body.error ?? `the server answered ${status}`);
    this.status = status;
    this.body = body;
  }
}

// The path of a resource: path`v2/queues/${name}/pause`, every value as one segment.
export const path = (texts, ...values) => String.raw({ raw: texts }, ...values.map(encodeURIComponent));

export function address(path, query = {}) {
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== "") url.searchParams.set(name, value);
  }
  return url;
}

// The JSON that `path` answers. Throws ApiError for any other answer; a session that has ended shows the sign-in.
// `body` is sent as JSON, `text` as it is.
export async function request(method, path, { query, body, text, headers: lines = [], signal: abort } = {}) {
  const headers = Object.fromEntries(lines);
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (method !== "GET" && session.value?.csrf) headers["QTasks-CSRF"] = session.value.csrf;
  let response;
  try {
    response = await fetch(address(path, query), {
      method,
      headers,
      body: body === undefined ? text : JSON.stringify(body),
      credentials: "same-origin",
      cache: "no-store",
      signal: abort,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { error: "The broker does not answer. The page tries again." });
  }
  const content = await response.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return {};
  });
  if (response.ok) return content;
  if (response.status === 401 && session.value?.signedIn) session.value = { ...session.value, signedIn: false, ended: true };
  throw new ApiError(response.status, content);
}

export const get = (path, query, abort) => request("GET", path, { query, signal: abort });
export const post = (path, body = {}) => request("POST", path, { body });
// Publish a message to `url`, with header lines of the API and a body as text: {messageId}.
export const publish = (url, { queue, headers, body }) => request("POST", `${queue ? `v2/enqueue/${encodeURIComponent(queue)}` : "v2/publish"}/${url}`, { headers, text: body });
export const remove = (path, body) => request("DELETE", path, { body });

export async function readSession() {
  session.value = await get("session");
}

export async function signIn(token) {
  session.value = await post("session", { token });
}

export async function signOut() {
  await remove("session");
  await readSession();
}

export const isOperator = () => session.value?.role === "operator";
export const seesPayloads = () => session.value?.role !== "metadata";
export const lacks = (view) => session.value?.service?.lacks?.includes(view) ?? false;
