// One message: what became of it, why it waits, what was sent and answered, and how to run it again.
import { Fragment, html, useEffect, useMemo, useRef, useState } from "../lib/view.js";
import { isOperator, path, post, remove, seesPayloads, session } from "../lib/api.js";
import { tick, useView } from "../lib/live.js";
import { argumentsOf, againBody, editable, readCall, taskError } from "../lib/call.js";
import { argumentText, asCommand, asCurl, asPython } from "../lib/copy.js";
import { brief } from "../lib/lossless.js";
import { quoted } from "../lib/filter.js";
import { count, exact, span, target } from "../lib/format.js";
import { go, href } from "../lib/route.js";
import { CallFlow, CallResult, concerns, isOver } from "../parts/answers.js";
import { ForAssistant } from "../parts/assistant.js";
import { Copy, Empty, Facts, Heading, Panel, Problem, Status, Table, Tabs, Time } from "../parts/basic.js";
import { ask } from "../parts/dialog.js";
import { Body, Value } from "../parts/json.js";
import { MESSAGE_COLUMNS } from "../parts/rows.js";
import { Conversation, isModelCall } from "./llm.js";
import { inBundle, PARTS, Timeline } from "../parts/timeline.js";

const UNFINISHED = ["scheduled", "waiting", "running", "retrying"];
const LAST_ATTEMPTS = 20; // shown at first

