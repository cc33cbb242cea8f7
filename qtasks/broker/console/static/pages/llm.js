// Calls of language models: sums by model, and the calls themselves. The message page shows what was said in one.
import { Fragment, html } from "../lib/view.js";
import { path } from "../lib/api.js";
import { count, plural, span, target } from "../lib/format.js";
import { useView } from "../lib/live.js";
import { href, route } from "../lib/route.js";
import { Empty, Heading, Loaded, Panel, Status, Table, Time } from "../parts/basic.js";
import { Pages } from "../parts/rows.js";

const number = (value) => (value === null || value === undefined ? html`<span class="quiet">–</span>` : count(value));
const name = (row) => (row.isRedacted ? html`<span class="quiet">redacted</span>` : row.model ?? html`<span class="quiet">unknown</span>`);

export function Llm() {
  const { cursor } = route.value.query;
  const view = useView("llm", cursor ? { cursor } : {}, { everyMs: 5000 });
  return html`<${Heading} title="Language models" note="Messages to a chat completion API, from tasks and from others" />
    <${Loaded} view=${view}>${({ calls, cursor: next, sums }) => calls.length === 0 && !cursor ? html`<${Empty} title="No call of a language model is stored.">A task made with <code>@tasks.llm</code> sends its request to the model by the broker, and appears here.<//>`
      : html`<${Fragment}>${!cursor && html`<${Sums} sums=${sums} />`}
        <${Panel} title="Calls" id="calls"><${Table} caption="Calls" rows=${calls} rowKey=${(row) => row.messageId} columns=${CALLS} /><//>
        <${Pages} page="llm" query=${{}} cursor=${next} isOld=${Boolean(cursor)} /><//>`}<//>`;
}

function Sums({ sums }) {
  const note = sums.isComplete ? `the last ${sums.hours} hours, ${plural(sums.calls, "call")}` : `of the last ${sums.hours} hours, the latest ${plural(sums.calls, "call")}: there were more`;
  return html`<${Panel} title="By model" id="by-model" note=${note}><${Table} caption="By model" rows=${sums.models} rowKey=${(row) => `${row.model} ${row.provider}`} columns=${SUMS}
    empty=${html`<p class="quiet pad">None.</p>`} /><//>`;
}

const SUMS = [
  { name: "model", title: "Model", wide: true, main: true, cell: (row) => html`<div><b>${row.model ?? "unknown, or redacted"}</b><p class="quiet">${row.provider}</p></div>` },
  { name: "calls", title: "Calls", number: true, cell: (row) => count(row.calls) },
  { name: "failed", title: "Failed", number: true, cell: (row) => html`<span class=${row.failed ? "bad" : ""}>${count(row.failed)}</span>` },
  { name: "prompt", title: "Prompt tokens", number: true, cell: (row) => number(row.promptTokens) },
  { name: "completion", title: "Completion tokens", number: true, cell: (row) => number(row.completionTokens) },
  { name: "p50", title: "Median", number: true, cell: (row) => (row.p50Ms === null ? "–" : span(row.p50Ms)) },
  { name: "p95", title: "95 %", number: true, cell: (row) => (row.p95Ms === null ? "–" : span(row.p95Ms)) },
];

const CALLS = [
  { name: "status", title: "Status", cell: (row) => html`<${Status} status=${row.status} />` },
  { name: "model", title: "Model", wide: true, main: true, cell: (row) => html`<div class="who"><a class="target" href=${href(["messages", row.messageId])}>${name(row)}</a><p class="quiet ellipsis">${row.provider}</p>${row.error && row.status !== "delivered" && html`<p class="clamp bad" title=${row.error}>${row.error}</p>`}</div>` },
  { name: "tokens", title: "Tokens", number: true, cell: (row) => (row.promptTokens === null && row.completionTokens === null ? "–" : html`<span>${number(row.promptTokens)} + ${number(row.completionTokens)}</span>`) },
  { name: "took", title: "Took", number: true, cell: (row) => (row.durationMs === null ? "–" : span(row.durationMs)) },
  { name: "callback", title: "Answer went to", cell: (row) => (row.callback ? html`<div class="who"><a href=${href(["messages", row.callback.messageId])}>${target(row.callback)}</a><p><${Status} status=${row.callback.status} /></p></div>` : html`<span class="quiet">–</span>`) },
  { name: "published", title: "Published", number: true, cell: (row) => html`<${Time} ms=${row.createdMs} />` },
];

// As the broker tells them from other messages.
export const isModelCall = ({ destination, task }) => /\/chat\/completions$|^https:\/\/api\.anthropic\.com\//.test(destination) || (task !== null && destination.endsWith("/v1/messages"));

// What was asked and answered in one call, as text.
export function Conversation({ row }) {
  const { data } = useView(path`llm/${row.messageId}`, {}, { everyMs: 3000 });
  if (!data) return null;
  const tokens = data.promptTokens === null && data.completionTokens === null ? "tokens unknown" : html`${number(data.promptTokens)} tokens in, ${number(data.completionTokens)} out`;
  const turns = [...(data.turns ?? []), ...(data.answer === null ? [] : [{ role: "assistant", text: data.answer, isAnswer: true }])];
  const missing = data.isRedacted ? "Its publisher has hidden what was said." : data.turns === null ? "Your token does not show what was said." : row.status !== "delivered" ? null : "The broker does not know the answer: it has no callback, or its callback is hidden or gone.";
  return html`<${Panel} title="Conversation" id="conversation" note=${html`${data.model ?? "unknown model"} at ${data.provider}, ${tokens}`}>
    ${turns.length > 0 && html`<ol class="turns">${turns.map((turn, index) => html`<li key=${index} class=${turn.isAnswer ? "answer" : ""}><h3>${turn.isAnswer ? "answer" : turn.role}</h3><pre class="raw" tabindex="0" aria-label=${turn.isAnswer ? "answer" : turn.role}>${turn.text}</pre></li>`)}</ol>`}
    ${data.answer === null && missing && html`<p class="quiet pad">${missing}</p>`}
  <//>`;
}
