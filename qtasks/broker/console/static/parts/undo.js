// The bar of the deletions that can still be undone.
import { html, useEffect } from "../lib/view.js";
import { finish, keepTime, leaving, letTimeGo, reportLeft, undo, undoLast } from "../lib/leaving.js";

export function UndoBar() {
  useEffect(() => {
    reportLeft();
    const onKey = (event) => {
      const isEditing = ["INPUT", "TEXTAREA", "SELECT"].includes(event.target?.tagName);
      if (!(event.ctrlKey || event.metaKey) || event.shiftKey || event.key.toLowerCase() !== "z" || isEditing) return;
      if (undoLast()) event.preventDefault();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  const shown = leaving.value.filter((entry) => entry.state !== "done");
  return html`<div class="undo" role="group" aria-label="Deletions that can be undone" aria-live="polite" onFocusIn=${keepTime} onFocusOut=${letTimeGo}>
    ${shown.map((entry) => html`<div key=${entry.id} class="undo-line"><p>${words(entry)}</p>${buttons(entry)}${entry.state === "held" && html`<i key=${entry.timer} class=${entry.timer ? "" : "still"} style=${{ animationDuration: `${entry.restMs}ms` }} aria-hidden="true"></i>`}</div>`)}</div>`;
}

function words(entry) {
  if (entry.state === "failed") return `${entry.text} has failed: ${entry.error.message}`;
  return entry.state === "sending" ? `${entry.text} ${entry.progress}` : html`${entry.text} <span class="hidden">in ten seconds, unless you undo it (Control Z)</span>`;
}

function buttons(entry) {
  if (entry.state === "sending") return null;
  const failed = entry.state === "failed";
  return html`<span class="actions"><button type="button" class="small" onClick=${() => undo(entry)}>${failed ? "Leave it" : "Undo"}</button>
    <button type="button" class="small" onClick=${() => finish(entry)}>${failed ? "Try again" : "Delete now"}</button></span>`;
}

// Stands in place of the buttons of what is about to go.
export const Leaving = () => html`<span class="quiet">deleting</span>`;
