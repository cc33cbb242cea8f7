// When what is called again and again, and what became of it.
import { Fragment, html } from "../lib/view.js";
import { lacks, path, post, remove, seesPayloads } from "../lib/api.js";
import { exact, plural, span, target, zone } from "../lib/format.js";
import { hold, isLeaving } from "../lib/leaving.js";
import { useView } from "../lib/live.js";
import { go, href } from "../lib/route.js";
import { clockChange, readableZone, shortIn, viewersZone } from "../lib/zones.js";
import { Command, Empty, Facts, Heading, Loaded, Panel, Table, Time } from "../parts/basic.js";
import { Change } from "../parts/changes.js";
import { Body } from "../parts/json.js";
import { FilteredTable, TextFilter } from "../parts/lists.js";
import { Paused, PauseQuestion, setPaused } from "../parts/pauses.js";
import { Leaving } from "../parts/undo.js";

const LATE_MS = 1000; // a run that started later than this is shown as late
const SHOWN_RUNS = 8; // marks in the list

export const title = (item) => item.task ?? target(item);

export function Schedules() {
  const view = useView("schedules");
  const drift = useDrift();
  return html`<${Heading} title="Schedules"><${TextFilter} label="Filter schedules" /><//>
    <${Drift} drift=${drift} />
    <${Loaded} view=${view}>${({ schedules }) => html`<${Panel}><${FilteredTable} caption="Schedules" rows=${schedules} rowClass=${(item) => (isLeaving("schedule", item.schedule.scheduleId) ? "leaving" : "")} rowKey=${(item) => item.schedule.scheduleId}
      textOf=${(item) => `${title(item)} ${item.schedule.scheduleId} ${item.schedule.cron} ${item.english}`} columns=${columns(view.reload, drift)} empty=${html`<${None} />`} /><//>`}<//>`;
}

function None() {
  return html`<${Empty} title="No schedules." command=${'@tasks.cron("0 9 * * MON-FRI", tz="Europe/Berlin")'}>Declare one above a task; the application syncs it when it starts.<//>`;
}

// What the code of the applications declares, beside what is here: by the id of the schedule; null while nobody knows.
function useDrift() {
  const { data } = useView(lacks("drift") ? null : "drift", {}, { everyMs: 15_000 });
  return data ? new Map(data.schedules.map((line) => [line.scheduleId, line])) : null;
}

const STATES = { inStep: ["✓", "in step", "good"], differs: ["≠", "differs", "warn"], notSynced: ["○", "not synced", "warn"], leftOver: ["–", "left over", "warn"],
  noAnswer: ["?", "no answer", "quiet"], dynamic: ["·", "by a program", "quiet"], byHand: ["·", "by hand", "quiet"] };

function DriftState({ line }) {
  if (!line) return html`<span class="quiet">–</span>`;
  const [mark, words, className] = STATES[line.state];
  return html`<span class=${`together ${className}`} title=${line.text}><span aria-hidden="true">${mark}</span> ${words}</span>`;
}

// What a sync would change, and the command for it.
function Drift({ drift }) {
  const lines = [...(drift?.values() ?? [])].filter(({ state }) => ["differs", "notSynced", "leftOver"].includes(state));
  if (lines.length === 0) return null;
  return html`<section class="why" aria-label="Difference from the code"><p><b>${plural(lines.length, "schedule")} ${lines.length === 1 ? "is" : "are"} not as the code declares:</b></p>
    <ul class="list">${lines.map((line) => html`<li key=${line.scheduleId}><span class="mono">${line.scheduleId}</span> <${DriftState} line=${line} />. <span class="quiet">${line.text}</span></li>`)}</ul>
    <p class="note">Run this where the application is. It shows what a sync would do; <code>qtasks schedules sync</code> does it, with <code>--prune</code> also for what is left over.</p>
    <${Command} text="qtasks schedules diff" /></section>`;
}

const columns = (reload, drift) => [
  { name: "name", title: "Schedule", wide: true, main: true, cell: (item) => html`<div class="who"><a class="target clamp" href=${href(["schedules", item.schedule.scheduleId])}>${title(item)}</a><p class="quiet mono ellipsis" title=${item.schedule.scheduleId}>${item.schedule.scheduleId}</p></div>` },
  { name: "when", title: "When", wide: true, cell: (item) => html`<span>${inWords(item) && html`${item.english}<br />`}<code class="quiet">${expression(item)}</code>${!inWords(item) && item.timeZone && html`<br /><span class="quiet">${item.timeZone}</span>`}${item.clockChange && html`<br /><span class="warn" title=${item.clockChange}>clock change ahead</span>`}</span>` },
  { name: "next", title: "Next run", cell: (item) => html`<${NextRun} item=${item} />` },
  { name: "recent", title: "Past runs", cell: (item) => html`<${Marks} item=${item} most=${SHOWN_RUNS} />` },
  ...(drift ? [{ name: "code", title: "Code", cell: (item) => html`<${DriftState} line=${drift.get(item.schedule.scheduleId)} />` }] : []),
  { name: "actions", title: "Actions", cell: (item) => isLeaving("schedule", item.schedule.scheduleId) ? html`<${Leaving} />` : html`<span class="actions"><${RunNow} item=${item} reload=${reload} /><${Pause} item=${item} reload=${reload} /></span>` },
];

