// What happens at the broker, as it happens. A hidden page listens to nothing.
import { effect, signal, useEffect, useRef, useState } from "./view.js";
import { address, get, lacks, session } from "./api.js";
import { route } from "./route.js";

export const reports = signal(false); // the address asks for the events of the framework's own reports, too
export const connection = signal("waiting"); // "open", "waiting" or "lost"
export const now = signal(null); // the counts of the overview
export const tick = signal(Date.now()); // the time, once a second while the page is visible

const AGAIN_MS = 5000; // after the broker refused the stream
const listeners = new Set();
let source = null;
let again;
let wasOpen = false;
let withReports = false;

// Call `listener(event)` with every event: {kind: "message"} with its members, {kind: "skipped", count} for those that
// were too many, {kind: "gap"} after a time without connection. Returns how to stop.
export function listen(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function open() {
  close();
  if (document.hidden || !session.value?.signedIn || lacks("events")) return;
  connection.value = "waiting";
  source = new EventSource(address("events", reports.value ? { reports: true } : {}));
  source.onopen = () => {
    connection.value = "open";
    if (wasOpen) tell({ kind: "gap" });
    wasOpen = true;
  };
  source.onerror = () => {
    connection.value = "lost";
    if (source?.readyState === EventSource.CLOSED) again = setTimeout(open, AGAIN_MS); // the browser gives up itself
  };
  source.addEventListener("message", ({ data }) => tell({ kind: "message", ...JSON.parse(data) }));
  source.addEventListener("skipped", ({ data }) => tell({ kind: "skipped", ...JSON.parse(data) }));
  source.addEventListener("now", ({ data }) => {
    now.value = JSON.parse(data);
  });
}

function tell(event) {
  for (const listener of listeners) listener(event);
}

function close() {
  clearTimeout(again);
  source?.close();
  source = null;
}

document.addEventListener("visibilitychange", open);
addEventListener("pagehide", close);
effect(() => {
  reports.value = route.value.path[0] === "events" && route.value.query.reports === "true";
});
effect(() => {
  wasOpen = wasOpen && withReports === reports.value; // what the reader asked for is no gap
  withReports = reports.value;
  if (session.value?.signedIn) queueMicrotask(open);
  else close();
});
setInterval(() => {
  if (!document.hidden) tick.value = Date.now();
}, 1000);

const refreshed = signal(0);

// Read every view of this page again now.
export function refreshViews() {
  refreshed.value += 1;
}

// The JSON of a view, read again when something has happened, at most once in `everyMs`, and never while the page is
// hidden or `paused`. {data, error, loading, reload}; the data of before stays while the next is on its way. The path null asks for
// nothing. `concerns` says of an event whether it may have changed the view; without one it is read again after `quietMs`.
export function useView(path, query = {}, { everyMs = 2000, quietMs = Math.max(everyMs * 5, 10_000), paused = false, concerns = () => true } = {}) {
  const key = JSON.stringify([path, query]);
  const [state, setState] = useState({ key: null, data: null, error: null, loading: true });
  const latest = useRef(null);
  const due = useRef(false);
  const isConcerned = useRef(concerns);
  isConcerned.current = concerns;

  const load = async () => {
    if (path === null) return;
    latest.current?.abort();
    const abort = (latest.current = new AbortController());
    setState((before) => ({ ...before, loading: true }));
    try {
      const data = await get(path, query, abort.signal);
      setState({ key, data, error: null, loading: false });
    } catch (error) {
      if (error.name !== "AbortError") setState((before) => ({ key, data: before.key === key ? before.data : null, error, loading: false }));
    }
  };

  useEffect(() => {
    load();
    return () => latest.current?.abort();
  }, [key, refreshed.value]);

  useEffect(() => {
    if (paused || path === null) return undefined;
    const stop = listen((event) => {
      due.current ||= isConcerned.current(event);
    });
    let last = Date.now();
    const timer = setInterval(() => {
      const aged = Date.now() - last;
      if (document.hidden || (!due.current && aged < quietMs)) return;
      due.current = false;
      last = Date.now();
      load();
    }, everyMs);
    return () => {
      stop();
      clearInterval(timer);
    };
  }, [key, everyMs, quietMs, paused]);

  return { ...state, data: state.key === key ? state.data : null, stale: state.data, reload: load };
}
