// The broker itself: its store, its keys, who may use it, and where its settings come from.
import { Fragment, html, useState } from "../lib/view.js";
import { get, isOperator, post, session } from "../lib/api.js";
import { bytes, plural, span } from "../lib/format.js";
import { useView } from "../lib/live.js";
import { Command, Copy, Empty, Facts, Heading, Loaded, Panel, Problem, Table, Time } from "../parts/basic.js";
import { Change } from "../parts/changes.js";
import { Growth } from "../parts/growth.js";

export function System() {
  const view = useView("system", {}, { everyMs: 10_000 });
  return html`<${Heading} title="System" note=${`qtasks ${session.value.version}`} />
    <${Loaded} view=${view}>${(data) => html`<${Fragment}>
      <div class="columns"><${Store} data=${data} /><div class="stack"><${Limits} data=${data} /><${Keys} keys=${data.keys ?? {}} reload=${view.reload} /></div></div>
      <${Growth} />
      <${Tokens} tokens=${data.tokens ?? []} />
      <${Configuration} configuration=${data.configuration ?? []} />
    <//>`}<//>`;
}

function Store({ data }) {
  const { store, retention = {}, readiness } = data;
  return html`<${Panel} id="store" title="Store" note=${readiness === undefined ? "" : html`<${Readiness} readiness=${readiness} />`}>
    <${Facts} facts=${[
      ["File", html`<span class="mono">${store.path}</span>`, true], ["Promise", store.promise], ["Size, with its log", bytes(store.bytes)], ["Free on the disk", bytes(store.freeBytes)], ["Schema", store.schema],
      ["Keeps delivered", span(retention.deliveredMs)], ["Keeps failed", span(retention.failedMs)], ["Removes the oldest beyond", retention.maxBytes ? bytes(retention.maxBytes) : "no limit"],
      ...upkeep(data),
    ]} /><//>`;
}

// The last checks and the last backup. A database in memory has neither.
function upkeep({ checks = {}, backup }) {
  const facts = [["Pages checked", checks.pages], ["Messages checked", checks.messages]].map(([name, check]) => [name, check && html`<${Checked} check=${check} />`]);
  if (!checks.pages) return facts;
  const none = html`<span class="quiet">none that is known; <code>qtasks broker backup FILE</code> makes one</span>`;
  return [...facts, ["Last backup", backup ? html`<${Time} ms=${backup.timeMs} />, ${bytes(backup.bytes)} <span class="mono quiet">${backup.target}</span>` : none, true]];
}

const DAYS_7 = 7 * 24 * 3_600_000;

function Checked({ check }) {
  if (check.timeMs === null) return html`<span class="quiet">not yet</span>`;
  const late = Date.now() - check.timeMs > 3 * check.everyMs;
  const found = check.damagedMs !== null && html` <span class=${Date.now() - check.damagedMs < DAYS_7 ? "bad" : "quiet"}>${plural(check.damaged, "damaged message")} set aside <${Time} ms=${check.damagedMs} /></span>`;
  return html`<${Time} ms=${check.timeMs} />${late ? html` <span class="bad">overdue: the log of the broker says why</span>` : found ? "" : html`, <span class="good">sound</span>`}${found}`;
}

// `readiness` is true, or what keeps the broker from accepting.
function Readiness({ readiness }) {
  const ready = readiness === true || readiness.ready === true;
  return ready ? html`<span class="good">✓ ready</span>` : html`<span class="bad">✗ ${readiness.error ?? readiness.reason ?? "not ready"}</span>`;
}

function Limits({ data }) {
  return html`<${Panel} id="limits" title="Limits"><${Facts} facts=${Object.entries(data.limits ?? {}).map(([name, value]) => [words(name), text(name, value)])} /><//>`;
}

// "inFlight" as "In flight".
function words(name) {
  const plain = name.replace(/(Ms|S|Bytes)$/, "").replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
  return plain[0].toUpperCase() + plain.slice(1);
}

function text(name, value) {
  if (value === null) return "by itself";
  if (typeof value !== "number") return String(value);
  if (name.endsWith("Ms")) return span(value);
  if (name.endsWith("S")) return span(value * 1000);
  if (name.endsWith("Bytes")) return bytes(value);
  return value.toLocaleString("en");
}

const ROTATION = "The next key becomes the current one, and a new next key is made. Applications that know both keys go on working; give them the new next key before keys are rotated again, else they refuse every delivery.";

function Keys({ keys, reload }) {
  const [shown, setShown] = useState(null);
  const [error, setError] = useState(null);
  const show = async () => {
    try {
      setShown(await get("v2/keys"));
      setError(null);
    } catch (failure) {
      setError(failure);
    }
  };
  const rotate = async () => {
    setShown(await post("v2/keys/rotate"));
    reload();
    return "The signing keys are rotated. Give the new next key to every application.";
  };
  return html`<${Panel} id="keys" title="Signing keys" actions=${html`<${Change} label="Rotate" danger asked=${{ title: "Rotate the signing keys?", text: ROTATION, act: rotate }} />`}>
    <${Facts} facts=${[["Last rotation", keys.rotatedMs ? html`<${Time} ms=${keys.rotatedMs} />` : "never"]]} />
    <${Problem} error=${error} />
    ${isOperator() && html`<div class="pad">${shown
      ? html`<${Facts} facts=${[["QSTASH_CURRENT_SIGNING_KEY", html`<${Secret} text=${shown.current} />`], ["QSTASH_NEXT_SIGNING_KEY", html`<${Secret} text=${shown.next} />`]]} />
          <button type="button" class="small" onClick=${() => setShown(null)}>Hide the keys</button>`
      : html`<button type="button" class="small" onClick=${show}>Show the keys</button>`}</div>`}
  <//>`;
}

function Secret({ text: secret }) {
  return html`<span class="command"><code>${secret}</code><${Copy} text=${secret} /></span>`;
}

const TOKENS = [
  { name: "name", title: "Name", wide: true, cell: (token) => token.name },
  { name: "role", title: "Role", cell: (token) => token.role },
  { name: "used", title: "Last used", cell: (token) => html`<${Time} ms=${token.usedMs} />` },
  { name: "created", title: "Created", cell: (token) => html`<${Time} ms=${token.createdMs} />` },
];

function Tokens({ tokens }) {
  return html`<${Panel} id="tokens" title="Tokens" note=${plural(tokens.length, "token")}>
    <${Table} caption="Tokens" rows=${tokens} rowKey=${(token) => token.name} columns=${TOKENS} empty=${html`<${Empty} title="No tokens of its own." command="qtasks broker token create NAME" />`} />
    ${tokens.length > 0 && html`<div class="pad"><${Command} text="qtasks broker token create NAME" /></div>`}<//>`;
}

const CONFIGURATION = [
  { name: "name", title: "Setting", cell: (row) => html`<code>${row.name}</code>` },
  { name: "value", title: "Value", wide: true, cell: (row) => html`<span class="mono">${row.value === null ? "–" : String(row.value)}</span>` },
  { name: "default", title: "Default", wide: true, cell: (row) => html`<span class="mono quiet">${row.default === row.value ? "the same" : row.default}</span>` },
  { name: "source", title: "From", cell: (row) => (row.source === "default" ? html`<span class="quiet">default</span>` : row.source) },
];

function Configuration({ configuration }) {
  return html`<${Panel} id="configuration" title="Configuration"><${Table} caption="Configuration" rows=${configuration} rowKey=${(row) => row.name} columns=${CONFIGURATION} /><//>`;
}
