// A JSON text as a tree, every number exactly as it was written; what is not JSON as text.
import { html, useMemo, useState } from "../lib/view.js";
import { brief, JsonNumber, JsonObject, parse } from "../lib/lossless.js";
import { bytes } from "../lib/format.js";
import { Copy } from "./basic.js";

const SHOWN = 100; // items of a level that are shown at first

export function Body({ text, base64, label = "body" }) {
  const [raw, setRaw] = useState(false);
  const value = useMemo(() => read(text), [text]);
  if (base64) return html`<p class="quiet">${bytes(Math.floor((base64.length * 3) / 4))} that are not text</p><pre class="raw" tabindex="0" aria-label=${label}>${base64}</pre>`;
  if (!text) return html`<p class="quiet">empty</p>`;
  if (value === undefined || raw) {
    return html`<div class="body"><span class="actions">${value !== undefined && html`<button type="button" class="small" onClick=${() => setRaw(false)}>As a tree</button>`}<${Copy} text=${text} /></span>
      <pre class="raw" tabindex="0" aria-label=${label}>${text}</pre></div>`;
  }
  return html`<div class="body"><span class="actions"><button type="button" class="small" onClick=${() => setRaw(true)}>As text</button><${Copy} text=${text} /></span><div class="tree"><${Value} value=${value} open /></div></div>`;
}

function read(text) {
  try {
    return parse(text ?? "");
  } catch {
    return undefined;
  }
}

// One parsed value (lib/lossless.js) as a tree.
export function Value({ value, open = false }) {
  if (value instanceof JsonObject) return html`<${Level} value=${value} members=${value.members} brackets="{}" open=${open} />`;
  if (Array.isArray(value)) return html`<${Level} value=${value} members=${value.map((item, index) => [index, item])} brackets="[]" open=${open} />`;
  if (value instanceof JsonNumber) return html`<span class="json-number">${value.text}</span>`;
  if (typeof value === "string") return html`<span class="json-string">${JSON.stringify(value)}</span>`;
  return html`<span class="json-word">${String(value)}</span>`;
}

function Level({ value, members, brackets, open }) {
  const [most, setMost] = useState(SHOWN);
  if (members.length === 0) return html`<span>${brackets}</span>`;
  return html`<details open=${open}><summary>${brackets[0]}<span class="quiet">${brief(value, 60).slice(1, -1)}</span>${brackets[1]}</summary>
    <ul>${members.slice(0, most).map(([name, item], index) => html`<li key=${index}><span class="json-name">${name}</span>: <${Value} value=${item} open=${members.length <= 5} /></li>`)}
    ${members.length > most && html`<li><button type="button" class="small" onClick=${() => setMost(most * 10)}>${members.length - most} more</button></li>`}</ul></details>`;
}
