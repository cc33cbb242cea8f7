// The URL prefixes of applications, and whether they take deliveries.
import { html } from "../lib/view.js";
import { count } from "../lib/format.js";
import { useView } from "../lib/live.js";
import { href } from "../lib/route.js";
import { Empty, Heading, Loaded, Panel, Time } from "../parts/basic.js";
import { FilteredTable, TextFilter } from "../parts/lists.js";

export function Endpoints() {
  const view = useView("endpoints");
  return html`<${Heading} title="Endpoints"><${TextFilter} label="Filter endpoints" /><//>
    <${Loaded} view=${view}>${(rows) => html`<${Panel}>
      ${rows.some((row) => row.down) && html`<p class="note pad">While an endpoint refuses connections, the broker tries one message again and again. Those behind it wait, spend no retry, and start when it answers.</p>`}
      <${FilteredTable} caption="Endpoints" rows=${rows} rowKey=${(row) => row.prefix} textOf=${(row) => row.prefix} columns=${COLUMNS}
        empty=${html`<${Empty} title="No endpoints yet.">The URL prefix of an application appears when a task of it is called.<//>`} /><//>`}<//>`;
}

const COLUMNS = [
  { name: "prefix", title: "Endpoint", wide: true, cell: (row) => html`<span><a class="target" href=${href("messages", { filter: row.prefix.replace(/:(80|443)\//, "/") })}>${row.prefix}</a>${row.isDispatcher && html`<br /><span class="quiet">dispatcher of qtasks</span>`}</span>` },
  { name: "state", title: "State", cell: (row) => html`<${State} row=${row} />` },
  { name: "waiting", title: "Waiting for it", number: true, cell: (row) => count(row.waiting) },
  { name: "running", title: "Running", number: true, cell: (row) => count(row.running) },
];

function State({ row }) {
  if (!row.down) return html`<span class="good">✓ no refusal</span>`;
  return html`<span><span class="bad">✗ refuses</span> since <${Time} ms=${row.down.sinceMs} />${row.down.nextProbeMs && html`<br /><span class="quiet">next try <${Time} ms=${row.down.nextProbeMs} /></span>`}</span>`;
}
