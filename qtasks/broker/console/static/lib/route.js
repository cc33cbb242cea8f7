// Where the reader is: the part of the address behind `#`, so that the console works below any path.
//
// `#/messages?filter=status%3Afailed` is {path: ["messages"], query: {filter: "status:failed"}}.
import { signal } from "./view.js";

export const route = signal(read());

function read() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?", 2);
  return {
    path: path.split("/").filter(Boolean).map(decode),
    query: Object.fromEntries(new URLSearchParams(query ?? "")),
  };
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

addEventListener("hashchange", () => {
  route.value = read();
});

// The address of a page: href("messages", {filter: "status:failed"}), href(["messages", id]).
export function href(path, query = {}) {
  const parts = (Array.isArray(path) ? path : [path]).map(encodeURIComponent).join("/");
  const search = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== ""));
  return `#/${parts}${search.size ? `?${search}` : ""}`;
}

export function go(path, query) {
  location.hash = href(path, query);
}

// Change the query of this page without an entry in the history.
export function replaceQuery(changes) {
  const { path, query } = route.value;
  history.replaceState(null, "", href(path, { ...query, ...changes }));
  route.value = read();
}
