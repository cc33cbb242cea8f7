// The URL prefixes of applications: whether they take deliveries, how they answered last, and how quick they are.
import { html } from "../lib/view.js";
import { quoted } from "../lib/filter.js";
import { count, perMinute, plural, span } from "../lib/format.js";
import { useView } from "../lib/live.js";
import { href } from "../lib/route.js";
import { Empty, Heading, Loaded, Panel, Time } from "../parts/basic.js";
import { FilteredTable, TextFilter } from "../parts/lists.js";

export function Endpoints() {
  const view = useView("endpoints");
  const { data } = useView("tasks", {}, { everyMs: 15_000 });
  const manifests = new Map((data?.dispatchers ?? []).map(({ prefix, manifest }) => [prefix, manifest]));
  return html`<${Heading} title="Endpoints"><${TextFilter} label="Filter endpoints" /><//>
    <${Loaded} view=${view}>${(rows) => html`<${Panel}>
      ${rows.some((row) => row.down) && html`<p class="note pad">While an endpoint refuses connections, the broker tries one message again and again. Those behind it wait, spend no retry, and start when it answers.</p>`}
      <${FilteredTable} caption="Endpoints" rows=${rows} rowKey=${(row) => row.prefix} textOf=${(row) => `${row.prefix} ${row.last?.error ?? ""}`} columns=${columns(manifests)}
        empty=${html`<${Empty} title="No endpoints yet.">The URL prefix of an application appears when a task of it is called.<//>`} /><//>`}<//>`;
}

const columns = (manifests) => [
  { name: "prefix", title: "Endpoint", wide: true, main: true, cell: (row) => html`<span><a class="target" href=${href("messages", { filter: `url:${quoted(`${row.url}*`)}` })}>${row.prefix}</a>${row.isDispatcher && html`<br /><span class="quiet">${application(manifests.get(row.url))}</span>`}</span>` },
  { name: "state", title: "State", wide: true, cell: (row) => html`<span><${State} row=${row} /><${LastAnswer} last=${row.last} /></span>` },
  { name: "rate", title: "Per minute", number: true, cell: (row) => html`<span title=${lately(row)}>${perMinute(row.perMinute)}</span>` },
  { name: "time", title: "Duration", number: true, cell: (row) => html`<${Duration} row=${row} />` },
  { name: "bundles", title: "Bundles", cell: (row) => html`<${Bundles} bundles=${row.bundles} />` },
  { name: "waiting", title: "Waiting", number: true, cell: (row) => count(row.waiting) },
  { name: "running", title: "Running", number: true, cell: (row) => count(row.running) },
];

function application(manifest) {
  if (!manifest) return "dispatcher of qtasks";
  return [`qtasks ${manifest.package}`, manifest.python && `Python ${manifest.python}`, plural(manifest.tasks.length, "task")].filter(Boolean).join(", ");
}

function State({ row }) {
  if (row.down) return html`<span><span class="bad">✗ refuses</span> since <${Time} ms=${row.down.sinceMs} />${row.down.nextProbeMs && html`, next try <${Time} ms=${row.down.nextProbeMs} />`}</span>`;
  return row.last ? html`<span class="good">✓ takes deliveries</span>` : html`<span class="quiet">nothing sent yet</span>`;
}

function LastAnswer({ last }) {
  if (!last) return null;
  const { status, error, timeMs } = last;
  const word = error === null ? "delivered" : status === null ? "no answer" : `answered ${status}`;
  return html`<br /><span class="quiet">${word} <${Time} ms=${timeMs} /></span>${error !== null && html`<span class="clamp" title=${error}>${error}</span>`}`;
}

const lately = (row) => `since the beginning of the last hour: ${count(row.delivered)} delivered, ${count(row.failed)} failed, ${count(row.retried)} retried`;

function Duration({ row }) {
  if (row.p50Ms === null) return html`<span class="quiet">–</span>`;
  return html`<span title="since the beginning of the last hour">${span(row.p50Ms)}<br /><span class="quiet together">95 %: ${span(row.p95Ms)}</span></span>`;
}

function Bundles({ bundles }) {
  if (!bundles) return html`<span class="quiet">–</span>`;
  if (bundles.refusedUntilMs) return html`<span class="warn together">none until <${Time} ms=${bundles.refusedUntilMs} /></span>`;
  return bundles.slots === null ? html`<span class="quiet">takes none</span>` : html`<span class="together">${plural(bundles.slots, "free slot")}</span>`;
}
