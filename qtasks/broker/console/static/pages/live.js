// What happens, line by line, the newest first.
import { html, useEffect, useRef, useState } from "../lib/view.js";
import { exact, plural, span, target } from "../lib/format.js";
import { connection, listen, reports } from "../lib/live.js";
import { href, replaceQuery } from "../lib/route.js";
import { Empty, Heading, Panel, Status } from "../parts/basic.js";
import { matches, TextFilter } from "../parts/lists.js";

const MOST = 500; // lines that are kept
const DRAW_MS = 250; // between two drawings

export function Live() {
  const [paused, setPaused] = useState(false);
  const [lines, fresh] = useLines(paused);
  const shown = lines.filter((line) => line.kind !== "message" || matches(textOf(line)));
  return html`<${Heading} title="Live stream" note=${`Events of messages as they happen, the last ${MOST} at most.`}>
      <${TextFilter} label="Filter events" />
      <button type="button" class="chip" aria-pressed=${reports.value} title="What the framework sends itself, to report how calls have ended" onClick=${() => replaceQuery({ reports: reports.value ? "" : "true" })}>with reports</button>
      <button type="button" class=${paused ? "primary" : ""} onClick=${() => setPaused(!paused)}>${paused ? `Go on${fresh ? ` (${fresh} new)` : ""}` : "Pause"}</button>
    <//>
    <${Panel}>${shown.length === 0
      ? html`<${Empty} title=${lines.length ? "No event contains the filter." : connection.value === "open" ? "Nothing has happened since this page was opened." : "Waiting for the broker."} />`
      : html`<ol class="stream" aria-label="Events, the newest first">${shown.map((line) => html`<${Line} key=${line.n} line=${line} />`)}</ol>`}<//>`;
}

// The lines to show, the newest first, and how many came since the pause.
function useLines(paused) {
  const [shown, setShown] = useState([]);
  const [fresh, setFresh] = useState(0);
  const all = useRef([]);
  const count = useRef(0);
  useEffect(() => {
    let timer = null;
    let since = 0;
    const draw = () => {
      timer = null;
      if (paused) setFresh(since);
      else setShown(all.current);
    };
    if (!paused) {
      setFresh(0);
      setShown(all.current);
    }
    const stop = listen((event) => {
      count.current += 1;
      since += event.kind === "message" ? 1 : 0;
      all.current = [{ n: count.current, ...event }, ...all.current.slice(0, MOST - 1)];
      timer ??= setTimeout(draw, DRAW_MS);
    });
    return () => {
      stop();
      clearTimeout(timer);
    };
  }, [paused]);
  return [shown, fresh];
}

const textOf = (line) => [line.task, line.destination, line.status, line.state, line.error, line.messageId].join(" ");

function Line({ line }) {
  if (line.kind === "skipped") return html`<li class="quiet">${plural(line.count, "event")} skipped: too many at once to show</li>`;
  if (line.kind === "gap") return html`<li class="quiet">connected again: what happened before is not shown</li>`;
  return html`<li><time class="mono quiet" datetime=${new Date(line.timeMs).toISOString()}>${exact(line.timeMs).slice(11, 23)}</time>
    <${Status} status=${line.status} /><a class="target" href=${href(["messages", line.messageId])}>${target(line) || line.messageId}</a>
    ${detail(line) && html`<span class="quiet">${detail(line)}</span>`}${line.error && html`<span class="bad clamp">${line.error}</span>`}</li>`;
}

function detail(line) {
  const parts = [];
  if (line.durationMs !== null && line.durationMs !== undefined) parts.push(span(line.durationMs));
  if (line.nextMs) parts.push(`next ${exact(line.nextMs).slice(11, 19)}`);
  return parts.join(", ");
}
