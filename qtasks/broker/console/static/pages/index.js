// The pages in the order of the navigation. `detail` shows one item: its id is the second part of the address. `query` is
// how the navigation opens a page. One that `isRare` is in the navigation only once there is something on it.
import { Audit } from "./audit.js";
import { DeadLetters } from "./dead_letters.js";
import { Endpoints } from "./endpoints.js";
import { Failure, Failures } from "./failures.js";
import { Live } from "./live.js";
import { Llm } from "./llm.js";
import { Message } from "./message.js";
import { Messages } from "./messages.js";
import { Overview } from "./overview.js";
import { Queues } from "./queues.js";
import { Schedule, Schedules } from "./schedules.js";
import { System } from "./system.js";
import { Task, Tasks } from "./tasks.js";
import { UrlGroups } from "./url_groups.js";

export const PAGES = [
  { name: "overview", title: "Overview", group: "Now", key: "o", view: Overview },
  { name: "messages", title: "Messages", group: "Now", key: "m", view: Messages, detail: Message },
  { name: "failures", title: "Failures", group: "Now", key: "f", view: Failures, detail: Failure },
  { name: "dead-letters", title: "Dead letters", group: "Now", key: "d", view: DeadLetters },
  { name: "events", title: "Live stream", group: "Now", key: "l", view: Live },
  { name: "llm", title: "Language models", group: "Now", key: "a", view: Llm, isRare: true },
  { name: "tasks", title: "Tasks", group: "Set up", key: "t", view: Tasks, detail: Task },
  { name: "schedules", title: "Schedules", group: "Set up", key: "s", view: Schedules, detail: Schedule },
  { name: "queues", title: "Queues and limits", group: "Set up", key: "q", view: Queues },
  { name: "endpoints", title: "Endpoints", group: "Destinations", key: "e", view: Endpoints },
  { name: "url-groups", title: "URL groups", group: "Destinations", key: "u", view: UrlGroups },
  { name: "audit", title: "Audit", group: "Broker", key: "a", view: Audit },
  { name: "system", title: "System", group: "Broker", key: "y", view: System },
];
