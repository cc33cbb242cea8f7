// Development mode: the SDK looks for its server on a port, knows it by its keys, and uses the public user.

import assert from "node:assert/strict";
import { Client, Receiver, startDevServer } from "@upstash/qstash";
import { check } from "./support.mjs";

const TOKEN = "eyJVc2VySUQiOiJkZWZhdWx0VXNlciIsIlBhc3N3b3JkIjoiZGVmYXVsdFBhc3N3b3JkIn0=";
const KEYS = { current: "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r", next: "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs" };

check("B30 the SDK in development mode takes the broker for its server", async (world) => {
  // First as the SDK asks: were the answer another one, it would try to download a server of its own.
  const init = { headers: { Authorization: `Bearer ${TOKEN}` }, signal: AbortSignal.timeout(2000) };
  assert.deepEqual(await (await fetch(`${world.broker}/v2/keys`, init)).json(), KEYS);
  Object.assign(process.env, { QSTASH_DEV: "1", QSTASH_DEV_PORT: new URL(world.broker).port });
  try {
    await startDevServer();
    const endpoint = world.place();
    await new Client().publishJSON({ url: endpoint.url, body: { dev: true } });
    while (!endpoint.received.length) await new Promise((resolve) => setTimeout(resolve, 20));
    const [got] = endpoint.received;
    const given = { signature: got.headers["upstash-signature"], body: got.body, url: got.url };
    assert.equal(await new Receiver().verify(given), true);
  } finally {
    delete process.env.QSTASH_DEV;
    delete process.env.QSTASH_DEV_PORT;
  }
});
