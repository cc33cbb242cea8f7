// Buttons that change something: only operators see them, and a dialog asks before anything is touched.
import { html } from "../lib/view.js";
import { isOperator } from "../lib/api.js";
import { ask } from "./dialog.js";

// `asked` is what `ask` takes (dialog.js); `title` names the button for screen readers where the label alone would be one of many.
export function Change({ label, title, asked, danger = false, small = true }) {
  if (!isOperator()) return null;
  return html`<button type="button" class=${`${small ? "small" : ""} ${danger ? "danger" : ""}`} aria-label=${title} onClick=${() => ask({ danger, confirm: label, ...asked })}>${label}</button>`;
}

// An input of a dialog with its label; its value reaches `act(progress, form)` under `name`.
export function Field({ name, label, note, ...input }) {
  const id = `field-${name}`;
  return html`<div class="field"><label for=${id}>${label}</label><input id=${id} name=${name} autocomplete="off" aria-describedby=${note ? `${id}-note` : null} ...${input} />
    ${note && html`<p class="note" id=${`${id}-note`}>${note}</p>`}</div>`;
}
