// Reads lines of {message, task} and writes, for each, the texts that the page offers for copying, as one JSON array.
import { readFileSync } from "node:fs";

const [library] = process.argv.slice(2);
const { asCommand, asCurl, asPython } = await import(`${library}/copy.js`);
const { readCall } = await import(`${library}/call.js`);

const service = "https://broker.example";
const texts = readFileSync(0, "utf8").split("\n").filter(Boolean).map((line) => {
  const { message, task } = JSON.parse(line);
  const call = task ? readCall(message.body) : null;
  return {
    curl: asCurl(message, service, call).text,
    python: asPython(message, service, task, call).text,
    command: asCommand(task, call)?.text ?? null,
  };
});
process.stdout.write(JSON.stringify(texts));
