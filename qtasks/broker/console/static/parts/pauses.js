// Pausing with a note, and what is known of a pause: since when, by whom, and why.
import { html } from "../lib/view.js";
import { request, session } from "../lib/api.js";
import { Time } from "./basic.js";
import { Field } from "./changes.js";

// `facts` has the members pausedAt, pausedBy and pauseNote of docs/protocol.md 5.19, as far as they are known.
export function Paused({ facts }) {
  return html`<span class="paused"><span class="warn">paused</span>${facts.pausedAt && html` <span class="quiet">since <${Time} ms=${facts.pausedAt} /> by ${facts.pausedBy}</span>`}
    ${facts.pauseNote && html`<br /><span class="pause-note">${facts.pauseNote}</span>`}</span>`;
}

// The text of the question before a pause, with a field for the note where the service keeps one.
export function PauseQuestion({ text }) {
  const keeps = session.value?.service?.kind !== "qstash";
  return html`<p>${text}</p>${keeps && html`<${Field} name="note" label="Note" note="Optional: why it is paused. Everyone who sees the pause sees it." maxlength="200" />`}`;
}

// Pause or resume what is at `base`; `form` has the note.
export function setPaused(base, paused, form) {
  const note = form?.get("note")?.trim();
  return request("POST", `${base}/${paused ? "pause" : "resume"}`, { body: {}, headers: note ? [["Qtasks-Note", encodeURIComponent(note)]] : [] });
}
