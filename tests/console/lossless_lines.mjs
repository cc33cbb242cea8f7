// Reads JSON texts with the console's own reader: a line of the input is [path of the module] or a JSON string with a text.
// A line of the output is {"tree", "written"}, or {"error"} for a text that is not JSON.
import { createInterface } from "node:readline";

let reader;

function tree(value) {
  if (value instanceof reader.JsonNumber) return { number: value.text };
  if (value instanceof reader.JsonObject) return { object: value.members.map(([name, item]) => [name, tree(item)]) };
  if (Array.isArray(value)) return { array: value.map(tree) };
  return { value };
}

for await (const line of createInterface({ input: process.stdin })) {
  const given = JSON.parse(line);
  if (Array.isArray(given)) {
    reader = await import(given[0]);
    continue;
  }
  let answer;
  try {
    const value = reader.parse(given);
    answer = { tree: tree(value), written: reader.write(value) };
  } catch (error) {
    answer = { error: `${error.name}: ${error.message}` };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
