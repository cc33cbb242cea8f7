// Drives the official TypeScript SDK, unchanged, against a broker. The numbers B6 to B30 in the names of checks are those
// of the conformance checklist in docs/protocol.md, appendix B.
//
//     QTASKS_BROKER=http://127.0.0.1:8080 QTASKS_USERS='{"<name of a check>": {"token", "current", "next"}}' node run.mjs

import "./publishing.mjs";
import "./signatures.mjs";
import "./messages.mjs";
import "./dead_letters.mjs";
import "./resources.mjs";
import "./language_models.mjs";
import "./development.mjs";
import "./completeness.mjs";
import { run } from "./support.mjs";

console.log = console.error; // the SDK greets in development mode; the results have standard output to themselves

await run(process.env.QTASKS_BROKER, JSON.parse(process.env.QTASKS_USERS));
