// The filter of a list: completes words, keeps itself in the address, and shows a problem under the place where it is.
import { Fragment, html, useEffect, useRef, useState } from "../lib/view.js";
import { get } from "../lib/api.js";
import { count } from "../lib/format.js";
import { STATUSES, quoted, valueOf, withWord, wordAt, words, WORDS } from "../lib/filter.js";

const MOST = 12; // proposals at a time

// Where the values of a word come from; each gives [[value, note]].
const SOURCES = {
  status: async () => STATUSES.map((status) => [status, ""]),
  task: async () => [...new Set((await get("overview", { minutes: 1440 })).destinations.map((row) => row.task).filter(Boolean))].map((task) => [task, ""]),
  url: async () => (await get("overview", { minutes: 1440 })).destinations.filter((row) => !row.task).map((row) => [row.destination, ""]),
  queue: async () => (await get("queues")).map((queue) => [queue.name, ""]),
  key: async () => (await get("flow")).map((key) => [key.name, ""]),
  schedule: async () => (await get("schedules")).schedules.map(({ schedule, task }) => [schedule.scheduleId, task ?? ""]),
  after: async () => [["15m", "the last 15 minutes"], ["1h", "the last hour"], ["1d", "the last day"], ["7d", "the last week"]],
  before: async () => [["1h", "older than an hour"], ["1d", "older than a day"]],
};

// Arguments that tasks declare as searchable: [["arg.user_id", "of charge"]].
async function searchable() {
  const { dispatchers } = await get("tasks");
  const tasks = dispatchers.flatMap(({ manifest }) => manifest?.tasks ?? []);
  const names = [...new Set(tasks.flatMap((task) => task.searchable))].sort();
  return names.map((name) => [`arg.${name}:`, `an argument of ${tasks.filter((task) => task.searchable.includes(name)).map((task) => task.name).join(", ")}`]);
}

