// The columns of tables that show messages (the row of docs/console.md), and lists that do not move under their reader.
import { html, useEffect, useRef, useState } from "../lib/view.js";
import { count, plural } from "../lib/format.js";
import { href } from "../lib/route.js";
import { MessageLink, Status, Time } from "./basic.js";

// What there is to say of a message: its last error, when it starts, where it waits. Labels that begin with `qtasks` are the framework's.
export function Detail({ row }) {
  const isEnding = !["scheduled", "retrying"].includes(row.status);
  const labels = (row.labels ?? []).filter((label) => !/^qtasks[.-]/.test(label));
  const isTagged = row.queue || row.flowKey || row.scheduleId || labels.length > 0;
  if (row.task !== "_end" && !row.error && (isEnding || !row.dueMs) && !isTagged) return null;
  return html`<div class="detail">
    ${row.task === "_end" && html`<p class="quiet">reports how a call has ended</p>`}
    ${row.error && html`<p class=${`clamp ${row.status === "delivered" ? "quiet" : "bad"}`} title=${row.error}>${row.error}</p>`}
    ${!isEnding && row.dueMs && html`<p class="quiet">${row.status === "retrying" ? "again " : "starts "}<${Time} ms=${row.dueMs} /></p>`}
    ${isTagged && html`<p class="tags">${row.queue && html`<span class="tag">queue ${row.queue}</span>`}${row.flowKey && html`<span class="tag">key ${row.flowKey}</span>`}
      ${row.scheduleId && html`<span class="tag">schedule ${row.scheduleId}</span>`}${labels.map((label) => html`<span key=${label} class="tag">${label}</span>`)}</p>`}
  </div>`;
}

export const COLUMNS = {
  status: { name: "status", title: "Status", cell: (row) => html`<${Status} status=${row.status} />` },
  message: { name: "message", title: "Message", main: true, cell: (row) => html`<div class="who"><${MessageLink} row=${row} /><p class="mono quiet ellipsis" title=${row.messageId}>${row.messageId}</p></div>` },
  detail: { name: "detail", title: "Detail", wide: true, cell: (row) => html`<${Detail} row=${row} />` },
  attempts: { name: "attempts", title: "Attempts", number: true, cell: (row) => `${count(row.attempts)} of ${count((row.maxRetries ?? 0) + 1)}` },
  published: { name: "published", title: "Published", number: true, cell: (row) => html`<${Time} ms=${row.createdMs} />` },
  finished: { name: "finished", title: "Finished", number: true, cell: (row) => html`<${Time} ms=${row.finishedMs} />` },
};

export const MESSAGE_COLUMNS = ["status", "message", "detail", "attempts", "published", "finished"].map((name) => COLUMNS[name]);

// True while the reader has scrolled away from the top of the page.
export function useScrolled() {
  const [scrolled, setScrolled] = useState(false);
  useEffect(() => {
    const look = () => setScrolled(scrollY > 120);
    look();
    addEventListener("scroll", look, { passive: true });
    return () => removeEventListener("scroll", look);
  }, []);
  return scrolled;
}

// The rows to show while `hold` keeps them in their places: those of before with their content of now, and how many new ones wait above
// them. {rows, waiting, take()}; `take` shows the new ones.
export function useSteady(rows, { hold, key, idOf = (row) => row.messageId }) {
  const shown = useRef({ key: null, rows: [] });
  const [, render] = useState(0);
  if (rows && (!hold || shown.current.key !== key)) shown.current = { key, rows };
  else if (rows) {
    const fresh = new Map(rows.map((row) => [idOf(row), row]));
    shown.current = { key, rows: shown.current.rows.map((row) => fresh.get(idOf(row)) ?? row) };
  }
  const known = new Set(shown.current.rows.map(idOf));
  const first = (rows ?? []).findIndex((row) => known.has(idOf(row)));
  return {
    rows: shown.current.rows,
    waiting: first === -1 ? (rows ?? []).length : first,
    isMore: first === -1,
    take: () => {
      shown.current = { key: null, rows: [] };
      scrollTo({ top: 0 });
      render((turn) => turn + 1);
    },
  };
}

// "12 new" above a list that waits for its reader.
export function NewRows({ waiting, isMore, take }) {
  if (waiting === 0) return null;
  return html`<div class="new-rows" role="status"><button type="button" class="primary small" onClick=${take}>${count(waiting)}${isMore && waiting >= 20 ? " or more" : ""} new</button></div>`;
}

// The way to older rows and back to the newest; both are addresses, so that the browser's own keys work.
export function Pages({ page, query, cursor, isOld }) {
  if (!cursor && !isOld) return null;
  return html`<div class="pages">${isOld && html`<a href=${href(page, { ...query, cursor: null })}>Newest</a>`}${cursor && html`<a href=${href(page, { ...query, cursor })}>Older</a>`}</div>`;
}

// What is done to the chosen rows of a table.
export function SelectionBar({ selection, children }) {
  if (selection.size === 0) return null;
  return html`<div class="selection" role="region" aria-label="Chosen messages"><b>${plural(selection.size, "message")} chosen</b>${children}<button type="button" class="plain" onClick=${selection.clear}>Choose none</button></div>`;
}
