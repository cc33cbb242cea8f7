// The attempts of a message as bars on one time axis. Waits that are much longer than the attempts are drawn shorter, with a mark.
import { html } from "../lib/view.js";
import { axisTime, exact, span } from "../lib/format.js";

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

const PHASES = [["connectMs", "connect", "connecting"], ["firstByteMs", "first-byte", "until the first byte"], ["bodyMs", "body", "reading the answer"]];

function segments(stretches, attempt, endMs) {
  let at = attempt.startedMs;
  const parts = [];
  for (const [name, className, words] of PHASES) {
    const length = attempt.timing?.[name];
    if (length === undefined || length === null) continue;
    const until = Math.min(endMs, at + length);
    parts.push({ className, from: at, until, words: `${words} ${span(length)}` });
    at = until;
  }
  if (at < endMs || parts.length === 0) parts.push({ className: "rest", from: at, until: endMs, words: span(endMs - at) });
  return parts.map((part) => ({ ...part, left: place(stretches, part.from), right: place(stretches, part.until) }));
}

// `children(attempt)` is what an opened attempt shows.
export function Timeline({ attempts, fromMs, toMs, children, label }) {
  const stretches = stretchesOf(fromMs, toMs, attempts);
  return html`<div class="timeline" role="group" aria-label=${label}>
    <p class="scale" aria-hidden="true"><span>${axisTime(fromMs, toMs - fromMs)}</span>${stretches.filter((one) => one.isBroken && one.width > 5).map((one) => html`<span key=${one.startMs} class="gap" style=${{ left: `${one.left}%`, width: `${one.width}%` }}>// ${span(one.endMs - one.startMs)}</span>`)}<span>${axisTime(toMs, toMs - fromMs)}</span></p>
    ${attempts.map((attempt, index) => html`<${Attempt} key=${`${attempt.number} ${attempt.startedMs}`} attempt=${attempt} previous=${attempts[index - 1]} stretches=${stretches} fromMs=${fromMs} toMs=${toMs} isOpen=${index === attempts.length - 1 && attempt.outcome !== "delivered"}>${children(attempt)}<//>`)}
  </div>`;
}

const MARKS = { delivered: "✓", failed: "✗", interrupted: "↻", running: "◐" };

function Attempt({ attempt, previous, stretches, fromMs, toMs, isOpen, children }) {
  const endMs = Math.max(attempt.startedMs, attempt.endedMs ?? toMs);
  const since = previous?.endedMs ?? fromMs;
  const from = place(stretches, since);
  const until = place(stretches, attempt.startedMs);
  const parts = segments(stretches, attempt, endMs);
  const status = attempt.response?.status;
  return html`<details class="attempt" open=${isOpen}>
    <summary>
      <span class=${`attempt-name outcome-${attempt.outcome}`}><span aria-hidden="true">${MARKS[attempt.outcome] ?? "·"}</span> ${attempt.number} ${attempt.outcome}${status ? html` <span class="quiet">${status}</span>` : ""}</span>
      <span class="track" aria-hidden="true">
        ${until > from && html`<i class="wait" style=${{ left: `${from}%`, width: `${until - from}%` }} title=${`waited ${span(attempt.startedMs - since)}`}></i>`}
        ${parts.map((part) => html`<i key=${part.className} class=${`${part.className} outcome-${attempt.outcome}`} style=${{ left: `${part.left}%`, width: `${Math.max(0, part.right - part.left)}%` }} title=${part.words}></i>`)}
      </span>
      <span class="number" title=${`${exact(attempt.startedMs)} to ${exact(endMs)}`}>${span(endMs - attempt.startedMs)}</span>
    </summary>
    <div class="attempt-content">${children}</div>
  </details>`;
}
