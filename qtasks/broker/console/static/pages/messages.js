// Messages: a filter in the address, rows that stay in their places while somebody reads them, actions on those that are chosen.
import { Fragment, html, useEffect, useRef, useState } from "../lib/view.js";
import { get, isOperator, lacks, post, remove } from "../lib/api.js";
import { now, useView } from "../lib/live.js";
import { count, plural } from "../lib/format.js";
import { slices } from "../lib/portions.js";
import { report } from "../lib/reports.js";
import { go, replaceQuery, route } from "../lib/route.js";
import { words } from "../lib/filter.js";
import { Empty, Heading, Loaded, Panel, Problem, Table, useSelection } from "../parts/basic.js";
import { ask } from "../parts/dialog.js";
import { FilterBar, otherThanFilter, StatusFilter, withoutReports } from "../parts/filter.js";
import { act } from "./dead_letters.js";
import { MESSAGE_COLUMNS, NewRows, Pages, SelectionBar, useScrolled, useSteady } from "../parts/rows.js";

const PAGE = 50;
const UNFINISHED = new Set(["scheduled", "waiting", "running", "retrying"]);
const IDS_A_FILTER = 20;
const MOST = 10_000; // messages that one action on all that match touches
const PORTION = 200;

export function Messages() {
  const { filter: typed = "", cursor, reports = "" } = route.value.query;
  const [error, setError] = useState(null);
  const apply = (text) => go("messages", { filter: text, reports });
  const filter = reports ? typed : withoutReports(typed);
  const reads = words(filter).some((word) => /^-?(arg\.|error$|queue$|key$|schedule$)/.test(word.name));
  const List = reads ? Scan : cursor ? Older : Newest;
  return html`<${Heading} title="Messages">${error === null && html`<${AllMatching} filter=${filter} />`}<//>
    <${FilterBar} value=${typed} apply=${apply} error=${error} />
    <${StatusFilter} filter=${typed} apply=${apply} counts=${typed === "" ? countsOf(now.value) : {}}>
      <button type="button" class="chip" aria-pressed=${reports !== ""} title="What the framework sends itself, to report how calls have ended" onClick=${() => go("messages", { filter: typed, reports: reports ? "" : "true" })}>with reports</button>
    <//>
    <${Problem} error=${otherThanFilter(error)} />
    <${List} key=${`${filter} ${cursor}`} filter=${filter} query=${{ filter: typed, reports }} cursor=${cursor} setError=${setError} />`;
}

// Actions on every message that matches the filter, also on those of other pages. They are counted first; what comes later is not touched.
function AllMatching({ filter }) {
  const [busy, setBusy] = useState(null);
  if (!isOperator() || filter === "" || lacks("overview")) return null;
  const counted = (name, count) => async () => {
    setBusy(`${name}: counting`);
    try {
      await count();
    } catch (error) {
      report(error.message);
    } finally {
      setBusy(null);
    }
  };
  const cancel = counted("Cancel", async () => {
    const { ids, isAll } = await unfinishedIds(filter, (number) => setBusy(`Cancel: counted ${count(number)}`));
    if (ids.length === 0) return report("No message that matches could be canceled: all of them have ended.");
    return ask({
      title: `Cancel ${plural(ids.length, "message")}?`, confirm: `Cancel ${count(ids.length)}`, danger: true,
      text: html`<p>${isAll ? "All" : "The newest"} that match <code>${filter}</code> and have not ended. What has not started never will. An attempt that runs is not stopped, but none follows it.</p>`,
      act: async (progress) => {
        let canceled = 0;
        for (const some of slices(ids, PORTION)) {
          canceled += (await remove("v2/messages", { messageIds: some })).cancelled;
          progress(`${count(canceled)} of ${count(ids.length)}`);
        }
        return `${plural(canceled, "message")} canceled`;
      },
    });
  });
  const retry = counted("Retry", async () => {
    const { matching } = await get("dead-letters", { filter, count: 1 });
    if (!matching) return report("No dead letter matches.");
    return act("retry", { filter, matching }, () => {});
  });
  return html`<span role="status" class="note">${busy}</span>
    <button type="button" onClick=${cancel} disabled=${busy !== null}>Cancel all that match</button><button type="button" onClick=${retry} disabled=${busy !== null}>Retry all that match</button>`;
}

// The ids of the messages that match and have not ended, newest first, at most MOST: {ids, isAll}.
async function unfinishedIds(filter, progress) {
  const ids = [];
  let cursor;
  do {
    const page = await get("messages", { filter: `${filter} status:${[...UNFINISHED].join(",")}`, count: PORTION, cursor });
    ids.push(...page.messages.map((row) => row.messageId));
    cursor = page.cursor;
    progress(ids.length);
  } while (cursor && ids.length < MOST);
  return { ids: ids.slice(0, MOST), isAll: !cursor };
}

function countsOf(counts) {
  if (!counts) return {};
  const { scheduled, waiting, running, retrying } = counts;
  return { scheduled, waiting, running, retrying };
}

function useReported(error, setError) {
  useEffect(() => {
    setError(error);
    return () => setError(null);
  }, [error]);
}

function Newest({ filter, query, setError }) {
  const selection = useSelection();
  const scrolled = useScrolled();
  const view = useView("messages", { filter, count: PAGE });
  useReported(view.error, setError);
  const steady = useSteady(view.data?.messages, { hold: scrolled || selection.size > 0, key: filter });
  return html`<${Loaded} view=${view} shown=${() => null}>${(data) => html`<${Fragment}>
    <${Rows} above=${html`<${NewRows} ...${steady} />`} rows=${steady.rows} selection=${selection} reload=${view.reload} filter=${filter} />
    <${Pages} page="messages" query=${query} cursor=${data.cursor} />
  <//>`}<//>`;
}

