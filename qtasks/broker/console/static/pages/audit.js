// Who changed what, from where and why.
import { html } from "../lib/view.js";
import { count } from "../lib/format.js";
import { useView } from "../lib/live.js";
import { href, replaceQuery, route } from "../lib/route.js";
import { Empty, Heading, Loaded, Panel, Table, Time } from "../parts/basic.js";
import { TextFilter } from "../parts/lists.js";
import { Pages } from "../parts/rows.js";

const PAGE = 50;

// The page that shows what a change was made to, by the first word of `what`.
const PLACES = {
  dlq: () => href("dead-letters"),
  message: (row) => (row.count === 1 && !/[\s=]/.test(row.subject) ? href(["messages", row.subject]) : href("messages")),
  queue: (row) => href("queues", { filter: row.subject }),
  flow: (row) => href("queues", { filter: row.subject }),
  schedule: (row) => href(["schedules", row.subject]),
  "url-group": (row) => href("url-groups", { filter: row.subject }),
};

const place = (row) => (row.what.endsWith(".delete") && !row.what.startsWith("dlq") ? undefined : PLACES[row.what.split(".")[0]]?.(row));

const COLUMNS = [
  { name: "time", title: "When", cell: (row) => html`<${Time} ms=${row.timeMs} />` },
  { name: "what", title: "What", cell: (row) => html`<code>${row.what}</code>` },
  { name: "subject", title: "Of what", wide: true, cell: (row) => html`<${Subject} row=${row} />` },
  { name: "count", title: "Count", number: true, cell: (row) => count(row.count) },
  { name: "who", title: "Who", cell: (row) => row.who },
  { name: "origin", title: "From", cell: (row) => row.origin },
];

function Subject({ row }) {
  const address = place(row);
  return html`<span>${address ? html`<a href=${address} class="mono">${row.subject || "all"}</a>` : html`<span class="mono">${row.subject}</span>`}
    ${row.note && html`<br /><span class="pause-note">${row.note}</span>`}</span>`;
}

export function Audit() {
  const { filter = "", cursor } = route.value.query;
  const view = useView("audit", { filter, cursor, count: PAGE }, { everyMs: 5000, paused: Boolean(cursor) });
  return html`<${Heading} title="Audit" note="Changes through the console, the API and the command line; publishes are not listed."><${TextFilter} label="Filter changes" /><//>
    <${Loaded} view=${view}>${(data) => html`<${Panel}><${Table} caption="Changes" rows=${data.changes} rowKey=${(row) => row.id} columns=${COLUMNS} empty=${html`<${Nothing} filter=${filter} />`} /><//>
      <${Pages} page="audit" query=${{ filter }} cursor=${data.cursor} isOld=${Boolean(cursor)} />`}<//>`;
}

function Nothing({ filter }) {
  if (filter === "") return html`<${Empty} title="Nothing was changed yet.">Who pauses, retries, cancels, deletes or rotates is listed here.<//>`;
  return html`<${Empty} title="No change contains the filter."><button type="button" onClick=${() => replaceQuery({ filter: null, cursor: null })}>Show all changes</button><//>`;
}
