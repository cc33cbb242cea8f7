// What the application tells of the call of a message: its result or how far it is, and the flow around it.
import { Fragment, html } from "../lib/view.js";
import { seesPayloads, session } from "../lib/api.js";
import { bytes, count, exact, plural } from "../lib/format.js";
import { href } from "../lib/route.js";
import { Panel, Status } from "./basic.js";
import { Body } from "./json.js";

const ENDED = ["succeeded", "failed", "cancelled", "expired"];
const ENDED_STEPS = ["delivered", "failed", "canceled", "expired"];
const HIDDEN_FORMS = {
  encrypted: "It is encrypted: only the application can read it.",
  pickle: "It is a pickle: only the application can read it.",
  coded: "It is in a form of the application: only that can read it.",
  redacted: "It is not shown: its message is redacted.",
};

export const stepsOf = (nodes) => nodes.flatMap((node) => (node.members ? node.members.flatMap(stepsOf) : node.leftOut ? [] : [node]));

// True if nothing of the answer will change any more.
export const isOver = (answer) => ENDED.includes(answer?.call?.state) && (!answer.flow || ENDED_STEPS.includes(answer.flow.status));

// True if an event may have changed the answer.
export const concerns = (answer, messageId) => (event) =>
  event.kind !== "message" || event.messageId === messageId || (answer?.flow ? stepsOf(answer.flow.sequence).some((step) => step.messageId === event.messageId) : false);

export function CallResult({ view, unfinished }) {
  const { data: answer, error } = view;
  const call = answer?.call;
  const note = call && `${call.state}, attempt ${count(call.attempt)}, ${exact(call.updatedMs)}`;
  return html`<${Panel} title="Result" id="result" note=${note}><div class="pad result" aria-live="polite">${error ? html`<p class="quiet">It cannot be asked for: ${error.message}</p>` : !answer ? html`<p class="quiet">The application is asked.</p>` : html`<${Content} answer=${answer} unfinished=${unfinished} />`}</div><//>`;
}

function Content({ answer, unfinished }) {
  const { call } = answer;
  if (answer.error) return html`<p class="quiet">${answer.prefix ? `The application at ${answer.prefix} does not tell it: ` : ""}${answer.error}</p>`;
  if (!call) return html`<p class="quiet">${unfinished ? "Not yet: nothing is recorded of the call." : "Nothing is recorded of the call. Results are kept for a limited time."}</p>`;
  const { progress, result, error } = call;
  return html`${progress && !ENDED.includes(call.state) && html`<${Progress} progress=${progress} />`}
    ${error && html`<pre class="raw error-text" tabindex="0" aria-label="Error">${error}</pre>`}
    ${result ? html`<${ResultText} result=${result} />` : !error && !progress && html`<p class="quiet">${ENDED.includes(call.state) ? (seesPayloads() ? "None." : "Your token does not show contents.") : "Not yet."}</p>`}`;
}

function Progress({ progress: { done, total, note } }) {
  const text = total === null ? `${count(done)} done` : `${count(done)} of ${count(total)} (${Math.floor(total > 0 ? Math.min(100, (100 * done) / total) : 100)} %)`;
  return html`<div class="progress"><progress aria-label="Progress" max=${total ?? undefined} value=${total === null ? undefined : done} /><span class="number">${text}</span>${note && html`<span>${note}</span>`}</div>`;
}

function ResultText({ result }) {
  if (result.form !== "json") return html`<p class="quiet">${HIDDEN_FORMS[result.form] ?? `Its form is ${result.form}.`} ${bytes(result.bytes)}</p>`;
  if (!result.isCut) return html`<${Body} text=${result.text} label="Result" />`;
  return html`<p class="quiet">The beginning of ${bytes(result.bytes)}:</p><pre class="raw" tabindex="0" aria-label="Beginning of the result">${result.text}</pre>`;
}

export function CallFlow({ answer }) {
  if (!answer?.flow) return null;
  const { sequence, status } = answer.flow;
  const counts = countsOf(sequence);
  const total = totalOf(counts);
  return html`<${Panel} title="Flow" id="flow" note=${html`<${Fragment}><${Status} status=${status} /> ${count(counts.delivered ?? 0)} of ${plural(total, "call")} delivered<//>`}><div class="pad flow"><${Sequence} nodes=${sequence} /></div><//>`;
}

const totalOf = (counts) => Object.values(counts).reduce((sum, number) => sum + number, 0);

function countsOf(nodes, counts = {}) {
  for (const node of nodes) {
    if (node.members) for (const member of node.members) countsOf(member, counts);
    else for (const [status, number] of node.leftOut ? Object.entries(node.leftOut) : [[node.status, 1]]) counts[status] = (counts[status] ?? 0) + number;
  }
  return counts;
}

const Sequence = ({ nodes }) => html`<ol>${nodes.map((node, index) => html`<li key=${index} class=${node.isThis ? "this" : ""} aria-current=${node.isThis ? "step" : undefined}><${Node} node=${node} /></li>`)}</ol>`;

function Node({ node }) {
  if (node.leftOut) return html`<${LeftOut} counts=${node.leftOut} />`;
  if (!node.members) return html`<${Step} step=${node} />`;
  return html`<p class="note">Side by side${node.collect === "successes" ? "; what follows gets the results that there are" : ""}:</p>
    <ul>${node.members.map((member, index) => html`<li key=${index}>${member.length === 1 && !member[0].members ? html`<div class=${member[0].isThis ? "this" : ""} aria-current=${member[0].isThis ? "step" : undefined}><${Node} node=${member[0]} /></div>` : html`<${Sequence} nodes=${member} />`}</li>`)}</ul>`;
}

const isHosted = () => session.value?.service?.kind === "qstash"; // which finds no message by the id of its call

function Step({ step }) {
  const isUnsent = step.status === "waiting" && !step.messageId;
  const name = step.messageId && !step.isThis ? html`<a href=${href(["messages", step.callId])} title=${step.callId}>${step.task}</a>` : html`<b>${step.task}</b>`;
  return html`${isUnsent ? html`<span class="status status-waiting"><span aria-hidden="true">○</span> ${isHosted() ? "not begun" : "not sent yet"}</span>` : html`<${Status} status=${step.status} />`} ${name}${step.isThis ? html` <span class="quiet">this call</span>` : !isUnsent && !step.messageId && !isHosted() && html` <span class="quiet">without a message</span>`}`;
}

function LeftOut({ counts }) {
  const parts = Object.entries(counts).map(([status, number]) => `${count(number)} ${status}`);
  return html`<span class="quiet">${parts.length === 1 ? `${parts[0].replace(" ", " more ")}` : `${count(totalOf(counts))} more: ${parts.join(", ")}`}</span>`;
}
