// Reads lines of {names, values, headers}, values as JSON texts by name, and writes the header lines of each call as one JSON array.
import { readFileSync } from "node:fs";

const [library] = process.argv.slice(2);
const { labelled } = await import(`${library}/call.js`);
const { parse } = await import(`${library}/lossless.js`);

const calls = readFileSync(0, "utf8").split("\n").filter(Boolean).map((line) => JSON.parse(line));
const made = await Promise.all(calls.map(({ names, values, headers }) =>
  labelled(headers, names, new Map(Object.entries(values).map(([name, text]) => [name, parse(text)])))));
process.stdout.write(JSON.stringify(made));
