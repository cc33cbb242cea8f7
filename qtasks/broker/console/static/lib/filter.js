// The text of a filter (docs/console.md): words separated by blanks, `-` before one negates it, "..." keeps blanks together.

export const STATUSES = ["scheduled", "waiting", "running", "retrying", "delivered", "failed", "canceled"];

// What a word may begin with, in the order in which they are proposed.
export const WORDS = [
  ["status:", "scheduled, waiting, running, retrying, delivered, failed, canceled"],
  ["task:", "messages to that task"],
  ["error:", "an attempt failed with an error that contains the text"],
  ["arg.", "the argument of that name or position: arg.user_id:42, arg.0:x"],
  ["after:", "published after: 2026-11-28, 2026-11-28T10:00, 15m, 2h, 3d"],
  ["before:", "published before"],
  ["id:", "a message or call"],
  ["url:", "a destination, whole or up to a * at the end"],
  ["queue:", "the queue it was published to"],
  ["key:", "the flow-control key"],
  ["label:", "the label"],
  ["schedule:", "the schedule that published it"],
];

const WORD = /(?:"[^"]*"?|[^\s"])+/g;

// The words of a filter: [{at, text, name, value}]; `name` is "" for a word alone, and has the `-` of a negated one.
export function words(text) {
  return [...text.matchAll(WORD)].map((match) => {
    const parts = /^(-?[a-z]+(?:\.[^":\s]+)?):(.*)$/s.exec(match[0]);
    return { at: match.index, text: match[0], name: parts?.[1] ?? "", value: parts?.[2] ?? match[0] };
  });
}

// A value as it is written in a filter. A quotation mark in it cannot be written and becomes a blank.
export function quoted(value) {
  const text = String(value).replaceAll('"', " ");
  return /[\s,]|^-|^$/.test(text) ? `"${text}"` : text;
}

// `text` with exactly one word of this name, or none for the value null; the other words stay.
export function withWord(text, name, value) {
  const others = words(text).filter((word) => word.name !== name).map((word) => word.text);
  return [...others, ...(value === null ? [] : [`${name}:${value}`])].join(" ");
}

export const valueOf = (text, name) => words(text).find((word) => word.name === name)?.value ?? null;

// The word that ends at the caret: {from, text}, with `from` its place.
export function wordAt(text, caret) {
  const before = text.slice(0, caret);
  const last = words(before).at(-1);
  const isOpen = last && last.at + last.text.length === before.length;
  return isOpen ? { from: last.at, text: last.text } : { from: caret, text: "" };
}
