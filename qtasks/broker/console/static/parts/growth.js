// How large the store was, how fast it grows, and what retention removes next.
import { html, useState } from "../lib/view.js";
import { bytes, count, plural, span } from "../lib/format.js";
import { useView } from "../lib/live.js";
import { Facts, Loaded, Panel, Time } from "./basic.js";
import { Bars, Lines } from "./charts.js";

const HOUR_MS = 3_600_000;
const SPANS = [["24 h", 24, 1], ["7 d", 168, 6]]; // name, hours, hours of a bar

export function Growth() {
  const view = useView("growth", {}, { everyMs: 60_000, quietMs: 60_000 });
  return html`<${Loaded} view=${view}>${(data) => html`<div class="columns charts"><${Size} data=${data} /><${Removals} removals=${data.removals} /></div>`}<//>`;
}

function Size({ data }) {
  const { sizes, perDayBytes: perDay, full } = data;
  const isNew = sizes.used.length < 2;
  return html`<${Panel} id="size" title="Size over time" note=${isNew ? "" : `the last ${span(sizes.used.length * sizes.stepMs)}`}>
    ${isNew
      ? html`<p class="quiet pad">The broker notes the size once an hour. The chart begins with the second hour.</p>`
      : html`<${Lines} label="Size" fromMs=${sizes.fromMs} stepMs=${sizes.stepMs} format=${bytes} series=${[
          { name: "file", className: "series-quiet", values: sizes.file }, { name: "in use", className: "", values: sizes.used },
        ]} />`}
    <${Facts} facts=${[
      ["In use", bytes(data.usedBytes)], ["Free inside the file", bytes(data.fileBytes - data.usedBytes)],
      ["Change a day", perDay === null ? html`<span class="quiet">known after 6 hours</span>` : `${perDay > 0 ? "+" : perDay < 0 ? "−" : ""}${bytes(Math.abs(perDay))}`],
      [full?.what === "disk" ? "The disk is full" : "The limit is reached", full && html`<span class=${full.what === "disk" && full.timeMs - data.timeMs < 7 * 24 * HOUR_MS ? "bad" : ""}><${Time} ms=${full.timeMs} /> at this rate</span>`],
    ]} /><//>`;
}

// The values in groups of `size`, summed.
function sums(values, size) {
  return Array.from({ length: Math.ceil(values.length / size) }, (_, index) => values.slice(index * size, (index + 1) * size).reduce((a, b) => a + b, 0));
}

const sum = (values) => values.reduce((a, b) => a + b, 0);

function Removals({ removals }) {
  const [[name, hours, size], choose] = useState(SPANS[0]);
  const finished = removals.finished.slice(0, hours), failed = removals.failed.slice(0, hours);
  const all = sum(finished) + sum(failed);
  const first = removals.finished.findIndex((number, hour) => number + removals.failed[hour] > 0);
  const chips = html`<div class="chips" role="group" aria-label="Forecast">${SPANS.map((each) => html`<button key=${each[0]} type="button" class="chip" aria-pressed=${each[0] === name} onClick=${() => choose(each)}>${each[0]}</button>`)}</div>`;
  return html`<${Panel} id="removals" title="Retention removes next" actions=${chips}>
    ${all === 0
      ? html`<p class="quiet pad">Nothing comes of age in the next ${name}.</p>`
      : html`<${Bars} label="Messages that come of age" fromMs=${removals.fromMs} stepMs=${removals.stepMs * size} format=${count} series=${[
          { name: "delivered or cancelled", className: "", values: sums(finished, size) }, { name: "failed, with dead letters", className: "series-bad", values: sums(failed, size) },
        ]} />`}
    <${Facts} facts=${[
      ["First removal", first < 0 ? "not in the next 7 d" : first === 0 ? "within the hour" : html`in about ${span(first * HOUR_MS)}`],
      [`In the next ${name}`, all > 0 && `${plural(all, "message")}, about ${bytes(all * removals.bytesEach)}`],
      ["In the next 7 d", name !== "7 d" && `${plural(sum(removals.finished) + sum(removals.failed), "message")}`],
    ].filter(([, value]) => value)} />
    <p class="note pad">Room that is freed stays inside the file and is used again.</p><//>`;
}
