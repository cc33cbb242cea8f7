// The SDK's own receiver, and keys that change.

import assert from "node:assert/strict";
import { Receiver, SignatureError } from "@upstash/qstash";
import { check } from "./support.mjs";

check("the receiver refuses another body, another URL and other keys", async (world) => {
  const endpoint = world.place();
  await world.client.publishJSON({ url: endpoint.url, body: { amount: 1 } });
  const got = await endpoint.arrival();
  for (const changes of [{ body: '{"amount":1000}' }, { url: `${endpoint.url}/other` }]) {
    await assert.rejects(endpoint.verify(got, changes), SignatureError);
  }
  const stranger = new Receiver({ currentSigningKey: "sig_other", nextSigningKey: "sig_another" });
  const given = { signature: got.headers["upstash-signature"], body: got.body, url: got.url };
  await assert.rejects(stranger.verify(given), SignatureError);
});

check("the receiver finds the keys of the region a delivery names", async (world) => {
  const endpoint = world.place();
  await world.client.publishJSON({ url: endpoint.url, body: 1 });
  const got = await endpoint.arrival();
  const upstashRegion = got.headers["upstash-region"];
  assert.match(upstashRegion, /^(EU-CENTRAL-1|US-EAST-1)$/);
  const prefix = upstashRegion.replaceAll("-", "_");
  const environment = {
    QSTASH_REGION: "US_EAST_1",
    [`${prefix}_QSTASH_CURRENT_SIGNING_KEY`]: world.user.current,
    [`${prefix}_QSTASH_NEXT_SIGNING_KEY`]: world.user.next,
  };
  Object.assign(process.env, environment);
  try {
    const given = { signature: got.headers["upstash-signature"], body: got.body, url: got.url };
    assert.equal(await new Receiver().verify({ ...given, upstashRegion }), true);
  } finally {
    for (const name of Object.keys(environment)) delete process.env[name];
  }
});

check("keys rotate under receivers that know the old pair", async (world) => {
  const endpoint = world.place();
  await world.client.publish({ url: endpoint.url, body: "before" });
  await endpoint.arrival();
  const before = await (await world.call("GET", "/v2/keys")).json();
  assert.deepEqual(before, { current: world.user.current, next: world.user.next });
  const after = await (await world.call("POST", "/v2/keys/rotate")).json();
  assert.equal(after.current, before.next);
  assert.match(after.next, /^sig_/);
  assert.ok(![before.current, before.next].includes(after.next));
  assert.deepEqual(await (await world.call("GET", "/v2/keys")).json(), after);
  await world.client.publish({ url: endpoint.url, body: "after" });
  const [, second] = await endpoint.arrivals(2);
  const onlyNew = new Receiver({ currentSigningKey: after.current, nextSigningKey: after.next });
  const given = { signature: second.headers["upstash-signature"], body: second.body, url: second.url };
  assert.equal(await onlyNew.verify(given), true);
});
