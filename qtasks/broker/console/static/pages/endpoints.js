// Where messages go: the prefixes of dispatchers and other destinations, and whether they answer.
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
      ${rows.some((row) => row.down) && html`<p class="note pad">Where nothing answers, the broker tries one message again and again; those behind it wait, spend no retry, and start when the endpoint answers.</p>`}
      <${FilteredTable} caption="Endpoints" rows=${rows} rowKey=${(row) => row.prefix} textOf=${(row) => row.prefix} columns=${COLUMNS}
        empty=${html`<${Empty} title="No endpoints yet.">An endpoint appears with the first message to it.<//>`} /><//>`}<//>`;
}

const COLUMNS = [
  { name: "prefix", title: "Endpoint", wide: true, cell: (row) => html`<span><a class="target" href=${href("messages", { filter: `url:${row.prefix}*` })}>${row.prefix}</a>${row.isDispatcher && html`<br /><span class="quiet">dispatcher of qtasks</span>`}</span>` },
  { name: "state", title: "State", cell: (row) => html`<${State} row=${row} />` },
  { name: "waiting", title: "Waiting", number: true, cell: (row) => count(row.waiting) },
  { name: "running", title: "Running", number: true, cell: (row) => count(row.running) },
  { name: "answer", title: "Last answer", cell: (row) => html`<${Time} ms=${row.lastAnswerMs} />` },
  { name: "bundles", title: "Bundles", cell: (row) => html`<${Bundles} bundles=${row.bundles} />` },
];

function State({ row }) {
  if (row.down) return html`<span><span class="bad">✗ does not answer</span> since <${Time} ms=${row.down.sinceMs} />${row.down.nextProbeMs && html`<br /><span class="quiet">next try <${Time} ms=${row.down.nextProbeMs} /></span>`}</span>`;
  return row.lastAnswerMs ? html`<span class="good">✓ answers</span>` : html`<span class="quiet">not asked yet</span>`;
}

function Bundles({ bundles }) {
  if (typeof bundles === "number") return count(bundles);
  return html`<span class="quiet">${bundles ? "yes" : "no"}</span>`;
}
