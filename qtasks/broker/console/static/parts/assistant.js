// A failure as one text for an assistant: shown first, so that its reader sees what leaves the console.
import { html, useState } from "../lib/view.js";
import { get, lacks, seesPayloads } from "../lib/api.js";
import { report } from "../lib/reports.js";
import { ask } from "./dialog.js";

// `path` is that of the failure or message below console/api/.
export function ForAssistant({ path }) {
  const [busy, setBusy] = useState(false);
  if (!seesPayloads() || lacks("assistant")) return null;
  const show = async () => {
    setBusy(true);
    try {
      const { text } = await get(`${path}/assistant`);
      ask({
        title: "Copy for an assistant", confirm: "Copy", isWide: true,
        text: html`<p class="note">Values of secret names are masked. Look whether anything else must not leave here.</p><pre class="raw" tabindex="0" aria-label="Text for an assistant">${text}</pre>`,
        act: async () => {
          await copy(text);
          return "The text is copied.";
        },
      });
    } catch (error) {
      report(error.message);
    } finally {
      setBusy(false);
    }
  };
  return html`<button type="button" onClick=${show} disabled=${busy}>Copy for an assistant</button>`;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    throw new Error("This browser lets the page copy nothing: choose the text and copy it by hand.");
  }
}