// What may follow at the caret: [{text, note, isWhole}]; `text` stands in place of the word there.
async function proposals(word) {
  const sign = word.startsWith("-") ? "-" : "";
  const plain = word.slice(sign.length);
  const colon = plain.indexOf(":");
  if (colon === -1) {
    const further = "arg.".startsWith(plain) || plain.startsWith("arg.") ? await searchable().catch(() => []) : [];
    return [...WORDS, ...further].filter(([name]) => name.startsWith(plain) && name !== plain).map(([name, note]) => ({ text: sign + name, note, isWhole: false }));
  }
  const name = plain.slice(0, colon);
  const given = plain.slice(colon + 1);
  const values = (await SOURCES[name]?.().catch(() => [])) ?? [];
  const comma = given.lastIndexOf(",") + 1;
  const begun = given.slice(comma).replace(/^"/, "").toLowerCase();
  return values.filter(([value]) => value.toLowerCase().includes(begun) && value.toLowerCase() !== begun)
    .map(([value, note]) => ({ text: `${sign}${name}:${given.slice(0, comma)}${quoted(value)}`, note, isWhole: true }));
}

// `apply(text)` is called when the reader has finished: with Enter, by taking a value, or by clearing it.
export function FilterBar({ value, apply, error, placeholder = "status:failed task:charge error:timeout after:1h", label = "Filter" }) {
  const input = useRef(null);
  const [text, setText] = useState(value);
  const [choices, setChoices] = useState([]);
  const [at, setAt] = useState(-1);
  const asked = useRef(0);
  useEffect(() => setText(value), [value]);

  const propose = async () => {
    const turn = (asked.current += 1);
    const { text: word } = wordAt(input.current.value, input.current.selectionStart);
    const next = (await proposals(word)).slice(0, MOST);
    if (turn !== asked.current || document.activeElement !== input.current) return;
    setChoices(next);
    setAt(-1);
  };
  const hide = () => {
    asked.current += 1;
    setChoices([]);
    setAt(-1);
  };
  const finish = (next) => {
    hide();
    setText(next);
    apply(next.trim());
  };
  const take = (choice) => {
    const caret = input.current.selectionStart;
    const { from } = wordAt(text, caret);
    const next = text.slice(0, from) + choice.text + text.slice(caret);
    setText(next);
    input.current.focus();
    if (choice.isWhole) return finish(next);
    requestAnimationFrame(() => {
      input.current.setSelectionRange(from + choice.text.length, from + choice.text.length);
      propose();
    });
    return undefined;
  };
  const onKey = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && choices.length) {
      event.preventDefault();
      setAt((at + step + choices.length) % choices.length);
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (at >= 0) take(choices[at]);
      else finish(text);
    } else if (event.key === "Escape" && choices.length) {
      event.preventDefault();
      hide();
    }
  };
  const change = (event) => {
    setText(event.target.value);
    if (event.target.value === "" && value !== "") finish("");
    else propose();
  };
  const problems = error?.status === 422 && text === value ? error.body.problems ?? [] : [];
  return html`<form class="filter" role="search" aria-label=${label} onSubmit=${(event) => { event.preventDefault(); finish(text); }}>
    <div class="filter-line">
      <input ref=${input} type="search" class="mono" aria-label=${label} placeholder=${placeholder} value=${text} autocomplete="off" autocapitalize="off" spellcheck=${false}
        role="combobox" aria-expanded=${choices.length > 0} aria-controls="proposals" aria-autocomplete="list" aria-activedescendant=${at >= 0 ? `proposal-${at}` : null}
        aria-invalid=${problems.length > 0} aria-describedby=${problems.length ? "filter-problems" : null}
        onInput=${change} onFocus=${propose} onBlur=${hide} onKeyDown=${onKey} />
      <ul id="proposals" role="listbox" aria-label="Proposals" hidden=${choices.length === 0}>${choices.map((choice, index) => html`<li key=${choice.text} id=${`proposal-${index}`} role="option" aria-selected=${index === at}
        onMouseDown=${(event) => event.preventDefault()} onClick=${() => take(choice)}><code>${choice.text}</code> <span class="quiet">${choice.note}</span></li>`)}</ul>
    </div>
    <button type="submit">Filter</button>
    ${problems.length > 0 && html`<div id="filter-problems" class="filter-problems" role="alert">${problems.map((problem) => html`<${FilterProblem} key=${problem.at} text=${value} problem=${problem} />`)}</div>`}
  </form>`;
}

function FilterProblem({ text, problem }) {
  const end = problem.at + Math.max(1, problem.length);
  return html`<p><code aria-hidden="true">${text.slice(0, problem.at)}<mark>${text.slice(problem.at, end) || "\u00a0"}</mark>${text.slice(end)}</code><span>${problem.text}</span></p>`;
}

// The statuses as buttons; `counts` stand beside their names.
export function StatusFilter({ filter, apply, counts = {}, children = null }) {
  const chosen = valueOf(filter, "status");
  const button = (status, name) => html`<button key=${name} type="button" class="chip" aria-pressed=${chosen === status} onClick=${() => apply(withWord(filter, "status", chosen === status ? null : status))}>
    ${name}${counts[status] !== undefined && html` <b>${count(counts[status])}</b>`}</button>`;
  return html`<div class="chips" role="group" aria-label="Status">${button(null, "all")}${STATUSES.map((status) => button(status, status))}${children}</div>`;
}

const NO_REPORTS = "-task:_end"; // the framework's messages that report how a call has ended

// The filter without these messages, unless it asks for a task, or for ids or parts of names.
export function withoutReports(filter) {
  const asked = words(filter);
  return asked.some((word) => ["task", "id", ""].includes(word.name)) ? filter : [...asked.map((word) => word.text), NO_REPORTS].join(" ");
}

// An error that the filter does not show at its place.
export const otherThanFilter = (error) => (error?.status === 422 && error.body.problems?.length ? null : error);
