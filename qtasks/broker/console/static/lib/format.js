// Times, spans, numbers and names as people read them.
import { signal } from "./view.js";

export const zone = signal(stored("zone") ?? "local"); // "local" or "UTC"

function stored(name) {
  try {
    return localStorage.getItem(`qtasks.${name}`);
  } catch {
    return null; // a browser that keeps nothing
  }
}

export function store(name, value) {
  try {
    localStorage.setItem(`qtasks.${name}`, value);
  } catch {
    // a browser that keeps nothing
  }
}

export function setZone(name) {
  zone.value = name;
  store("zone", name);
}

const UNITS = [
  ["d", 86_400_000],
  ["h", 3_600_000],
  ["min", 60_000],
  ["s", 1000],
];

// A span: "840 ms", "12 s", "3 min 20 s", "2 d 4 h".
export function span(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1) return `${ms > 0 ? "< 1" : "0"} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 10_000) return `${(ms / 1000).toFixed(1)} s`;
  const first = UNITS.findIndex(([, size]) => ms >= size);
  const [unit, size] = UNITS[first];
  const whole = Math.floor(ms / size);
  const next = UNITS[first + 1];
  const rest = next ? Math.floor((ms - whole * size) / next[1]) : 0;
  return rest > 0 && whole < 10 ? `${whole} ${unit} ${rest} ${next[0]}` : `${whole} ${unit}`;
}

// A time from `now`: "12 s ago", "in 3 min".
export function relative(ms, now = Date.now()) {
  const distance = ms - now;
  if (Math.abs(distance) < 1000) return "now";
  const seconds = Math.round(Math.abs(distance) / 1000);
  const text = seconds < 60 ? `${seconds} s` : span(seconds * 1000);
  return distance < 0 ? `${text} ago` : `in ${text}`;
}

const FORMATS = new Map();

function formatter(options, timeZone) {
  const key = JSON.stringify([options, timeZone]);
  if (!FORMATS.has(key)) FORMATS.set(key, new Intl.DateTimeFormat("sv-SE", { ...options, timeZone }));
  return FORMATS.get(key);
}

const EXACT = { year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 };
const MINUTE = { year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit" };
const CLOCK = { hour: "2-digit", minute: "2-digit" };

const zoneName = (name) => (name === "local" ? undefined : name);

// "2026-11-28 10:42:07.123 UTC"
export function exact(ms, name = zone.value) {
  return `${formatter(EXACT, zoneName(name)).format(ms).replace(",", ".")}${name === "local" ? "" : ` ${name}`}`;
}

export function minute(ms, name = zone.value) {
  return formatter(MINUTE, zoneName(name)).format(ms);
}

export function clock(ms, name = zone.value) {
  return formatter(CLOCK, zoneName(name)).format(ms);
}

const SECOND = { hour: "2-digit", minute: "2-digit", second: "2-digit" };
const DAY = { month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit" };

// A time on an axis that is `lengthMs` long: as exact as the reader needs to tell its ends apart.
export function axisTime(ms, lengthMs, name = zone.value) {
  const options = lengthMs < 10 * 60_000 ? SECOND : lengthMs < 20 * 3_600_000 ? CLOCK : DAY;
  return formatter(options, zoneName(name)).format(ms);
}

const WHOLE = new Intl.NumberFormat("en");

export function count(number) {
  return number === null || number === undefined ? "–" : WHOLE.format(number);
}

// "1,204", "12.4k", "3.1M" where room is scarce.
export function short(number) {
  if (number === null || number === undefined) return "–";
  if (number < 10_000) return WHOLE.format(number);
  return number < 1_000_000 ? `${(number / 1000).toFixed(1)}k` : `${(number / 1_000_000).toFixed(1)}M`;
}

export function perMinute(number) {
  if (number === null || number === undefined) return "–";
  return number > 0 && number < 10 ? number.toFixed(1) : WHOLE.format(Math.round(number));
}

export function bytes(number) {
  if (number === null || number === undefined) return "–";
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (number >= size) return `${(number / size).toFixed(number >= 10 * size ? 0 : 1)} ${unit}`;
  }
  return `${number} B`;
}

export function plural(number, word) {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

// What a message calls: the name of its task, else its destination without the scheme.
export function target(row) {
  return row.task ?? (row.destination ?? "").replace(/^https?:\/\//, "");
}