export function Message({ id }) {
  const view = useView(path`messages/${id}`, {}, { everyMs: 1000 });
  const detail = view.data;
  const call = useMemo(() => (detail?.row.task && typeof detail.message.body === "string" ? readCall(detail.message.body) : null), [detail?.row.task, detail?.message.body]);
  const answer = useCallAnswer(id, detail?.row);
  const [editing, setEditing] = useState(false);
  if (view.error?.status === 404) return html`<${Heading} title="Message" /><${Empty} title="There is no such message (any more).">Finished messages are kept as long as the broker retains them: see System.<//>`;
  if (!detail) return html`<${Heading} title="Message" /><${Problem} error=${view.error} retry=${view.reload} />${!view.error && html`<div class="loading" role="status">Loading</div>`}`;
  const { row } = detail;
  return html`<${Heading} title=${call?.hidden === null ? callTitle(row.task, call) : target(row)} note=${html`<${Fragment}><${Status} status=${row.status} /> <span class="mono">${row.messageId}</span><//>`}>
      ${(row.error || row.status === "failed") && html`<${ForAssistant} path=${path`messages/${row.messageId}`} />`}<${Actions} detail=${detail} call=${call} edit=${() => setEditing(true)} reload=${view.reload} />
    <//>
    <${Problem} error=${view.error} retry=${view.reload} />
    <${Waiting} waiting=${detail.waiting} />
    ${editing && html`<${Edit} detail=${detail} call=${call} close=${() => setEditing(false)} />`}
    <${Attempts} detail=${detail} />
    ${isModelCall(row) && session.value.service.kind !== "qstash" && html`<${Conversation} row=${row} />`}
    <div class="columns">
      <${Sent} detail=${detail} call=${call} />
      ${isModelCall(row) && seesPayloads() ? null : answer ? html`<${CallResult} view=${answer} unfinished=${UNFINISHED.includes(row.status)} />` : html`<${Answered} detail=${detail} />`}
    </div>
    <${CallFlow} answer=${answer?.data} />
    <${About} detail=${detail} />
    ${seesPayloads() && html`<${Elsewhere} detail=${detail} call=${call} />`}
    <${Related} detail=${detail} />
    <${Log} entries=${detail.log} />`;
}

const RUNNING_MS = 1000; // between two looks at a call that runs: its progress is no event of the broker

// What the application tells of the call of a message, as a view; null for a message that calls no task.
function useCallAnswer(id, row) {
  const isCall = Boolean(row && (row.task ? !row.task.startsWith("_") : row.callId));
  const [latest, setLatest] = useState(null);
  const quietMs = row?.status === "running" ? RUNNING_MS : undefined;
  const view = useView(isCall ? path`messages/${id}/call` : null, {}, { everyMs: 1000, quietMs, paused: isOver(latest) && !UNFINISHED.includes(row?.status), concerns: concerns(latest, row?.messageId) });
  useEffect(() => setLatest(view.data), [view.data]);
  return isCall ? view : null;
}

const callTitle = (task, call) => {
  const text = argumentText(call, (value) => brief(value, 40));
  return `${task}(${text.length > 140 ? `${text.slice(0, 139)}…` : text})`;
};

function Actions({ detail, call, edit, reload }) {
  if (!isOperator()) return null;
  const { row, deadLetterId, message } = detail;
  const name = target(row);
  const show = ({ messageId }) => {
    go(["messages", messageId]);
    return "Published again: this is the new message";
  };
  const cancel = () => ask({
    title: "Cancel this message?", confirm: "Cancel it", danger: true,
    text: row.status === "running" ? `The attempt of ${name} that runs is not stopped, but none follows it.` : `${name} will not be tried again.`,
    act: async () => {
      await remove(path`v2/messages/${row.messageId}`);
      reload();
      return "Canceled";
    },
  });
  const retry = () => ask({
    title: "Retry this dead letter?", confirm: "Retry", text: `${name} is published again as a new message with all its retries, and the dead letter is removed.`,
    act: async () => show(await post(path`v2/dlq/retry/${deadLetterId}`)),
  });
  const again = () => ask({
    title: "Run it again?", confirm: "Run again", text: `A new message calls ${name} with the same content. This one stays as it is.${flowNote(call)}`,
    act: async () => {
      const body = call ? againBody(call) : null;
      return show(await post(path`messages/${row.messageId}/again`, body === null ? {} : { body }));
    },
  });
  const canEdit = seesPayloads() && !message.bodyBase64 && !call?.hidden && !/^REDACTED:/.test(message.body ?? "");
  return html`${UNFINISHED.includes(row.status) && html`<button type="button" class="danger" onClick=${cancel}>Cancel</button>`}
    ${deadLetterId && html`<button type="button" class="primary" onClick=${retry}>Retry</button>`}
    ${seesPayloads() && html`<button type="button" onClick=${again}>Run again</button>`}
    ${canEdit && html`<button type="button" onClick=${edit}>Edit and run again</button>`}`;
}

const flowNote = (call) => (call?.envelope.get("flow") ? " What follows it in its flow runs again as well." : "");

function Waiting({ waiting }) {
  if (!waiting) return null;
  const { reason, text, untilMs, subject } = waiting;
  const page = { queue: "queues", "queue-paused": "queues", key: "queues", "key-paused": "queues", rate: "queues", host: "endpoints", probe: "endpoints" }[reason];
  return html`<p class="why" role="status"><b>Why it waits:</b> ${text}${untilMs ? html` <span class="quiet">(<${Time} ms=${untilMs} />)</span>` : ""}${page && subject && html` <a href=${href(page)}>${page === "queues" ? "Queues and limits" : "Endpoints"}</a>`}</p>`;
}

function Edit({ detail, call, close }) {
  const area = useRef(null);
  const [text, setText] = useState(() => (call ? editable(call) : detail.message.body ?? ""));
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    area.current.focus();
    area.current.setSelectionRange(0, 0);
    area.current.scrollTop = 0;
  }, []);
  const run = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      const { messageId } = await post(path`messages/${detail.row.messageId}/again`, { body: call ? againBody(call, text) : text });
      go(["messages", messageId]);
    } catch (failure) {
      setError(failure);
      setBusy(false);
    }
  };
  return html`<form class="panel pad edit" onSubmit=${run}>
    <label for="edited"><h2>${call ? `Arguments of ${detail.row.task}` : "Body"}</h2></label>
    <textarea ref=${area} id="edited" rows=${Math.min(30, text.split("\n").length + 1)} spellcheck=${false} value=${text} onInput=${(event) => setText(event.target.value)} aria-describedby="edit-note" />
    <p class="note" id="edit-note">A new message is published with it. This one stays as it is.${flowNote(call)}</p>
    <${Problem} error=${error} />
    <div class="actions"><button type="submit" class="primary" disabled=${busy}>Run</button><button type="button" onClick=${close} disabled=${busy}>Close</button></div>
  </form>`;
}

function Attempts({ detail }) {
  const { row, attempts } = detail;
  const [all, setAll] = useState(false);
  if (attempts.length === 0) return html`<${Panel} title="Attempts" id="attempts"><p class="quiet pad">None yet.</p><//>`;
  const shown = all ? attempts : attempts.slice(-LAST_ATTEMPTS);
  const hidden = attempts.length - shown.length;
  const ended = attempts.at(-1).endedMs ?? null;
  const toMs = row.finishedMs ?? (UNFINISHED.includes(row.status) ? Math.max(tick.value, ended ?? 0) : ended ?? tick.value);
  const fromMs = hidden ? attempts[hidden - 1].endedMs ?? shown[0].startedMs : Math.min(row.createdMs, shown[0].startedMs);
  return html`<${Panel} title="Attempts" id="attempts" note=${`${count(row.attempts)} of at most ${count((row.maxRetries ?? 0) + 1)}, ${span(toMs - row.createdMs)} in all`}
      actions=${hidden > 0 && html`<button type="button" class="small" onClick=${() => setAll(true)}>Show ${count(hidden)} earlier ones</button>`}>
    <${Timeline} label="Attempts over time" attempts=${shown} fromMs=${fromMs} toMs=${toMs}>${(attempt) => html`<${AttemptDetail} attempt=${attempt} />`}<//>
  <//>`;
}