// False for an expression that is not in English, but as it was written.
const inWords = (item) => item.english !== item.schedule.cron;

// The expression without its zone, which stands beside it.
const expression = (item) => item.schedule.cron.replace(/^(CRON_)?TZ=\S+\s+/, "");

function NextRun({ item }) {
  if (item.schedule.error) return html`<span class="bad">${item.schedule.error}</span>`;
  if (item.schedule.isPaused) return html`<${Paused} facts=${item.schedule} />`;
  const [next] = item.nextMs ?? [];
  if (!next) return html`<span class="quiet">never again</span>`;
  return html`<span><${Time} ms=${next} /><br /><span class="quiet together">${shortIn(next, readableZone(item.timeZone))}</span></span>`;
}

const MARKS = { fired: "✓", missed: "–", failed: "✗" };
const isLate = (run) => run.lateMs >= LATE_MS;
const outcome = (run) => `${run.outcome}${isLate(run) ? `, ${span(run.lateMs)} late` : ""}`;

// One mark a run, oldest first, each a link to what was sent.
function Marks({ item, most }) {
  const runs = (item.recent ?? []).toSorted((one, other) => one.tickMs - other.tickMs).slice(-most);
  if (runs.length === 0) return html`<span class="quiet together">none yet</span>`;
  return html`<ol class="marks" aria-label="Past runs, oldest first">${runs.map((run) => {
    const text = `${exact(run.tickMs, zone.value)}: ${outcome(run)}`;
    const mark = html`<span aria-hidden="true">${isLate(run) && run.outcome === "fired" ? "◷" : MARKS[run.outcome] ?? "·"}</span>`;
    return html`<li key=${run.tickMs} class=${`mark mark-${run.outcome}${isLate(run) ? " mark-late" : ""}`}>${run.messages?.length
      ? html`<a href=${sent(item, run)} aria-label=${text} title=${text}>${mark}</a>`
      : html`<span role="img" aria-label=${text} title=${text}>${mark}</span>`}</li>`;
  })}</ol>`;
}

const sent = (item, run) => (run.messages.length === 1 ? href(["messages", run.messages[0]]) : href("messages", { filter: `schedule:${item.schedule.scheduleId}` }));

function RunNow({ item, reload, small = true }) {
  const { scheduleId } = item.schedule;
  const act = async () => {
    const { messages } = await post(path`schedules/${scheduleId}/run`);
    reload();
    return html`Sent ${plural(messages.length, "message")}: ${messages.slice(0, 3).map((id) => html`<a key=${id} href=${href(["messages", id])}>${id}</a> `)}`;
  };
  return html`<${Change} label="Run now" title=${`Run now ${title(item)}`} small=${small}
    asked=${{ title: `Run ${title(item)} now?`, text: `One run is sent at once to ${item.schedule.destination}. The times of the schedule stay as they are.`, act }} />`;
}

function Pause({ item, reload, small = true }) {
  const { scheduleId, isPaused } = item.schedule;
  const act = async (progress, form) => {
    await setPaused(path`v2/schedules/${scheduleId}`, !isPaused, form);
    reload();
    return `${title(item)} ${isPaused ? "runs again" : "is paused"}.`;
  };
  const text = isPaused
    ? `Its next run is that of ${shortIn(item.nextMs?.[0], readableZone(item.timeZone))}. Runs whose time came during the pause are not made up for.`
    : html`<${PauseQuestion} text="Nothing is sent until it is resumed. Messages that it has sent already go on. Runs whose time comes meanwhile are not made up for." />`;
  const label = isPaused ? "Resume" : "Pause";
  return html`<${Change} label=${label} title=${`${label} ${title(item)}`} small=${small} asked=${{ title: `${label} ${title(item)}?`, text, act }} />`;
}

function Delete({ item }) {
  const { scheduleId } = item.schedule;
  const target = path`v2/schedules/${scheduleId}`;
  const act = () => {
    hold({
      text: `Deleting the schedule ${title(item)}`, touches: (kind, id) => kind === "schedule" && id === scheduleId, last: () => [target, { method: "DELETE" }],
      send: async () => {
        await remove(target);
        return `${title(item)} is deleted.`;
      },
    });
    go("schedules");
  };
  const text = `The schedule ${scheduleId} (${item.english}) ends. You can undo it for ten seconds. Messages that it has sent stay. If the code of an application declares it, its next start creates it again.`;
  return html`<${Change} label="Delete" danger small=${false} asked=${{ title: `Delete ${title(item)}?`, text, act }} />`;
}

