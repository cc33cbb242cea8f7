// URL groups: one name for several destinations; a message to the group is sent to each.
import { html } from "../lib/view.js";
import { isOperator, path, post, remove, request, seesPayloads } from "../lib/api.js";
import { plural } from "../lib/format.js";
import { hold, isLeaving } from "../lib/leaving.js";
import { useView } from "../lib/live.js";
import { Empty, Facts, Heading, Loaded, Panel, Table, Time } from "../parts/basic.js";
import { Change, Field } from "../parts/changes.js";
import { matches, TextFilter } from "../parts/lists.js";
import { Leaving } from "../parts/undo.js";

const SHOWN = 50; // groups that are shown at once; the filter names others

export function UrlGroups() {
  if (!seesPayloads()) return html`<${Heading} title="URL groups" /><${Panel}><${Empty} title="This token shows no payloads.">URL groups are a part of the API, which it does not open.<//><//>`;
  return html`<${Groups} />`;
}

function Groups() {
  const view = useView("v2/topics", {}, { everyMs: 10_000 });
  return html`<${Heading} title="URL groups"><${TextFilter} label="Filter URL groups" /><${AddEndpoint} label="New group" reload=${view.reload} small=${false} /><//>
    <${Loaded} view=${view}>${(groups) => html`<${List} groups=${groups} reload=${view.reload} />`}<//>`;
}

function List({ groups, reload }) {
  if (groups.length === 0) return html`<${Panel}><${Empty} title="No URL groups.">A message that is published to the name of a group is sent to each of its endpoints.<//><//>`;
  const matching = groups.filter((group) => matches(`${group.name} ${group.endpoints.map((endpoint) => `${endpoint.name ?? ""} ${endpoint.url}`).join(" ")}`));
  if (matching.length === 0) return html`<${Panel}><${Empty} title="No URL group contains the filter." /><//>`;
  return html`${matching.slice(0, SHOWN).map((group) => html`<${Group} key=${group.name} group=${group} reload=${reload} />`)}
    ${matching.length > SHOWN && html`<p class="note">${plural(matching.length - SHOWN, "group")} more: filter by name or URL to see them.</p>`}`;
}

function Group({ group, reload }) {
  const columns = [
    { name: "url", title: "URL", wide: true, main: true, cell: (endpoint) => html`<span class="mono">${endpoint.url}</span>` },
    { name: "name", title: "Name", cell: (endpoint) => endpoint.name ?? html`<span class="quiet">–</span>` },
    ...(isOperator() ? [{ name: "actions", title: "Actions", cell: (endpoint) => html`<${RemoveEndpoint} group=${group} endpoint=${endpoint} reload=${reload} />` }] : []),
  ];
  return html`<${Panel} id=${`group-${group.name}`} title=${group.name} note=${html`${plural(group.endpoints.length, "endpoint")}, changed <${Time} ms=${group.updatedAt} />`}
    actions=${isLeaving("url group", group.name) ? html`<${Leaving} />` : html`<${AddEndpoint} label="Add endpoint" group=${group} reload=${reload} /><${DeleteGroup} group=${group} />`}>
    <${Table} caption=${`Endpoints of ${group.name}`} rows=${group.endpoints} rowKey=${(endpoint) => endpoint.url} columns=${columns} />
    ${group.headers && html`<div class="pad"><h3>Headers of every message</h3><${Facts} facts=${Object.entries(group.headers).map(([name, values]) => [name, values.join(", ")])} /></div>`}
  <//>`;
}

function AddEndpoint({ label, group, reload, small = true }) {
  const act = async (progress, form) => {
    const name = group?.name ?? form.get("group");
    const endpoint = { url: form.get("url"), ...(form.get("name") ? { name: form.get("name") } : {}) };
    await post(path`v2/topics/${name}/endpoints`, { endpoints: [endpoint] });
    reload();
    return `${endpoint.url} is in ${name}.`;
  };
  const text = html`${!group && html`<${Field} name="group" label="Name of the group" required maxlength="256" />`}
    <${Field} name="url" label="URL" note="Messages to the group are sent there as well, from now on." required placeholder="https://" />
    <${Field} name="name" label="Name of the endpoint" note="May stay empty." maxlength="256" />`;
  return html`<${Change} label=${label} title=${group && `${label} to ${group.name}`} small=${small} asked=${{ title: group ? `Add an endpoint to ${group.name}` : "New URL group", confirm: "Add", text, act }} />`;
}

function RemoveEndpoint({ group, endpoint, reload }) {
  const act = async () => {
    await request("DELETE", path`v2/topics/${group.name}/endpoints`, { body: { endpoints: [{ url: endpoint.url }] } });
    reload();
    return `${endpoint.url} is removed from ${group.name}.`;
  };
  const last = group.endpoints.length === 1 ? " It is the last one: the group goes with it." : "";
  const text = `Messages to ${group.name} are not sent to ${endpoint.url} any more. Those on their way go on.${last}`;
  return html`<${Change} label="Remove" danger title=${`Remove ${endpoint.url} from ${group.name}`} asked=${{ title: `Remove the endpoint from ${group.name}?`, text, act }} />`;
}

function DeleteGroup({ group }) {
  const target = path`v2/topics/${group.name}`;
  const act = () => hold({
    text: `Deleting the group ${group.name}`, touches: (kind, id) => kind === "url group" && id === group.name, last: () => [target, { method: "DELETE" }],
    send: async () => {
      await remove(target);
      return `The group ${group.name} is deleted.`;
    },
  });
  const text = `The name and its ${plural(group.endpoints.length, "endpoint")} go. You can undo it for ten seconds. A publish to it is refused from then on. Messages on their way go on.`;
  return html`<${Change} label="Delete" danger title=${`Delete ${group.name}`} asked=${{ title: `Delete ${group.name}?`, text, act }} />`;
}