function AttemptDetail({ attempt }) {
  const { response, timing = {} } = attempt;
  const error = taskError(response?.body);
  return html`<${Fragment}>
    ${(error ?? attempt.error) && attempt.outcome !== "delivered" && html`<pre class="raw error-text" tabindex="0" aria-label="Error">${[error?.error ?? attempt.error, ...(error?.at ?? []).map((place) => `    ${place}`)].join("\n")}</pre>`}
    <${Facts} facts=${[
      ["Started", exact(attempt.startedMs)], ["Ended", attempt.endedMs && exact(attempt.endedMs)], ...PARTS.map(([member, , name]) => [name, timing[member] === undefined ? null : span(timing[member])]),
      ["Sent", inBundle(timing)], ["Error code", error?.code], ["Next attempt", attempt.nextMs && html`<${Time} ms=${attempt.nextMs} />`],
    ]} />
    ${response && html`<${Answer} response=${response} isError=${Boolean(error)} />`}
  <//>`;
}

function Answer({ response, isError }) {
  const [tab, setTab] = useState(isError ? "Headers" : "Body");
  if (!seesPayloads()) return html`<p class="note pad">The answer had the status ${response.status}. Your token does not show what it contained.</p>`;
  return html`<${Fragment}><${Tabs} label="Answer" names=${["Body", "Headers"]} chosen=${tab} choose=${setTab} />
    <div class="pad" role="tabpanel" aria-label=${tab}>${tab === "Body" ? html`<${Body} text=${response.body} base64=${response.bodyBase64} label="Body of the answer" />` : html`<${HeaderList} header=${response.header} />`}</div><//>`;
}

function HeaderList({ header }) {
  const lines = Object.entries(header ?? {}).flatMap(([name, values]) => values.map((value) => [name, value]));
  if (lines.length === 0) return html`<p class="quiet">none</p>`;
  return html`<dl class="headers">${lines.map(([name, value], index) => html`<div key=${index}><dt>${name}</dt><dd class="mono">${value}</dd></div>`)}</dl>`;
}

const HIDDEN_PAYLOAD = html`<p class="quiet pad">Your token does not show contents.</p>`;

function Sent({ detail, call }) {
  const { message } = detail;
  const [tab, setTab] = useState(call ? "Arguments" : "Body");
  if (!seesPayloads()) return html`<${Panel} title="Request" id="request">${HIDDEN_PAYLOAD}<//>`;
  const names = [...(call ? ["Arguments"] : []), "Body", "Headers"];
  return html`<${Panel} title="Request" id="request">
    <${Tabs} label="Request" names=${names} chosen=${tab} choose=${setTab} />
    <div class="pad" role="tabpanel" aria-label=${tab}>
      ${tab === "Arguments" ? html`<${Arguments} call=${call} labels=${message.labels ?? []} />` : tab === "Headers" ? html`<${HeaderList} header=${message.header} />` : html`<${Body} text=${message.body} base64=${message.bodyBase64} label="Body of the request" />`}
    </div>
  <//>`;
}

function Arguments({ call, labels }) {
  if (call.hidden) return html`<p class="quiet">The arguments are ${call.hidden}: only the application can read them.</p>`;
  const values = argumentsOf(call);
  if (values.members.length === 0) return html`<p class="quiet">none</p>`;
  return html`<div class="tree"><ul class="flat">${values.members.map(([name, value], index) => html`<li key=${index}><span class="json-name">${name}</span>: <${Value} value=${value} open=${values.members.length <= 5} /></li>`)}</ul></div>
    <${SameValue} labels=${labels} />`;
}

// Links to the calls that have the same value of a searchable argument.
function SameValue({ labels }) {
  const found = labels.map((label) => /^qtasks\.arg\.(\w+)=(.*)$/.exec(label)).filter(Boolean);
  if (found.length === 0) return null;
  return html`<p class="note">Calls with the same ${found.map(([, name, value], index) => html`${index ? ", " : ""}<a key=${name} href=${href("messages", { filter: `arg.${name}:${quoted(value)}` })}>${name}</a>`)}</p>`;
}

function Answered({ detail }) {
  const delivered = detail.attempts.findLast((attempt) => attempt.outcome === "delivered");
  if (!delivered) return html`<${Panel} title="Answer" id="result"><p class="quiet pad">${UNFINISHED.includes(detail.row.status) ? "Not yet." : "None: no attempt was delivered."}</p><//>`;
  if (!seesPayloads()) return html`<${Panel} title="Answer" id="result">${HIDDEN_PAYLOAD}<//>`;
  const { response } = delivered;
  return html`<${Panel} title="Answer" id="result" note=${response ? `status ${response.status}` : null}><div class="pad">
    ${response ? html`<${Body} text=${response.body} base64=${response.bodyBase64} label="Answer" />` : html`<p class="quiet">The broker keeps no answer of a successful attempt.</p>`}
  </div><//>`;
}