export function Schedule({ id }) {
  const view = useView("schedules");
  const drift = useDrift()?.get(id);
  const item = view.data?.schedules.find(({ schedule }) => schedule.scheduleId === id);
  if (view.data && !item) return html`<${Heading} title="No such schedule" /><${Empty} title=${`There is no schedule “${id}”.`}><a href=${href("schedules")}>All schedules</a><//>`;
  return html`<${Loaded} view=${view}>${() => html`<${Fragment}>
    <${Heading} title=${title(item)} note=${item.english}>
      <${RunNow} item=${item} reload=${view.reload} small=${false} /><${Pause} item=${item} reload=${view.reload} small=${false} /><${Delete} item=${item} />
    <//>
    ${drift && drift.state !== "byHand" && html`<p class="note">Code: <${DriftState} line=${drift} />. ${drift.text}</p>`}
    <div class="columns"><${NextRuns} item=${item} /><${PastRuns} item=${item} /></div>
    <${Sends} item=${item} />
  <//>`}<//>`;
}

function NextRuns({ item }) {
  const own = readableZone(item.timeZone);
  const viewers = viewersZone();
  const next = item.nextMs ?? [];
  const change = item.clockChange ?? clockChange(next, own);
  const columns = [
    { name: "own", title: own, cell: (ms) => shortIn(ms, own) },
    ...(viewers === own ? [] : [{ name: "viewers", title: viewers, cell: (ms) => shortIn(ms, viewers) }]),
    { name: "in", title: "From now", cell: (ms) => html`<${Time} ms=${ms} />` },
  ];
  return html`<${Panel} id="next-runs" title="Next runs" note=${item.schedule.isPaused ? html`if it were resumed now: <${Paused} facts=${item.schedule} />` : html`<code>${expression(item)}</code>`}>
    ${item.schedule.error && html`<p class="bad pad">${item.schedule.error}</p>`}
    ${change && html`<p class="warn pad">${change}</p>`}
    <${Table} caption="Next runs" rows=${next} rowKey=${String} columns=${columns} empty=${html`<p class="quiet pad">It does not run again.</p>`} /><//>`;
}

function PastRuns({ item }) {
  const runs = (item.recent ?? []).toSorted((one, other) => other.tickMs - one.tickMs);
  const own = readableZone(item.timeZone);
  const columns = [
    { name: "time", title: own, cell: (run) => html`<time datetime=${new Date(run.tickMs).toISOString()} title=${exact(run.tickMs, zone.value)}>${shortIn(run.tickMs, own)}</time>` },
    { name: "outcome", title: "Outcome", cell: (run) => html`<span class=${`outcome-${run.outcome}`}>${MARKS[run.outcome] ?? "·"} ${outcome(run)}</span>` },
    { name: "messages", title: "Sent", cell: (run) => (run.messages?.length ? html`<a href=${sent(item, run)}>${run.messages.length === 1 ? "the message" : plural(run.messages.length, "message")}</a>` : html`<span class="quiet">nothing</span>`) },
  ];
  return html`<${Panel} id="past-runs" title="Past runs" note=${item.missed ? `${item.missed} missed` : ""}>
    ${runs.some(isLate) && html`<p class="note pad">Late: the broker was stopped or had no time when the run was due.</p>`}
    ${runs.some((run) => run.outcome === "missed") && html`<p class="note pad">Missed: the broker did not run at that time. After a downtime the latest missed run is made up for, if it is less than a day old.</p>`}
    <${Table} caption="Past runs" rows=${runs} rowKey=${(run) => run.tickMs} columns=${columns} empty=${html`<p class="quiet pad">It has not run yet.</p>`} /><//>`;
}

const seconds = (value) => (value === undefined || value === null ? null : span(value * 1000));

function Sends({ item }) {
  const { schedule } = item;
  return html`<${Panel} id="sends" title="What it sends">
    <${Facts} facts=${[
      ["Destination", html`<span class="mono">${schedule.destination}</span>`, true], ["Method", schedule.method], ["Schedule", schedule.scheduleId], ["Expression", html`<code>${schedule.cron}</code>`],
      ["Time zone", item.timeZone], ["Created", html`<${Time} ms=${schedule.createdAt} />`], ["Last run", schedule.lastScheduleTime && html`<${Time} ms=${schedule.lastScheduleTime} />`],
      ["Retries", schedule.retries], ["Retry delay", schedule.retryDelayExpression], ["Delay", seconds(schedule.delay)], ["Timeout", seconds(schedule.timeout)],
      ["Queue", schedule.queueName], ["Flow-control key", schedule.flowControlKey], ["Labels", schedule.labels?.join(", ")],
      ["Callback", schedule.callback], ["Failure callback", schedule.failureCallback],
    ]} />
    ${seesPayloads() && html`<div class="pad"><h3>Body</h3><${Body} text=${schedule.body} base64=${schedule.bodyBase64} label="body of the schedule" /></div>`}
    ${seesPayloads() && schedule.header && html`<div class="pad"><h3>Headers</h3><${Facts} facts=${Object.entries(schedule.header).map(([name, values]) => [name, values.join(", ")])} /></div>`}
  <//>`;
}
