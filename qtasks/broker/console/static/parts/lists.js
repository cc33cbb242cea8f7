// Lists that the server gives whole: a text filter kept in the address, and a first part that can grow.
import { html, useState } from "../lib/view.js";
import { count } from "../lib/format.js";
import { replaceQuery, route } from "../lib/route.js";
import { Empty, Table } from "./basic.js";

const SHOWN = 100; // rows that are shown at first

export function TextFilter({ label }) {
  return html`<input type="search" aria-label=${label} placeholder=${label} value=${route.value.query.filter ?? ""}
    onInput=${(event) => replaceQuery({ filter: event.target.value })} />`;
}

// True for a text that contains every word of the filter in the address, in any case.
export function matches(text) {
  const words = (route.value.query.filter ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  const lower = words.length ? text.toLowerCase() : "";
  return words.every((word) => lower.includes(word));
}

// A Table of the rows whose `textOf(row)` matches the filter; `empty` stands there if there are no rows at all.
export function FilteredTable({ rows, textOf, empty, ...table }) {
  const [most, setMost] = useState(SHOWN);
  const matching = rows.filter((row) => matches(textOf(row)));
  if (rows.length > 0 && matching.length === 0) return html`<${Empty} title="Nothing here contains the filter." />`;
  return html`<${Table} ...${table} rows=${matching.slice(0, most)} empty=${empty} />
    ${matching.length > most && html`<p class="pad"><button type="button" onClick=${() => setMost(most * 5)}>Show more of ${count(matching.length)}</button></p>`}`;
}