function About({ detail }) {
  const { row, message, signature, run } = detail;
  const limits = [message.parallelism && `${count(message.parallelism)} at a time`, message.rate && `${count(message.rate)} per ${span((message.period ?? 1) * 1000)}`].filter(Boolean).join(", ");
  return html`<${Panel} title="About" id="about"><${Facts} facts=${[
    ["Destination", html`<span class="mono">${message.url ?? row.destination}</span>`, true], ["Method", message.method === "POST" ? null : message.method], ["Call", row.callId && html`<span class="mono">${row.callId}</span>`],
    ["Published", exact(row.createdMs)], ["Due", row.dueMs && row.dueMs !== row.createdMs ? exact(row.dueMs) : null], ["Finished", row.finishedMs && exact(row.finishedMs)],
    ["Queue", row.queue && html`<a href=${href("messages", { filter: `queue:${row.queue}` })}>${row.queue}</a>`], ["Flow-control key", row.flowKey && `${row.flowKey}${limits ? ` (${limits})` : ""}`],
    ["Labels", row.labels?.length ? row.labels.join(", ") : null], ["URL group", message.topicName && `${message.topicName}${message.endpointName ? `, ${message.endpointName}` : ""}`],
    ["Retry delay", delay(message.retryDelayExpression)], ["Callback", message.callback, true], ["Failure callback", message.failureCallback, true], ["Published from", message.callerIp],
    ["Schedule", run && html`<a href=${href(["schedules", run.scheduleId])}>${run.scheduleId}</a>${run.tickMs ? html`, run of ${exact(run.tickMs)}` : ""}`],
    ["Signed for", signature?.url !== message.url ? signature?.url : null, true], ["Signature", signature && `by ${signature.issuer}, key ${signature.keyId}`],
  ]} /><//>`;
}

const base = () => (session.value.service?.kind === "broker" ? new URL(".", document.baseURI).href : session.value.service?.url ?? "").replace(/\/$/, "");

function Elsewhere({ detail, call }) {
  const { message, row } = detail;
  const [tab, setTab] = useState("curl");
  const texts = {
    curl: asCurl(message, base(), call),
    Python: asPython(message, base(), row.task, call),
    "Command line": asCommand(row.task, call),
  };
  const names = Object.keys(texts).filter((name) => texts[name] !== null);
  const { text, notes } = texts[tab] ?? texts.curl;
  return html`<${Panel} title="Run it from elsewhere" id="elsewhere">
    <${Tabs} label="Language" names=${names} chosen=${tab} choose=${setTab} />
    <div class="pad" role="tabpanel" aria-label=${tab}><${Copy} text=${text} /><pre class="raw" tabindex="0" aria-label=${tab}>${text}</pre>${notes.map((note) => html`<p key=${note} class="note">${note}</p>`)}</div>
  <//>`;
}

function Related({ detail }) {
  const { parent, callbacks } = detail;
  if (!parent && callbacks.length === 0) return null;
  return html`<${Panel} title=${parent && callbacks.length === 0 ? "Callback of" : "Callbacks"} id="related">
    ${parent && html`<${Table} caption="The message that this one reports" rows=${[parent]} rowKey=${(row) => row.messageId} columns=${MESSAGE_COLUMNS} />`}
    ${callbacks.length > 0 && html`<${Table} caption="Callbacks" rows=${callbacks} rowKey=${(row) => row.messageId} columns=${MESSAGE_COLUMNS} />`}
  <//>`;
}

const LOG_COLUMNS = [
  { name: "time", title: "Time", cell: (entry) => html`<span class="number">${exact(entry.timeMs)}</span>` },
  { name: "state", title: "State", cell: (entry) => html`<span class="mono">${entry.state}</span>` },
  { name: "error", title: "Detail", wide: true, cell: (entry) => html`<div>${entry.error && html`<p class="clamp" title=${entry.error}>${entry.error}</p>`}${entry.nextMs && html`<p class="quiet">next at ${exact(entry.nextMs)}</p>`}</div>` },
];

function Log({ entries }) {
  const rows = entries.map((entry, index) => ({ ...entry, index }));
  return html`<${Panel} title="Log" id="log"><${Table} caption="Log" rows=${rows} rowKey=${(entry) => entry.index} columns=${LOG_COLUMNS} /><//>`;
}

// A delay between attempts is an expression in milliseconds, mostly a number.
function delay(expression) {
  return /^\d+$/.test(expression ?? "") ? span(Number(expression)) : expression;
}
