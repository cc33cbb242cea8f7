// Deletions that can be undone: the page holds each for ten seconds, then sends it. What is held when the page is left
// is sent at once, so no deletion is lost.
import { signal } from "./view.js";
import { address, session } from "./api.js";
import { refreshViews } from "./live.js";
import { report } from "./reports.js";

const HOLD_MS = 10_000;
const SHOWN_MS = 1000; // how long rows are still shown as leaving after the broker has deleted them
const LEFT = "qtasks.left"; // sentences for the next page of this tab

export const leaving = signal([]);

let number = 0;

// Hold a deletion. `text` says what happens ("Deleting 3 dead letters"), `touches(kind, id)` is true for what goes,
// `send(progress)` deletes and gives the sentence to report, `last()` is the request [path, {method, body}] that does it if
// the page is left.
export function hold(deletion) {
  const entry = { ...deletion, id: ++number, state: "held", restMs: HOLD_MS };
  leaving.value = [...leaving.value, entry];
  start(entry);
}

function start(entry) {
  entry.endMs = performance.now() + entry.restMs;
  entry.timer = setTimeout(() => finish(entry), entry.restMs);
}

const held = () => leaving.value.filter((entry) => entry.state === "held" || entry.state === "failed");

function change(entry, changes) {
  Object.assign(entry, changes);
  leaving.value = leaving.value.map((one) => (one === entry ? entry : one));
}

const forget = (entry) => {
  leaving.value = leaving.value.filter((one) => one !== entry);
};

// True while what has this kind and id is about to go, or was just deleted.
export const isLeaving = (kind, id) => leaving.value.some((entry) => entry.state !== "failed" && entry.touches(kind, id));

export function undo(entry) {
  if (entry.state !== "held" && entry.state !== "failed") return;
  clearTimeout(entry.timer);
  forget(entry);
  report(entry.state === "failed" ? "Nothing more is deleted." : "Undone: nothing was deleted.");
}

export const undoLast = () => held().length > 0 && undo(held().at(-1));

// The time stands still while the reader is at the buttons.
export function keepTime() {
  for (const entry of leaving.value.filter((one) => one.state === "held" && one.timer)) {
    clearTimeout(entry.timer);
    change(entry, { timer: null, restMs: Math.max(0, entry.endMs - performance.now()) });
  }
}

export function letTimeGo() {
  for (const entry of leaving.value.filter((one) => one.state === "held" && !one.timer)) {
    start(entry);
    change(entry, {});
  }
}

// Delete now what is held.
export async function finish(entry) {
  clearTimeout(entry.timer);
  change(entry, { state: "sending", progress: "" });
  try {
    const text = await entry.send((progress) => change(entry, { progress }));
    change(entry, { state: "done" });
    refreshViews();
    report(text);
    setTimeout(() => forget(entry), SHOWN_MS);
  } catch (error) {
    change(entry, { state: "failed", error });
  }
}

export const finishAll = () => Promise.all(held().map(finish));

// The page goes: a request with `keepalive` outlives it.
function leave() {
  const going = leaving.value.filter((entry) => entry.state === "held" || entry.state === "sending");
  for (const entry of going) {
    clearTimeout(entry.timer);
    const [path, { method, body }] = entry.last();
    fetch(address(path), {
      method,
      keepalive: true,
      credentials: "same-origin",
      headers: { "QTasks-CSRF": session.value?.csrf ?? "", ...(body ? { "Content-Type": "application/json" } : {}) },
      body: body && JSON.stringify(body),
    });
  }
  if (going.length === 0) return;
  leaving.value = leaving.value.filter((entry) => !going.includes(entry));
  try {
    sessionStorage.setItem(LEFT, going.map((entry) => entry.text).join("; "));
  } catch {
    // a browser that keeps nothing
  }
}

addEventListener("pagehide", leave);
document.addEventListener("freeze", leave); // a telephone may end the page without another word

// Say what was sent when the page was left, once.
export function reportLeft() {
  try {
    const text = sessionStorage.getItem(LEFT);
    sessionStorage.removeItem(LEFT);
    if (text) report(`${text}: sent to the broker when the page was left.`);
  } catch {
    // a browser that keeps nothing
  }
}
