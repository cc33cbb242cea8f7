// The attempts of a message as bars on one time axis. Waits that are much longer than the attempts are drawn shorter, with a mark.
import { html } from "../lib/view.js";
import { axisTime, exact, plural, span } from "../lib/format.js";

const WAITS_SHARE = 1.2; // the room of all waits together, at most, in that of the attempts

// The stretches of time from `fromMs` to `toMs`: {startMs, endMs, isWait, isBroken, left, width}, the last two in percent.
function stretchesOf(fromMs, toMs, attempts) {
  const stretches = [];
  let at = fromMs;
  const add = (endMs, isWait) => {
    if (endMs > at || !isWait) stretches.push({ startMs: at, endMs: Math.max(at, endMs), isWait });
    at = Math.max(at, endMs);
  };
  for (const attempt of attempts) {
    add(attempt.startedMs, true);
    add(attempt.endedMs ?? toMs, false);
  }
  add(toMs, true);
  const sum = (isWait) => stretches.filter((one) => one.isWait === isWait).reduce((total, one) => total + one.endMs - one.startMs, 0);
  const waits = stretches.filter((one) => one.isWait).length;
  const longest = attempts.length ? Math.max(1, (sum(false) * WAITS_SHARE) / Math.max(1, waits)) : Infinity;
  const room = stretches.map((one) => (one.isWait ? Math.min(one.endMs - one.startMs, longest) : Math.max(one.endMs - one.startMs, sum(false) / 100)));
  const total = room.reduce((a, b) => a + b, 0) || 1;
  let left = 0;
  return stretches.map((one, index) => {
    const width = (room[index] / total) * 100;
    left += width;
    return { ...one, left: left - width, width, isBroken: one.isWait && one.endMs - one.startMs > longest };
  });
}

// Where a time lies on the axis, in percent.
function place(stretches, ms) {
  const stretch = stretches.find((one) => ms <= one.endMs) ?? stretches.at(-1);
  if (!stretch) return 0;
  const length = stretch.endMs - stretch.startMs;
  const part = length === 0 ? 0 : Math.min(1, Math.max(0, (ms - stretch.startMs) / length));
  return stretch.left + part * stretch.width;
}

// The parts of an attempt: member of its `timing`, class, name.
export const PARTS = [["queuedMs", "queued", "Waiting for its turn"], ["connectMs", "connect", "Connecting"], ["firstByteMs", "first-byte", "Waiting for the first byte"], ["bodyMs", "body", "Reading the answer"]];
const [QUEUED, ...SENT] = PARTS;
const OWN = [null, "own", "In the broker"]; // what is left: signing, storing the end

export const inBundle = ({ bundled }) => (bundled > 1 ? `in a bundle with ${plural(bundled - 1, "other message")}` : null);

// The parts of an attempt with their times: {className, name, fromMs, toMs}.
function partsOf(attempt, endMs) {
  const { timing = {}, startedMs } = attempt;
  const parts = [];
  const add = (className, name, fromMs, lengthMs) => {
    const toMs = Math.min(endMs, fromMs + lengthMs);
    parts.push({ className, name, fromMs, toMs, words: `${name.toLowerCase()}: ${span(lengthMs)}` });
    return toMs;
  };
  if (timing.queuedMs !== undefined) add(QUEUED[1], QUEUED[2], startedMs - timing.queuedMs, timing.queuedMs);
  let at = startedMs;
  for (const [member, className, name] of SENT) if (timing[member] !== undefined) at = add(className, name, at, timing[member]);
  if (at === startedMs) add("rest", "The attempt", at, endMs - at);
  else if (at < endMs) add(OWN[1], OWN[2], at, endMs - at);
  return parts;
}

// How far the middle of a stretch is from the nearer end of the axis, in percent: the times at the ends need room.
const fromEdge = ({ left, width }) => Math.min(left + width / 2, 100 - left - width / 2);

// `children(attempt)` is what an opened attempt shows.
export function Timeline({ attempts, fromMs, toMs, children, label }) {
  const stretches = stretchesOf(fromMs, toMs, attempts);
  const classes = new Set(attempts.flatMap((attempt) => partsOf(attempt, attempt.endedMs ?? toMs).map((part) => part.className)));
  return html`<div class="timeline" role="group" aria-label=${label}>
    ${SENT.some(([, className]) => classes.has(className)) && html`<p class="legend parts">${[...PARTS, OWN].filter(([, className]) => classes.has(className)).map(([, className, name]) => html`<span key=${className}><i class=${className}></i>${name}</span>`)}</p>`}
    <p class="scale" aria-hidden="true"><span>${axisTime(fromMs, toMs - fromMs)}</span>${stretches.filter((one) => one.isBroken && one.width > 5 && fromEdge(one) > 12).map((one) => html`<span key=${one.startMs} class=${`gap ${fromEdge(one) < 27 ? "edge" : ""}`} style=${{ left: `${one.left}%`, width: `${one.width}%` }}>// ${span(one.endMs - one.startMs)}</span>`)}<span>${axisTime(toMs, toMs - fromMs)}</span></p>
    ${attempts.map((attempt, index) => html`<${Attempt} key=${`${attempt.number} ${attempt.startedMs}`} attempt=${attempt} previous=${attempts[index - 1]} stretches=${stretches} fromMs=${fromMs} toMs=${toMs} isOpen=${index === attempts.length - 1 && attempt.outcome !== "delivered"}>${children(attempt)}<//>`)}
  </div>`;
}

const MARKS = { delivered: "✓", failed: "✗", interrupted: "↻", running: "◐" };

function Attempt({ attempt, previous, stretches, fromMs, toMs, isOpen, children }) {
  const endMs = Math.max(attempt.startedMs, attempt.endedMs ?? toMs);
  const since = previous?.endedMs ?? fromMs;
  const at = (ms) => place(stretches, ms);
  const parts = partsOf(attempt, endMs);
  const dueMs = attempt.startedMs - (attempt.timing?.queuedMs ?? 0);
  const bars = [{ className: "delay", fromMs: since, toMs: dueMs, words: `not due for ${span(dueMs - since)}` }, ...parts]
    .filter((bar) => bar.toMs > bar.fromMs || bar.className === "rest")
    .map((bar) => ({ ...bar, left: at(bar.fromMs), width: Math.max(0, at(bar.toMs) - at(bar.fromMs)) }));
  const status = attempt.response?.status;
  return html`<details class="attempt" open=${isOpen}>
    <summary>
      <span class=${`attempt-name outcome-${attempt.outcome}`}><span aria-hidden="true">${MARKS[attempt.outcome] ?? "·"}</span> ${attempt.number} ${attempt.outcome}${status ? html` <span class="quiet">${status}</span>` : ""}</span>
      <span class=${`track outcome-${attempt.outcome}`} aria-hidden="true">
        ${bars.map((bar) => html`<i key=${bar.className} class=${bar.className} style=${{ left: `${bar.left}%`, width: `${bar.width}%` }} title=${bar.words}></i>`)}
      </span>
      <span class="hidden">${[...parts.map((part) => part.words), inBundle(attempt.timing ?? {})].filter(Boolean).join(", ")}, in all</span>
      <span class="number" title=${`${exact(attempt.startedMs)} to ${exact(endMs)}`}>${span(endMs - attempt.startedMs)}</span>
    </summary>
    <div class="attempt-content">${children}</div>
  </details>`;
}
