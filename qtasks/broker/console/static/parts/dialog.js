// Questions before something is changed, and short reports afterwards.
import { html, signal, useEffect, useRef, useState } from "../lib/view.js";
import { notice, report } from "../lib/reports.js";
import { Problem } from "./basic.js";
import { UndoBar } from "./undo.js";

const question = signal(null);

// Ask once, saying what will be touched, then run `act()`; the dialog stays open with the error if it fails.
// {title, text, confirm, danger, isWide, canStop, act}: `text` may be a node, also with inputs; `act(progress, form, stop)` is given how to
// show how far it is, the values of the inputs as FormData, and an object whose `requested` says that the reader wants it to stop (only
// with `canStop`). What it returns is reported.
export function ask(asked) {
  question.value = asked;
}

export function Dialogs() {
  return html`<${Asked} asked=${question.value} key=${question.value?.title} /><div class="notice" role="status" aria-live="polite">${notice.value && html`<p>${notice.value}</p>`}</div><${UndoBar} />`;
}

function Asked({ asked }) {
  const dialog = useRef(null);
  const [busy, setBusy] = useState(null);
  const [error, setError] = useState(null);
  const stop = useRef({ requested: false });
  useEffect(() => {
    if (asked && !dialog.current.open) dialog.current.showModal();
  }, [asked]);
  if (!asked) return null;
  const close = () => {
    dialog.current?.close();
    question.value = null;
  };
  const act = async (event) => {
    event.preventDefault();
    setBusy("Working");
    setError(null);
    stop.current = { requested: false };
    try {
      const text = await asked.act(setBusy, new FormData(event.target), stop.current);
      close();
      if (text) report(text);
    } catch (failure) {
      setError(failure);
      setBusy(null);
    }
  };
  const requestStop = () => {
    stop.current.requested = true;
  };
  return html`<dialog ref=${dialog} class=${asked.isWide ? "wide" : ""} aria-labelledby="question" onClose=${() => { question.value = null; }}>
    <form method="dialog" onSubmit=${act}>
      <h2 id="question">${asked.title}</h2>
      <div class="question">${asked.text}</div>
      <${Problem} error=${error} />
      <div class="actions">
        ${busy !== null && asked.canStop ? html`<button key="stop" type="button" onClick=${requestStop}>Stop</button>` : html`<button key="cancel" type="button" onClick=${close} disabled=${busy !== null}>${error?.isStop ? "Close" : "Cancel"}</button>`}
        <button type="submit" class=${asked.danger ? "danger" : "primary"} disabled=${busy !== null} autofocus>${busy ?? (error?.isStop ? "Go on" : asked.confirm)}</button>
      </div>
    </form>
  </dialog>`;
}
