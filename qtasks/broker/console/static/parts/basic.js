// The small parts that all pages are made of.
import { Fragment, html, useEffect, useState } from "../lib/view.js";
import { exact, relative, setZone, span, target, zone } from "../lib/format.js";
import { href } from "../lib/route.js";
import { tick } from "../lib/live.js";

const STATUS_MARKS = { scheduled: "◷", waiting: "○", running: "◐", retrying: "↻", delivered: "✓", failed: "✗", canceled: "–", expired: "–" };

export function Status({ status }) {
  return html`<span class=${`status status-${status}`}><span aria-hidden="true">${STATUS_MARKS[status] ?? "·"}</span> ${status}</span>`;
}

// A time from now; the exact one on hover and for screen readers.
export function Time({ ms, plain = false }) {
  if (ms === null || ms === undefined) return html`<span class="quiet">–</span>`;
  const text = plain ? exact(ms, zone.value) : relative(ms, tick.value);
  return html`<time datetime=${new Date(ms).toISOString()} title=${exact(ms, zone.value)}>${text}</time>`;
}

export function Span({ ms }) {
  return html`<span class="number">${span(ms)}</span>`;
}

export function ZoneSwitch() {
  const other = zone.value === "local" ? "UTC" : "local";
  return html`<button type="button" class="plain" onClick=${() => setZone(other)} title=${`Show times in ${other === "UTC" ? "UTC" : "the zone of this computer"}`}>
    Times: ${zone.value === "local" ? "local" : "UTC"}
  </button>`;
}

export function MessageLink({ row }) {
  return html`<a href=${href(["messages", row.messageId])} class="target clamp" title=${row.destination}>${target(row)}</a>`;
}

// The head of a page: its name, what belongs to it, and its actions.
export function Heading({ title, note, children }) {
  useEffect(() => {
    document.title = `${title} · qtasks`;
  }, [title]);
  return html`<header class="heading"><div><h1 tabindex="-1">${title}</h1>${note && html`<p class="note">${note}</p>`}</div>
    <div class="actions">${children}</div></header>`;
}

export function Panel({ title, note, actions, children, id }) {
  return html`<section class="panel" aria-labelledby=${id}>
    ${title && html`<header><h2 id=${id}>${title}</h2>${note && html`<span class="note">${note}</span>`}<span class="actions">${actions}</span></header>`}
    ${children}
  </section>`;
}

// What stands where nothing is to be shown: why, and the command that changes it.
export function Empty({ title, children, command }) {
  return html`<div class="empty"><p class="empty-title">${title}</p>${children && html`<p>${children}</p>`}${command && html`<${Command} text=${command} />`}</div>`;
}

export function Command({ text }) {
  return html`<div class="command"><code>${text}</code><${Copy} text=${text} /></div>`;
}

export function Copy({ text, label = "Copy" }) {
  const [state, setState] = useState(label);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setState("Copied");
    } catch {
      setState("Copying is not allowed here");
    }
    setTimeout(() => setState(label), 2000);
  };
  return html`<button type="button" class="small" onClick=${copy}><span aria-live="polite">${state}</span></button>`;
}

export function Problem({ error, retry }) {
  if (!error) return null;
  return html`<div class="problem" role="alert"><p>${error.message}</p>${retry && html`<button type="button" onClick=${retry}>Try again</button>`}</div>`;
}

// What a view shows while it has nothing yet, after an error, and then. `shown(error)` is the error or null, if it stands elsewhere.
export function Loaded({ view, children, shown = (error) => error }) {
  return html`<${Fragment}>
    <${Problem} error=${shown(view.error)} retry=${view.reload} />
    ${view.data ? children(view.data) : view.error ? null : html`<div class="loading" role="status">Loading</div>`}
  <//>`;
}

// A table that scrolls sideways inside itself and turns into cards on a narrow screen.
// columns: [{name, title, number, cell(row), wide, main}]; `main` heads the card of a row. Rows have the key `rowKey(row)`.
export function Table({ caption, columns, rows, rowKey, rowClass, selection, empty }) {
  if (rows.length === 0) return empty ?? html`<p class="quiet pad">Nothing here.</p>`;
  const everySelected = selection && rows.every((row) => selection.has(rowKey(row)));
  return html`<div class="table" role="group" aria-label=${caption} tabindex="0"><table>
    <caption class="hidden">${caption}</caption>
    <thead><tr>
      ${selection && html`<th class="pick"><input type="checkbox" aria-label="Select all on this page" checked=${everySelected} onChange=${() => selection.toggleAll(rows.map(rowKey))} /></th>`}
      ${columns.map((column) => html`<th key=${column.name} class=${column.number ? "number" : ""} scope="col">${column.title}</th>`)}
    </tr></thead>
    <tbody>${rows.map((row) => html`<tr key=${rowKey(row)} class=${rowClass?.(row) ?? ""}>
      ${selection && html`<td class="pick"><input type="checkbox" aria-label=${`Select ${rowKey(row)}`} checked=${selection.has(rowKey(row))} onChange=${() => selection.toggle(rowKey(row))} /></td>`}
      ${columns.map((column) => html`<td key=${column.name} class=${`${column.number ? "number" : ""} ${column.wide ? "wide" : ""} ${column.main ? "main" : ""}`} data-title=${column.title}>${column.cell(row)}</td>`)}
    </tr>`)}</tbody>
  </table></div>`;
}

// The chosen rows of a table: keep it in a state and pass it as `selection`.
export function useSelection() {
  const [chosen, setChosen] = useState(() => new Set());
  return {
    size: chosen.size,
    ids: [...chosen],
    has: (id) => chosen.has(id),
    clear: () => setChosen(new Set()),
    toggle: (id) => setChosen((before) => {
      const after = new Set(before);
      if (!after.delete(id)) after.add(id);
      return after;
    }),
    toggleAll: (ids) => setChosen((before) => {
      const all = ids.every((id) => before.has(id));
      const after = new Set(before);
      for (const id of ids) {
        if (all) after.delete(id);
        else after.add(id);
      }
      return after;
    }),
  };
}

// facts: [[name, value, isLong]]; a long value has a row of its own.
export function Facts({ facts }) {
  return html`<dl class="facts">${facts.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([name, value, isLong]) => html`<div key=${name} class=${isLong ? "long" : ""}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

export function Tabs({ names, chosen, choose, label }) {
  const onKey = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = names[(names.indexOf(chosen) + step + names.length) % names.length];
    choose(next);
    event.currentTarget.querySelector(`[data-tab="${CSS.escape(next)}"]`)?.focus();
  };
  return html`<div class="tabs" role="tablist" aria-label=${label} onKeyDown=${onKey}>
    ${names.map((name) => html`<button key=${name} type="button" role="tab" data-tab=${name} aria-selected=${name === chosen} tabindex=${name === chosen ? 0 : -1} onClick=${() => choose(name)}>${name}</button>`)}
  </div>`;
}
