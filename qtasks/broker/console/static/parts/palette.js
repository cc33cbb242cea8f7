// Keys: `g` and a letter for a page, `/` for the filter, `?` for this list, Ctrl or Cmd and K for everything by name.
import { html, signal, useEffect, useLayoutEffect, useRef, useState } from "../lib/view.js";
import { lacks } from "../lib/api.js";
import { go } from "../lib/route.js";
import { PAGES } from "../pages/index.js";

const open = signal(null); // "palette", "keys" or null

export function Shortcuts() {
  useEffect(() => {
    let before = "";
    const onKey = (event) => {
      if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
        event.preventDefault();
        open.value = "palette";
        return;
      }
      if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]") || isEditing(event.target)) return;
      const page = before === "g" ? PAGES.find((one) => one.key === event.key) : undefined;
      before = event.key;
      if (page) go(page.name);
      else if (event.key === "?") open.value = "keys";
      else if (event.key === "/") {
        const filter = document.querySelector("input[type=search]");
        if (filter) {
          event.preventDefault();
          filter.focus();
        }
      }
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  return open.value === "keys" ? html`<${Keys} />` : null;
}

function isEditing(element) {
  return element instanceof HTMLElement && (element.isContentEditable || ["INPUT", "TEXTAREA", "SELECT"].includes(element.tagName));
}

function useModal() {
  const dialog = useRef(null);
  useLayoutEffect(() => dialog.current.showModal(), []); // at once, so that no key is lost that is pressed next
  return dialog;
}

const close = () => {
  open.value = null;
};

function Keys() {
  const dialog = useModal();
  return html`<dialog ref=${dialog} aria-labelledby="keys" onClose=${close}><h2 id="keys">Keys</h2>
    <dl class="facts">${PAGES.filter((page) => page.key && !lacks(page.name)).map((page) => html`<div key=${page.name}><dt><kbd>g</kbd> <kbd>${page.key}</kbd></dt><dd>${page.title}</dd></div>`)}
      <div><dt><kbd>/</kbd></dt><dd>Filter</dd></div><div><dt><kbd>Ctrl</kbd> <kbd>K</kbd></dt><dd>Go to anything</dd></div></dl>
    <div class="actions"><button type="button" class="primary" onClick=${() => dialog.current.close()} autofocus>Close</button></div></dialog>`;
}

export function Palette() {
  return open.value === "palette" ? html`<${Search} />` : null;
}

function Search() {
  const dialog = useModal();
  const [text, setText] = useState("");
  const [at, setAt] = useState(0);
  const choices = matching(text.trim());
  const take = (choice) => {
    dialog.current.close();
    choice?.run();
  };
  const onKey = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      setAt((at + step + choices.length) % choices.length);
    } else if (event.key === "Enter") {
      event.preventDefault();
      take(choices[at]);
    }
  };
  return html`<dialog ref=${dialog} class="palette" aria-label="Go to" onClose=${close}>
    <input type="text" aria-label="Page, message id or filter" placeholder="Page, message id or filter" value=${text} autofocus autocomplete="off" role="combobox" aria-expanded="true" aria-controls="choices"
      aria-activedescendant=${choices.length ? `choice-${at}` : null} onInput=${(event) => { setText(event.target.value); setAt(0); }} onKeyDown=${onKey} />
    <ul id="choices" role="listbox" aria-label="Choices">${choices.map((choice, index) => html`<li key=${choice.title} id=${`choice-${index}`} role="option" aria-selected=${index === at} onClick=${() => take(choice)}>${choice.title}</li>`)}</ul>
  </dialog>`;
}

function matching(text) {
  const pages = PAGES.filter((page) => !lacks(page.name) && page.title.toLowerCase().includes(text.toLowerCase())).map((page) => ({ title: page.title, run: () => go(page.name) }));
  if (text === "") return pages;
  const others = [{ title: `Messages: ${text}`, run: () => go("messages", { filter: text }) }];
  if (/^(msg|call)_/.test(text)) others.unshift({ title: `Message ${text}`, run: () => go(["messages", text]) });
  return [...pages, ...others];
}
