// What happens now, over time, and what needs a person.
import { html } from "../lib/view.js";
import { useView } from "../lib/live.js";
import { Heading, Loaded } from "../parts/basic.js";

export function Overview() {
  const view = useView("overview");
  return html`<${Heading} title="Overview" /><${Loaded} view=${view}>${(data) => html`<pre>${JSON.stringify(data, null, 1)}</pre>`}<//>`;
}