// An older page keeps its rows; what is new is counted at the first one.
function Older({ filter, query, cursor, setError }) {
  const selection = useSelection();
  const view = useView("messages", { filter, count: PAGE, cursor });
  const newest = useView("messages", { filter, count: PAGE }, { everyMs: 5000 });
  useReported(view.error, setError);
  const steady = useSteady(view.data?.messages, { hold: true, key: cursor });
  const above = useSteady(newest.data?.messages, { hold: true, key: filter });
  return html`<${Loaded} view=${view} shown=${() => null}>${(data) => html`<${Fragment}>
    <${Rows} above=${html`<${NewRows} ...${above} take=${() => go("messages", query)} />`} rows=${steady.rows} selection=${selection} reload=${view.reload} filter=${filter} />
    <${Pages} page="messages" query=${query} cursor=${data.cursor} isOld />
  <//>`}<//>`;
}

// A filter that reads messages singly: it goes on until a page is full, shows how far it is, and can be stopped.
function Scan({ filter, setError }) {
  const selection = useSelection();
  const [state, setState] = useState({ rows: [], cursor: null, read: null, isRunning: true, error: null });
  const abort = useRef(null);
  const run = async (from, rows, read) => {
    abort.current = new AbortController();
    const wanted = rows.length + PAGE;
    let cursor = from;
    setState((before) => ({ ...before, isRunning: true, error: null }));
    try {
      do {
        const page = await get("messages", { filter, count: PAGE, cursor }, abort.current.signal);
        rows = [...rows, ...page.messages];
        cursor = page.cursor ?? null;
        read += page.scanned?.messages ?? 0;
        setState({ rows, cursor, read, isRunning: cursor !== null && rows.length < wanted, error: null });
      } while (cursor !== null && rows.length < wanted);
    } catch (error) {
      setState((before) => ({ ...before, isRunning: false, error: error.name === "AbortError" ? null : error }));
    }
  };
  useEffect(() => {
    run(null, [], 0);
    return () => abort.current?.abort();
  }, [filter]);
  useReported(state.error, setError);
  const { rows, cursor, read, isRunning } = state;
  const found = `${count(rows.length)} ${rows.length === 1 ? "matches" : "match"}`;
  const progress = read === 0 && !cursor ? `All messages are searched: ${found}` : `Read ${count(read)} messages${cursor ? " so far, newest first" : ""}: ${found}`;
  return html`<${Fragment}>
    ${read !== null && html`<div class="scan" role="status"><span>${progress}</span>${isRunning && html`<progress aria-label="Reading"></progress>`}
      ${isRunning ? html`<button type="button" class="small" onClick=${() => abort.current.abort()}>Stop</button>` : cursor && html`<button type="button" class="small" onClick=${() => run(cursor, rows, read)}>Go on</button>`}</div>`}
    ${isRunning && read === null ? html`<div class="loading" role="status">Reading</div>` : html`<${Rows} rows=${rows} selection=${selection} reload=${() => run(null, [], 0)} filter=${filter} isRunning=${isRunning || cursor !== null} />`}
  <//>`;
}

function Rows({ rows, selection, reload, filter, above = null, isRunning = false }) {
  const chosen = rows.filter((row) => selection.has(row.messageId));
  const unfinished = chosen.filter((row) => UNFINISHED.has(row.status));
  const failed = chosen.filter((row) => row.status === "failed");
  const after = (text) => {
    selection.clear();
    reload();
    return text;
  };
  const cancel = () => ask({
    title: `Cancel ${plural(unfinished.length, "message")}?`, confirm: "Cancel them", danger: true,
    text: "What has not started never will. An attempt that runs is not stopped, but none follows it.",
    act: async () => after(`${plural((await remove("v2/messages", { messageIds: unfinished.map((row) => row.messageId) })).cancelled, "message")} canceled`),
  });
  const retry = () => ask({
    title: `Retry ${plural(failed.length, "failed message")}?`, confirm: "Retry them",
    text: "Each becomes a new message, and its dead letter is removed.",
    act: async () => {
      let done = 0;
      for (const some of slices(failed.map((row) => row.messageId), IDS_A_FILTER)) done += (await post("dead-letters/retry", { filter: `id:${some.join(",")}`, expected: some.length })).done;
      return after(`${plural(done, "message")} published again`);
    },
  });
  return html`<${Fragment}>
    <${SelectionBar} selection=${selection}>
      <button type="button" class="danger" disabled=${unfinished.length === 0} onClick=${cancel}>Cancel ${count(unfinished.length)}</button>
      <button type="button" disabled=${failed.length === 0} onClick=${retry}>Retry ${count(failed.length)} failed</button>
    <//>
    ${above}
    <${Panel}><${Table} caption="Messages" rows=${rows} rowKey=${(row) => row.messageId} columns=${MESSAGE_COLUMNS} selection=${isOperator() ? selection : null}
      empty=${isRunning ? html`<p class="quiet pad">None yet.</p>` : html`<${Nothing} filter=${filter} />`} /><//>
  <//>`;
}

function Nothing({ filter }) {
  if (filter === "") return html`<${Empty} title="No message is stored." command="qtasks send hello Ada">Messages appear here when a task is called or something is published.<//>`;
  return html`<${Empty} title="No message matches."><button type="button" onClick=${() => replaceQuery({ filter: null, cursor: null })}>Show all messages</button><//>`;
}
