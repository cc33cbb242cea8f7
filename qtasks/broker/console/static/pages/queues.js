// Queues and flow-control keys: what they let through, what waits in them, and how to change that.
import { html } from "../lib/view.js";
import { isOperator, path, post, remove, request } from "../lib/api.js";
import { count, perMinute, plural, span } from "../lib/format.js";
import { quoted } from "../lib/filter.js";
import { hold, isLeaving } from "../lib/leaving.js";
import { useView } from "../lib/live.js";
import { href } from "../lib/route.js";
import { Empty, Heading, Loaded, Panel, Time } from "../parts/basic.js";
import { Change, Field } from "../parts/changes.js";
import { FilteredTable, TextFilter } from "../parts/lists.js";
import { Paused, PauseQuestion, setPaused } from "../parts/pauses.js";
import { Leaving } from "../parts/undo.js";

export function Queues() {
  const queues = useView("queues");
  const flow = useView("flow");
  return html`<${Heading} title="Queues and limits"><${TextFilter} label="Filter queues and keys" /><${NewQueue} reload=${queues.reload} /><//>
    <${Panel} id="queues" title="Queues" note="Messages of a queue start in their order.">
      <${Loaded} view=${queues}>${(rows) => html`<${FilteredTable} caption="Queues" rows=${rows} rowClass=${(row) => (isLeaving("queue", row.name) ? "leaving" : "")} rowKey=${(row) => row.name} textOf=${(row) => row.name}
        columns=${queueColumns(queues.reload)} empty=${html`<${Empty} title="No queues.">A queue appears when a message is published to it, or made here.<//>`} />`}<//>
    <//>
    <${Panel} id="flow" title="Flow-control keys" note="Limits of how many messages of a key run at once, and how many start in a period.">
      <${Loaded} view=${flow}>${(rows) => html`<${FilteredTable} caption="Flow-control keys" rows=${rows} rowKey=${(row) => row.name} textOf=${(row) => row.name}
        columns=${flowColumns(flow.reload)} empty=${html`<${Empty} title="No flow-control keys.">A key appears when a message is published with one.<//>`} />`}<//>
    <//>`;
}

const common = [
  { name: "waiting", title: "Waiting", number: true, cell: (row) => count(row.waiting) },
  { name: "running", title: "Running", number: true, cell: (row) => html`<${Running} row=${row} />` },
  { name: "oldest", title: "Oldest", cell: (row) => html`<${Time} ms=${row.oldestMs} />` },
  { name: "rate", title: "Per minute", number: true, cell: (row) => perMinute(row.perMinute) },
  { name: "empty", title: "Empty in", number: true, cell: (row) => html`<${TimeToEmpty} row=${row} />` },
];

// "3 of 5" with a bar.
function Running({ row }) {
  if (!row.parallelism) return count(row.running);
  return html`<span class="running">${count(row.running)} of ${count(row.parallelism)} <meter min="0" max=${row.parallelism} value=${row.running} aria-hidden="true"></meter></span>`;
}

export function TimeToEmpty({ row }) {
  if (!row.waiting) return html`<span class="quiet">–</span>`;
  if (row.paused) return html`<span class="warn">paused</span>`;
  if (row.timeToEmptyS === null || row.timeToEmptyS === undefined) return html`<span class="warn">not emptying</span>`;
  return span(row.timeToEmptyS * 1000);
}

const name = (word) => (row) => html`<span><a class="target" href=${href("messages", { filter: `${word}:${quoted(row.name)}` })}>${row.name}</a>${row.paused && html`<br /><${Paused} facts=${row} />`}</span>`;

const queueColumns = (reload) => [
  { name: "name", title: "Queue", wide: true, main: true, cell: name("queue") },
  ...common,
  ...(isOperator() ? [{ name: "actions", title: "Actions", cell: (row) => isLeaving("queue", row.name) ? html`<${Leaving} />` : html`<span class="actions"><${Pause} row=${row} base=${path`v2/queues/${row.name}`} reload=${reload} /><${SetQueue} row=${row} reload=${reload} /><${DeleteQueue} row=${row} /></span>` }] : []),
];

const flowColumns = (reload) => [
  { name: "name", title: "Key", wide: true, main: true, cell: name("key") },
  { name: "limits", title: "Limits", cell: (row) => html`<${Limits} row=${row} />` },
  ...common,
  ...(isOperator() ? [{ name: "actions", title: "Actions", cell: (row) => html`<span class="actions"><${Pause} row=${row} base=${path`v2/flowControl/${row.name}`} reload=${reload} /><${Pin} row=${row} reload=${reload} /><${Unpin} row=${row} reload=${reload} /></span>` }] : []),
];

