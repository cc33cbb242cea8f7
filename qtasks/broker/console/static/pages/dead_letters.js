// Messages that failed for good: retry or delete those that are chosen, or all that match the filter.
import { Fragment, html } from "../lib/view.js";
import { isOperator, post } from "../lib/api.js";
import { hold, isLeaving } from "../lib/leaving.js";
import { useView } from "../lib/live.js";
import { count, plural } from "../lib/format.js";
import { inPortions } from "../lib/portions.js";
import { go, replaceQuery, route } from "../lib/route.js";
import { Empty, Heading, Loaded, Panel, Table, Time, useSelection } from "../parts/basic.js";
import { ask } from "../parts/dialog.js";
import { FilterBar, otherThanFilter } from "../parts/filter.js";
import { COLUMNS, NewRows, Pages, SelectionBar, useScrolled, useSteady } from "../parts/rows.js";

const PAGE = 50;
const idOf = (row) => row.deadLetterId;

const ACTIONS = {
  retry: { verb: "Retry", done: "published again", text: "Each becomes a new message with all its retries, and its dead letter is removed." },
  delete: { verb: "Delete", done: "deleted", danger: true, text: "You can undo it for ten seconds; then they cannot be brought back. The messages and their log stay as long as they are retained." },
};

// What retries or deletes `ids`, or the `matching` dead letters of `filter` that were there at `untilMs`: called again, it
// goes on where it has stopped.
function runner(name, { ids, filter, matching, untilMs }) {
  const run = ids ? async () => (await post(`dead-letters/${name}`, { ids })).done : inPortions(matching, async (expected) => {
    const portion = await post(`dead-letters/${name}`, { filter: filter ?? "", expected, untilMs });
    untilMs = portion.untilMs;
    return portion;
  });
  return async (progress, stop = {}) => `${plural(await run(progress, stop), "dead letter")} ${ACTIONS[name].done}`;
}

function holdDeletion(target, number) {
  const { ids, filter, matching, untilMs, shown } = target;
  const chosen = new Set(ids ?? shown);
  hold({
    text: `Deleting ${plural(number, "dead letter")}`,
    touches: (kind, id) => kind === "dead letter" && chosen.has(id),
    last: () => ["dead-letters/delete", { method: "POST", body: ids ? { ids } : { filter: filter ?? "", expected: matching, untilMs, whole: true } }],
    send: runner("delete", target),
  });
}

// Ask, then retry at once, or hold a deletion.
export function act(name, target, after) {
  const { verb, danger, text } = ACTIONS[name];
  const { ids, filter, matching } = target;
  const number = ids ? ids.length : matching;
  const run = name === "delete" ? () => holdDeletion(target, number) : runner(name, target);
  ask({
    title: `${verb} ${plural(number, "dead letter")}?`, confirm: `${verb} ${count(number)}`, danger,
    text: html`<${Fragment}><p>${ids ? "Those that are chosen." : filter ? html`All that match <code>${filter}</code>.` : "All dead letters of this account."} ${text}</p><//>`,
    canStop: !ids && name === "retry",
    act: async (progress, form, stop) => {
      const done = await run(progress, stop);
      after();
      return done;
    },
  });
}

export function DeadLetters() {
  const { filter = "", cursor } = route.value.query;
  return html`<${List} key=${`${filter} ${cursor}`} filter=${filter} cursor=${cursor} />`;
}

function List({ filter, cursor }) {
  const selection = useSelection();
  const scrolled = useScrolled();
  const view = useView("dead-letters", { filter, count: PAGE, cursor });
  const steady = useSteady(view.data?.deadLetters, { hold: Boolean(cursor) || scrolled || selection.size > 0, key: `${filter} ${cursor}`, idOf });
  const matching = view.data?.matching ?? 0;
  const after = () => {
    selection.clear();
    steady.take();
    view.reload();
  };
  const button = (name, target, label) => html`<button type="button" class=${ACTIONS[name].danger ? "danger" : ""} onClick=${() => act(name, target, after)}>${label}</button>`;
  const all = { filter, matching, untilMs: view.data?.timeMs, shown: steady.rows.map(idOf) };
  return html`<${Heading} title="Dead letters" note=${view.data ? `${plural(matching, "dead letter")}${filter ? " match" : ""}` : "Messages whose last attempt failed"}>
      ${isOperator() && matching > 0 && html`${button("retry", all, `Retry all ${count(matching)}`)}${button("delete", all, `Delete all ${count(matching)}`)}`}
    <//>
    <${FilterBar} value=${filter} apply=${(text) => go("dead-letters", { filter: text })} error=${view.error} placeholder="task:charge error:timeout after:1d" />
    <${SelectionBar} selection=${selection}>${button("retry", { ids: selection.ids }, `Retry ${count(selection.size)}`)}${button("delete", { ids: selection.ids }, `Delete ${count(selection.size)}`)}<//>
    <${Loaded} view=${view} shown=${otherThanFilter}>${(data) => html`<${Fragment}>
      ${!cursor && html`<${NewRows} ...${steady} />`}
      <${Panel}><${Table} caption="Dead letters" rows=${steady.rows} rowKey=${idOf} rowClass=${(row) => (isLeaving("dead letter", idOf(row)) ? "leaving" : "")} columns=${COLUMNS_HERE} selection=${isOperator() ? selection : null} empty=${html`<${Nothing} filter=${filter} />`} /><//>
      <${Pages} page="dead-letters" query=${{ filter }} cursor=${data.cursor} isOld=${Boolean(cursor)} />
    <//>`}<//>`;
}

const COLUMNS_HERE = [
  COLUMNS.message,
  COLUMNS.detail,
  { name: "response", title: "Response", number: true, cell: (row) => row.responseStatus || html`<span class="quiet">none</span>` },
  COLUMNS.attempts,
  COLUMNS.published,
  { name: "failed", title: "Failed", number: true, cell: (row) => html`<${Time} ms=${row.failedMs} />` },
];

function Nothing({ filter }) {
  if (filter === "") return html`<${Empty} title="No dead letters.">A message that fails for good is kept here until it is retried or deleted.<//>`;
  return html`<${Empty} title="No dead letter matches."><button type="button" onClick=${() => replaceQuery({ filter: null, cursor: null })}>Show all dead letters</button><//>`;
}
