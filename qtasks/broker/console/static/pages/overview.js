// What happens now, over time, and what needs a person.
import { Fragment, html } from "../lib/view.js";
import { now, tick, useView } from "../lib/live.js";
import { count, perMinute, plural, short, span, target } from "../lib/format.js";
import { quoted } from "../lib/filter.js";
import { href, replaceQuery, route } from "../lib/route.js";
import { Command, Heading, Loaded, MessageLink, Panel, Table, Time } from "../parts/basic.js";
import { Bars, Lines } from "../parts/charts.js";

const SPANS = [[15, "15 min"], [60, "1 h"], [360, "6 h"], [1440, "24 h"], [10_080, "7 d"]];
const SHOWN = 8;

export function Overview() {
  const minutes = SPANS.find(([value]) => String(value) === route.value.query.minutes)?.[0] ?? 60;
  const view = useView("overview", { minutes });
  return html`<${Heading} title="Overview"><${Spans} chosen=${minutes} /><//>
    <${Loaded} view=${{ ...view, data: view.data ?? view.stale }}>${(data) => html`<${Content} data=${data} minutes=${minutes} />`}<//>`;
}

function Spans({ chosen }) {
  return html`<div class="chips" role="group" aria-label="Span">${SPANS.map(([value, name]) => html`<button key=${value} type="button" class="chip" aria-pressed=${value === chosen} onClick=${() => replaceQuery({ minutes: value })}>${name}</button>`)}</div>`;
}

function Content({ data, minutes }) {
  const counts = now.value ?? data.now;
  return html`<${Fragment}>
    ${data.behind > 0 && html`<p class="note" role="status">The figures of earlier messages are being counted: ${count(data.behind)} entries of the log are left.</p>`}
    ${!data.checklist.run && html`<${Checklist} done=${data.checklist} />`}
    <${Tiles} counts=${counts} />
    <${Held} held=${data.held} />
    ${data.oldestWaiting && html`<${Oldest} row=${data.oldestWaiting} timeMs=${data.timeMs} />`}
    <div class="columns charts">
      <section class="panel" aria-label="Throughput"><${Throughput} series=${data.series} /></section>
      <section class="panel" aria-label="Latency"><${Latency} series=${data.series} /></section>
    </div>
    <${Backlog} destinations=${data.destinations} />
    <div class="columns lists">
      <${Failing} destinations=${data.destinations} minutes=${minutes} />
      <${Slowest} destinations=${data.destinations} />
      <${NextSchedules} schedules=${data.nextSchedules} />
    </div>
  <//>`;
}

function Tiles({ counts }) {
  const tile = (name, address, alarm) => html`<a key=${name} class=${`tile ${alarm && counts[name] > 0 ? "alarm" : ""}`} href=${address}><b title=${count(counts[name])}>${short(counts[name])}</b>${name}</a>`;
  return html`<div class="tiles">
    ${["waiting", "running", "retrying", "scheduled"].map((name) => tile(name, href("messages", { filter: `status:${name}` }), false))}
    ${tile("dead", href("dead-letters"), true)}
  </div>`;
}

// What somebody has paused: the first thing to know where something waits.
function Held({ held }) {
  const paused = [["queues", "queue", "queues"], ["keys", "flow-control key", "queues"], ["schedules", "schedule", "schedules"]].filter(([name]) => held?.[name] > 0);
  if (paused.length === 0) return null;
  return html`<p class="why"><b>Paused:</b> ${paused.map(([name, word, page], index) => html`${index > 0 ? ", " : ""}<a key=${name} href=${href(page)}>${plural(held[name], word)}</a>`)}.</p>`;
}

function Oldest({ row, timeMs }) {
  const since = row.sinceMs ?? row.dueMs;
  return html`<p class="note">Waiting longest: <${MessageLink} row=${row} />, for ${span(Math.max(0, Math.max(timeMs, tick.value) - since))}. Its page says why.</p>`;
}

const column = (series, name) => series.points.map((point) => point[name] ?? 0);
const line = (series, name) => series.points.map((point) => point[name] ?? null);

function Throughput({ series }) {
  return html`<${Bars} label=${`Attempts per ${series.stepMs === 60_000 ? "minute" : series.stepMs === 3_600_000 ? "hour" : span(series.stepMs)}`} fromMs=${series.fromMs} stepMs=${series.stepMs} series=${[
    { name: "delivered", className: "", values: column(series, "delivered") },
    { name: "retried", className: "series-warn", values: column(series, "retried") },
    { name: "failed", className: "series-bad", values: column(series, "failed") },
  ]} />`;
}

function Latency({ series }) {
  return html`<${Lines} label="Durations" fromMs=${series.fromMs} stepMs=${series.stepMs} series=${[
    { name: "median", className: "", values: line(series, "p50Ms") },
    { name: "95 %", className: "series-warn", values: line(series, "p95Ms") },
    { name: "waits, 95 %", className: "series-quiet", values: line(series, "waitP95Ms") },
  ]} />`;
}

const filterOf = (row, more = "") => href("messages", { filter: `${row.task ? `task:${quoted(row.task)}` : `url:${quoted(row.destination)}`}${more}` });
const backlogOf = (row) => row.waiting + row.running + row.retrying;
const NAME = { name: "target", title: "Task or destination", wide: true, main: true, cell: (row) => html`<a class="target clamp" href=${filterOf(row)} title=${row.destination}>${target(row)}</a>` };
const linked = (row, name) => (row[name] > 0 ? html`<a href=${filterOf(row, ` status:${name}`)}>${count(row[name])}</a>` : html`<span class="quiet zero">0</span>`);
const number = (name, title, cell) => ({ name, title, number: true, cell });

