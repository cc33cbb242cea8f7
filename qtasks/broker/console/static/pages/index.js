// The pages in the order of the navigation. `detail` shows one item: its id is the second part of the address.
import { Overview } from "./overview.js";

export const PAGES = [
  { name: "overview", title: "Overview", group: "Now", key: "o", view: Overview },
];
