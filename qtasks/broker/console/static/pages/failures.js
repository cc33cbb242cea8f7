// Errors that are the same but for numbers, ids and addresses, as one failure each; a failure with its messages.
import { Fragment, html, useState } from "../lib/view.js";
import { isOperator, post, seesPayloads } from "../lib/api.js";
import { useView } from "../lib/live.js";
import { count, plural, target } from "../lib/format.js";
import { quoted } from "../lib/filter.js";
import { inPortions } from "../lib/portions.js";
import { go, href, replaceQuery, route } from "../lib/route.js";
import { Empty, Facts, Heading, Loaded, Panel, Problem, Table, Time } from "../parts/basic.js";
import { ForAssistant } from "../parts/assistant.js";
import { Sparkline } from "../parts/charts.js";
import { Change } from "../parts/changes.js";
import { ask } from "../parts/dialog.js";
import { FilterBar, otherThanFilter } from "../parts/filter.js";
import { MESSAGE_COLUMNS, Pages } from "../parts/rows.js";

const SPANS = [[24, "24 h"], [72, "3 d"], [168, "7 d"]];

const hoursOf = () => SPANS.find(([value]) => String(value) === route.value.query.hours)?.[0] ?? 24;

function retry(failure, reload) {
  const expected = failure.deadLetters;
  const run = inPortions(expected, async (left) => {
    const { retried, left: rest } = await post(`failures/${encodeURIComponent(failure.fingerprint)}/retry`, { expected: left });
    return { done: retried, left: rest };
  });
  ask({
    title: `Retry ${plural(expected, "dead letter")}?`, confirm: `Retry ${count(expected)}`,
    text: html`<p>All dead letters of <b>${target(failure)}</b> with this error are published again as new messages:</p><div class="raw"><p class="clamp">${failure.error}</p></div>`,
    canStop: true,
    act: async (progress, form, stop) => {
      const done = await run(progress, stop);
      reload();
      return `${plural(done, "message")} published again`;
    },
  });
}

function RetryAll({ failure, reload, small = false }) {
  if (!isOperator() || !failure.deadLetters) return null;
  return html`<button type="button" class=${small ? "small" : "primary"} onClick=${() => retry(failure, reload)}>Retry ${count(failure.deadLetters)}</button>`;
}

const MUTES = [[1, "1 hour"], [24, "1 day"], [168, "1 week"], [720, "30 days"]];

// A known failure stays out of the list for a time.
function Mute({ failure, reload, small = false }) {
  const set = (hours) => post(`failures/${encodeURIComponent(failure.fingerprint)}/mute`, { hours });
  const name = target(failure);
  const asked = failure.muted ? {
    title: `Show ${name} again?`, text: "It stands in the list of failures again.",
    act: async () => {
      await set(0);
      reload();
      return "It is shown again.";
    },
  } : {
    title: `Mute this failure of ${name}?`,
    text: html`<p>It stays out of the list for that time, for everyone. It is counted and can be retried all the same; another error of ${name} is shown.</p>
      <div class="field"><label for="mute-hours">For</label><select id="mute-hours" name="hours">${MUTES.map(([hours, words]) => html`<option key=${hours} value=${hours} selected=${hours === 24}>${words}</option>`)}</select></div>`,
    act: async (progress, form) => {
      await set(Number(form.get("hours")));
      reload();
      return "It is muted.";
    },
  };
  return html`<${Change} label=${failure.muted ? "Show again" : "Mute"} title=${`${failure.muted ? "Show again" : "Mute"} ${name}`} small=${small} asked=${asked} />`;
}

export function Failures() {
  const { filter = "" } = route.value.query;
  const hours = hoursOf();
  const view = useView("failures", { filter, hours });
  return html`<${Heading} title="Failures" note="Errors that differ only in numbers, ids, addresses and quoted values are one failure.">
      <div class="chips" role="group" aria-label="Span">${SPANS.map(([value, name]) => html`<button key=${value} type="button" class="chip" aria-pressed=${value === hours} onClick=${() => replaceQuery({ hours: value })}>${name}</button>`)}</div>
    <//>
    <${FilterBar} value=${filter} apply=${(text) => go("failures", { filter: text, hours: route.value.query.hours })} error=${view.error} placeholder="task:charge error:timeout" />
    <${Loaded} view=${view} shown=${otherThanFilter}>${(data) => html`<${Lists} failures=${data.failures} filter=${filter} hours=${hours} reload=${view.reload} />`}<//>`;
}

function Lists({ failures, filter, hours, reload }) {
  const muted = failures.filter((row) => row.muted);
  const nothing = filter ? "No failure matches." : `Nothing ${muted.length ? "else " : ""}has failed in the last ${SPANS.find(([value]) => value === hours)[1]}.`;
  const table = (caption, rows) => html`<${Table} caption=${caption} rows=${rows} rowKey=${(row) => row.fingerprint} columns=${columns(hours, reload)} empty=${html`<${Empty} title=${nothing} />`} />`;
  return html`<${Fragment}><${Panel}>${table("Failures", failures.filter((row) => !row.muted))}<//>
    ${muted.length > 0 && html`<details class="panel muted"><summary>${count(muted.length)} muted</summary>${table("Muted failures", muted)}</details>`}<//>`;
}

