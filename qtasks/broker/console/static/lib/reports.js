// Short reports after something was done.
import { signal } from "./view.js";

export const notice = signal(null);

const SHOWN_MS = 6000;
let timer;

// Show one sentence, a text or a node, at the foot of the page for some seconds.
export function report(text) {
  notice.value = text;
  clearTimeout(timer);
  timer = setTimeout(() => {
    notice.value = null;
  }, SHOWN_MS);
}