function Limits({ row }) {
  const limits = [row.parallelism && `${count(row.parallelism)} at once`, row.rate && `${count(row.rate)} in ${span(row.periodS * 1000)}`].filter(Boolean);
  return html`<span>${limits.join(", ") || html`<span class="quiet">none</span>`}${isPinned(row) && html`<br /><span class="quiet">pinned</span>`}</span>`;
}

const isPinned = (row) => (row.pinned && typeof row.pinned === "object" ? Object.values(row.pinned).some(Boolean) : Boolean(row.pinned));

function Pause({ row, base, reload }) {
  const label = row.paused ? "Resume" : "Pause";
  const act = async (progress, form) => {
    await setPaused(base, !row.paused, form);
    reload();
    return `${row.name} ${row.paused ? "goes on" : "is paused"}.`;
  };
  const text = row.paused
    ? `${plural(row.waiting, "message")} of it may start again, the oldest first.`
    : html`<${PauseQuestion} text=${`No message of it starts until it is resumed: ${count(row.waiting)} wait now. ${count(row.running)} that run go on to their end.`} />`;
  return html`<${Change} label=${label} title=${`${label} ${row.name}`} asked=${{ title: `${label} ${row.name}?`, text, act }} />`;
}

const NUMBER = { type: "number", min: 1, step: 1, inputmode: "numeric" };
const AT_ONCE = "How many messages run at once. With 1 each starts after the one before it has ended.";

function SetQueue({ row, reload }) {
  const act = async (progress, form) => {
    await post("v2/queues", { queueName: row.name, parallelism: Number(form.get("parallelism")) });
    reload();
    return `${row.name} runs at most ${form.get("parallelism")} at once.`;
  };
  const text = html`<${Field} name="parallelism" label="Parallelism" note=${AT_ONCE} ...${NUMBER} max="1000" required value=${row.parallelism} />`;
  return html`<${Change} label="Set" title=${`Set the parallelism of ${row.name}`} asked=${{ title: `Parallelism of ${row.name}`, text, act }} />`;
}

function NewQueue({ reload }) {
  const act = async (progress, form) => {
    await post("v2/queues", { queueName: form.get("name"), parallelism: Number(form.get("parallelism")) });
    reload();
    return `The queue ${form.get("name")} is there.`;
  };
  const text = html`<${Field} name="name" label="Name" note="Letters, digits, full stops, hyphens and underscores. A queue of that name is changed." required maxlength="256" />
    <${Field} name="parallelism" label="Parallelism" note=${AT_ONCE} ...${NUMBER} max="1000" required value="1" />`;
  return html`<${Change} label="New queue" small=${false} asked=${{ title: "New queue", confirm: "Make it", text, act }} />`;
}

function DeleteQueue({ row }) {
  const target = path`v2/queues/${row.name}`;
  const act = () => hold({
    text: `Deleting the queue ${row.name}`, touches: (kind, id) => kind === "queue" && id === row.name, last: () => [target, { method: "DELETE" }],
    send: async () => {
      await remove(target);
      return `The queue ${row.name} is deleted.`;
    },
  });
  const text = `${plural(row.waiting, "waiting message")} of it ${row.waiting === 1 ? "is" : "are"} cancelled. You can undo it for ten seconds. ${count(row.running)} that run go on to their end.`;
  return html`<${Change} label="Delete" danger title=${`Delete ${row.name}`} asked=${{ title: `Delete ${row.name}?`, text, act }} />`;
}

function Pin({ row, reload }) {
  const act = async (progress, form) => {
    const query = Object.fromEntries([...form].filter(([, value]) => value !== ""));
    await request("POST", path`v2/flowControl/${row.name}/pin`, { query });
    reload();
    return `The limits of ${row.name} are pinned.`;
  };
  const text = html`<p>Pinned limits hold whatever later messages bring, until they are unpinned. An empty field is left as it is. ${count(row.waiting)} wait now.</p>
    <${Field} name="parallelism" label="At once" ...${NUMBER} value=${row.parallelism || ""} />
    <${Field} name="rate" label="Started in a period" ...${NUMBER} value=${row.rate || ""} />
    <${Field} name="period" label="Period in seconds" ...${NUMBER} max="604800" value=${row.rate ? row.periodS : ""} />`;
  return html`<${Change} label="Pin" title=${`Pin the limits of ${row.name}`} asked=${{ title: `Limits of ${row.name}`, text, act }} />`;
}

function Unpin({ row, reload }) {
  if (!isPinned(row)) return null;
  const act = async () => {
    await request("POST", path`v2/flowControl/${row.name}/unpin`, { query: { parallelism: "true", rate: "true" } });
    reload();
    return `The limits of ${row.name} are unpinned.`;
  };
  return html`<${Change} label="Unpin" title=${`Unpin the limits of ${row.name}`} asked=${{ title: `Unpin the limits of ${row.name}?`, text: "They stay until a message brings others.", act }} />`;
}