const ErrorText = ({ failure }) => (seesPayloads() ? html`<span class="mono clamp" title=${failure.error}>${failure.error}</span>` : html`<span class="quiet">Your token does not show errors.</span>`);

const columns = (hours, reload) => [
  { name: "failure", title: "Failure", wide: true, main: true, cell: (row) => html`<div><a class="target clamp" href=${href(["failures", row.fingerprint], { hours: route.value.query.hours })}>${target(row)}</a><${ErrorText} failure=${row} /><${Until} muted=${row.muted} /></div>` },
  { name: "sparkline", title: `Last ${SPANS.find(([value]) => value === hours)[1]}`, cell: (row) => html`<${Trend} failure=${row} hours=${hours} />` },
  { name: "attempts", title: "Attempts", number: true, cell: (row) => count(row.attempts) },
  { name: "messages", title: "Messages", number: true, cell: (row) => count(row.messages) },
  { name: "first", title: "First", number: true, cell: (row) => html`<${Time} ms=${row.firstMs} />` },
  { name: "last", title: "Last", number: true, cell: (row) => html`<${Time} ms=${row.lastMs} />` },
  { name: "dead", title: "Dead letters", number: true, cell: (row) => (row.deadLetters ? html`<${RetryAll} failure=${row} reload=${reload} small />${!isOperator() && count(row.deadLetters)}` : html`<span class="quiet zero">0</span>`) },
];

function Until({ muted }) {
  return muted && html`<p class="quiet">muted by ${muted.who}, ends <${Time} ms=${muted.untilMs} /></p>`;
}

function Trend({ failure, hours, width = 120, height = 24 }) {
  const sum = failure.sparkline.reduce((a, b) => a + b, 0);
  return html`<span class="trend"><${Sparkline} values=${failure.sparkline} width=${width} height=${height} label=${`${plural(sum, "failed attempt")} in the last ${hours} hours, at most ${count(Math.max(0, ...failure.sparkline))} in a ${hours / 24 === 1 ? "one-hour" : `${hours / 24}-hour`} part`} /></span>`;
}

export function Failure({ id }) {
  const { cursor } = route.value.query;
  const hours = hoursOf();
  const [shown] = useState(id);
  const view = useView(`failures/${encodeURIComponent(shown)}`, { cursor, hours });
  const failure = view.data ?? view.stale;
  return html`<${Heading} title=${failure ? target(failure) : "Failure"} note=${html`<a href=${href("failures")}>Failures</a>`}>
      ${failure && html`<a class="button" href=${href("messages", { filter: messagesOf(failure) })}>As messages</a><${ForAssistant} path=${`failures/${encodeURIComponent(shown)}`} /><${Mute} failure=${failure} reload=${view.reload} /><${RetryAll} failure=${failure} reload=${view.reload} />`}
    <//>
    ${view.error?.status === 404 ? html`<${Empty} title="There is no such failure any more." />` : html`<${Problem} error=${view.error} retry=${view.reload} />`}
    ${failure ? html`<${Content} failure=${failure} hours=${hours} cursor=${cursor} />` : !view.error && html`<div class="loading" role="status">Loading</div>`}`;
}

const messagesOf = (failure) => `${failure.task ? `task:${quoted(failure.task)}` : `url:${quoted(failure.destination)}`} status:failed,retrying`;

function Content({ failure, hours, cursor }) {
  return html`<${Fragment}>
    <${Until} muted=${failure.muted} />
    <${Panel}>
      <div class="pad">${seesPayloads() ? html`<pre class="raw" tabindex="0" aria-label="Error">${failure.error}</pre>` : html`<p class="quiet">Your token does not show errors.</p>`}</div>
      <${Facts} facts=${[
        ["First seen", html`<${Time} ms=${failure.firstMs} />`], ["Last seen", html`<${Time} ms=${failure.lastMs} />`], ["Failed attempts", count(failure.attempts)],
        ["Dead letters", count(failure.deadLetters)], ["Destination", html`<span class="mono">${failure.destination}</span>`, true],
        ["Newest", failure.sampleId && html`<a href=${href(["messages", failure.sampleId])} class="mono">${failure.sampleId}</a>`, true],
      ]} />
      <div class="pad"><p class="note">Failed attempts, last ${SPANS.find(([value]) => value === hours)[1]}</p><${Trend} failure=${failure} hours=${hours} width=${480} height=${48} /></div>
    <//>
    <${Panel} title="Messages" id="failed-messages" note="newest first">
      <${Table} caption="Messages with this error" rows=${failure.rows} rowKey=${(row) => row.messageId} columns=${MESSAGE_COLUMNS} />
      <${Pages} page=${["failures", failure.fingerprint]} query=${{ hours: route.value.query.hours }} cursor=${failure.cursor} isOld=${Boolean(cursor)} />
    <//>
  <//>`;
}
