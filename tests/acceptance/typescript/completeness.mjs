// Sees to it that the checks drive everything the SDK offers.

import assert from "node:assert/strict";
import { Client, Receiver } from "@upstash/qstash";
import { check } from "./support.mjs";

const client = new Client({ baseUrl: "http://127.0.0.1:1", token: "unused" });
const { urlGroups, dlq, messages, schedules, flowControl, workflow } = client;
const parts = { urlGroups, dlq, messages, schedules, flowControl, workflow, queue: client.queue(), chat: client.chat() };
const INTERNAL = /^(constructor|verifyWithKey|verifyBodyAndUrl|getAuthorizationToken|createThirdParty)$/;

const notCalled = new Set();

for (const [part, { prototype }] of [["client", Client], ["receiver", Receiver], ...classes(parts)]) {
  for (const [name, { value, get }] of Object.entries(Object.getOwnPropertyDescriptors(prototype))) {
    if (INTERNAL.test(name)) continue;
    const label = `${part}.${name}`;
    notCalled.add(label);
    const noted = (original) =>
      function (...given) {
        notCalled.delete(label);
        return original.apply(this, given);
      };
    Object.defineProperty(prototype, name, get ? { get: noted(get) } : { value: noted(value) });
  }
}

function classes(instances) {
  return Object.entries(instances).map(([part, instance]) => [part, instance.constructor]);
}

check("everything the SDK offers was called", async () => {
  assert.deepEqual([...notCalled], []);
});