function Backlog({ destinations }) {
  const rows = destinations.filter((row) => backlogOf(row) + row.scheduled > 0).sort((a, b) => backlogOf(b) - backlogOf(a)).slice(0, SHOWN);
  return html`<${Panel} title="Backlog" id="backlog" note="what waits, and how long it takes at the rate of the last five minutes">
    <${Table} caption="Backlog" rowKey=${(row) => `${row.destination} ${row.task}`} rows=${rows} empty=${html`<p class="quiet pad">Nothing waits.</p>`} columns=${[
      NAME,
      number("waiting", "Waiting", (row) => linked(row, "waiting")),
      number("running", "Running", (row) => linked(row, "running")),
      number("retrying", "Retrying", (row) => linked(row, "retrying")),
      number("scheduled", "Scheduled", (row) => linked(row, "scheduled")),
      number("rate", "Per minute", (row) => perMinute(row.perMinute)),
      number("empty", "Time to empty", (row) => (backlogOf(row) === 0 ? "–" : row.timeToEmptyS === null ? html`<span class="warn">nothing is delivered</span>` : span(row.timeToEmptyS * 1000))),
    ]} />
  <//>`;
}

function Failing({ destinations, minutes }) {
  const rows = destinations.filter((row) => row.failed + row.retried > 0).sort((a, b) => b.failed - a.failed || b.retried - a.retried).slice(0, SHOWN);
  return html`<${Panel} title="Failing most" id="failing" actions=${html`<a href=${href("failures")}>All failures</a>`}>
    <${Table} caption="Failing most" rowKey=${(row) => `${row.destination} ${row.task}`} rows=${rows} empty=${html`<p class="quiet pad">Nothing has failed in the last ${SPANS.find(([value]) => value === minutes)[1]}.</p>`} columns=${[
      NAME,
      number("failed", "Failed", (row) => html`<span class=${row.failed > 0 ? "bad" : "quiet"}>${count(row.failed)}</span>`),
      number("retried", "Retried", (row) => count(row.retried)),
      number("share", "Of all", (row) => share(row.failed + row.retried, row.failed + row.retried + row.delivered)),
    ]} />
  <//>`;
}

function share(part, all) {
  const percent = (part / all) * 100;
  return `${percent > 0 && percent < 1 ? "< 1" : Math.round(percent)} %`;
}

function Slowest({ destinations }) {
  const rows = destinations.filter((row) => row.p95Ms !== null && row.p95Ms !== undefined && !row.task?.startsWith("_")).sort((a, b) => b.p95Ms - a.p95Ms).slice(0, SHOWN);
  return html`<${Panel} title="Slowest" id="slowest">
    <${Table} caption="Slowest" rowKey=${(row) => `${row.destination} ${row.task}`} rows=${rows} empty=${html`<p class="quiet pad">Nothing has been delivered.</p>`} columns=${[
      NAME,
      number("p50", "Median", (row) => span(row.p50Ms)),
      number("p95", "95 %", (row) => span(row.p95Ms)),
      number("delivered", "Delivered", (row) => count(row.delivered)),
    ]} />
  <//>`;
}

function NextSchedules({ schedules }) {
  return html`<${Panel} title="Next schedules" id="next" actions=${html`<a href=${href("schedules")}>All schedules</a>`}>
    <${Table} caption="Next schedules" rowKey=${(row) => row.scheduleId} rows=${schedules} empty=${html`<p class="quiet pad">There is no schedule.</p>`} columns=${[
      { name: "target", title: "Task or destination", wide: true, main: true, cell: (row) => html`<a class="target clamp" href=${href(["schedules", row.scheduleId])} title=${row.scheduleId}>${target(row)}</a>` },
      number("next", "Next run", (row) => html`<${Time} ms=${row.nextMs} />`),
    ]} />
  <//>`;
}

const STEPS = [
  ["broker", "The broker runs", "It answers this page.", null],
  ["dispatcher", "An application answers", "Write a task, and start it. The broker learns of the application with its first delivery.", "qtasks dev"],
  ["message", "A first message", "Call the task from Python, hello.delay(\"Ada\"), or from a terminal.", "qtasks send hello Ada"],
  ["run", "A first run", "Delivered messages appear here and under Messages.", null],
];

const PROGRAM = `from qtasks import QTasks

tasks = QTasks()

@tasks.task
def hello(name: str) -> str:
    return f"hello {name}"`;

function Checklist({ done }) {
  const next = STEPS.find(([name]) => !done[name])?.[0];
  return html`<${Panel} title="The first run" id="checklist">
    <ol class="checklist">${STEPS.map(([name, title, text, command]) => html`<li key=${name} class=${done[name] ? "done" : name === next ? "next" : ""}>
      <span class="mark" aria-hidden="true">${done[name] ? "✓" : "○"}</span>
      <div><h3>${title}<span class="hidden">${done[name] ? ", done" : ", to do"}</span></h3>
        ${!done[name] && html`<p class="quiet">${text}</p>${name === "dispatcher" && html`<p class="note">tasks.py</p><pre class="raw" tabindex="0" aria-label="tasks.py">${PROGRAM}</pre>`}${command && html`<${Command} text=${command} />`}`}</div>
    </li>`)}</ol>
  <//>`;
}
