// Times in the zone of a schedule and in that of the reader.
import { minute, zone } from "./format.js";

// `name` if this browser knows it, else UTC (also for null).
export function readableZone(name) {
  try {
    return new Intl.DateTimeFormat("en", { timeZone: name ?? "UTC" }).resolvedOptions().timeZone && (name ?? "UTC");
  } catch {
    return "UTC";
  }
}

export function viewersZone() {
  return zone.value === "local" ? Intl.DateTimeFormat().resolvedOptions().timeZone : zone.value;
}

const WEEKDAYS = new Map();

function weekday(ms, name) {
  if (!WEEKDAYS.has(name)) WEEKDAYS.set(name, new Intl.DateTimeFormat("en", { weekday: "short", timeZone: name }));
  return WEEKDAYS.get(name).format(ms);
}

// "Mon 2026-11-30 09:00"
export function shortIn(ms, name) {
  return ms === null || ms === undefined ? "–" : `${weekday(ms, name)} ${minute(ms, name)}`;
}

function offset(ms, name) {
  const parts = new Intl.DateTimeFormat("en", { timeZone: name, timeZoneName: "longOffset" }).formatToParts(ms);
  return parts.find((part) => part.type === "timeZoneName").value.replace("GMT", "UTC");
}

// A sentence if the clocks of the zone change between now and the last of `times` (ascending); else null.
export function clockChange(times, name, now = Date.now()) {
  let before = offset(now, name);
  for (const ms of times) {
    const then = offset(ms, name);
    if (then !== before) return `The clocks of ${name} change from ${before} to ${then} before the run of ${shortIn(ms, name)}.`;
    before = then;
  }
  return null;
}
