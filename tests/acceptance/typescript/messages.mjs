// Messages that wait, cancelled one by one, many, and by filter; and the log.

import assert from "node:assert/strict";
import { QstashEmptyArrayError } from "@upstash/qstash";
import { check, refused } from "./support.mjs";

async function delayed(world, ...requests) {
  const url = world.place().url;
  const sent = await Promise.all(
    requests.map((request) => world.client.publish({ ...("urlGroup" in request ? {} : { url }), delay: "1h", ...request })),
  );
  return sent.map((one) => one.messageId);
}

check("B6 two of three delayed messages are cancelled by their ids, then all that are left", async (world) => {
  const ids = await delayed(world, {}, {}, {});
  assert.deepEqual(await world.client.messages.cancel(ids.slice(0, 2)), { cancelled: 2 });
  assert.deepEqual(await world.client.messages.cancel({ messageIds: ids.slice(0, 2) }), { cancelled: 0 });
  assert.deepEqual(await world.client.messages.cancel({ all: true }), { cancelled: 1 });
  assert.deepEqual(await world.client.messages.cancel([]), { cancelled: 0 });
});

check("B7 a single cancel says that it was one", async (world) => {
  const [id] = await delayed(world, {});
  assert.deepEqual(await world.client.messages.cancel(id), { cancelled: 1 });
  const states = (await world.logsAt("CANCELED", id)).map((entry) => entry.state);
  assert.equal(states[0], "CREATED");
  await refused(world.client.messages.cancel(id), 404, /not found, or already finished/);
});

check("B8 messages are cancelled by flow-control keys, paths, host, label and count", async (world) => {
  const { messages } = world.client;
  const flow = (key) => ({ flowControl: { key, rate: 1, period: "1d" } });
  await delayed(world, flow("a"), flow("b"), flow("c"));
  assert.deepEqual(await messages.cancel({ filter: { flowControlKey: ["a", "b"] } }), { cancelled: 2 });
  const { origin } = world.server;
  const at = (path) => ({ url: origin + path });
  await delayed(world, at("/one"), at("/two?x=1"), at("/three"), { url: "http://localhost:1/one" });
  assert.deepEqual(await messages.cancel({ filter: { path: ["/one", "/two"], host: "127.0.0.1" } }), { cancelled: 2 });
  assert.deepEqual(await messages.cancel({ filter: { host: ["localhost"] } }), { cancelled: 1 });
  await delayed(world, { label: "red" }, { label: ["red", "blue"] }, { label: "green" });
  assert.deepEqual(await messages.cancel({ filter: { label: "red" }, count: 1 }), { cancelled: 1 });
  assert.deepEqual(await messages.cancel({ filter: { label: ["red", "blue"] } }), { cancelled: 1 });
  assert.deepEqual(await messages.cancel({ all: true, count: 1 }), { cancelled: 1 });
  assert.deepEqual(await messages.cancel({ all: true }), { cancelled: 2 }, "c, /three and green, of which one is gone");
});

check("one bulk cancel takes all that match, however many wait", async (world) => {
  const { messages } = world.client;
  const wait = (count, label) => {
    const one = { url: world.place().url, delay: "1h", label };
    return world.client.batch(Array.from({ length: count }, () => one));
  };
  await wait(150, "red");
  await wait(130, "blue");
  assert.deepEqual(await messages.cancel({ filter: { label: "red" } }), { cancelled: 150 });
  assert.deepEqual(await messages.cancel({ all: true, count: 20 }), { cancelled: 20 }, "an older client means its count");
  assert.deepEqual(await messages.cancel({ all: true }), { cancelled: 110 });
});

check("messages are cancelled by URL, group, queue, caller and time", async (world) => {
  const { messages } = world.client;
  const { origin } = world.server;
  const [first] = await delayed(world, { url: `${origin}/a,b` }, { url: `${origin}/c` });
  assert.deepEqual(await messages.cancel({ filter: { url: `${origin}/a,b` } }), { cancelled: 1 });
  await world.client.urlGroups.addEndpoints({ name: "g", endpoints: [{ url: `${origin}/1` }, { url: `${origin}/2` }] });
  await world.client.publish({ urlGroup: "g", delay: "1h" });
  assert.deepEqual(await messages.cancel({ filter: { urlGroup: "g" } }), { cancelled: 2 });
  const queue = world.client.queue({ queueName: "q" });
  await queue.upsert({ parallelism: 1, paused: true });
  await queue.enqueue({ url: `${origin}/q` });
  assert.deepEqual(await messages.cancel({ filter: { queueName: ["q", "other"] } }), { cancelled: 1 });
  const { createdAt } = await messages.get(first);
  assert.deepEqual(await messages.cancel({ filter: { toDate: createdAt - 1 } }), { cancelled: 0 });
  assert.deepEqual(await messages.cancel({ filter: { callerIp: "192.0.2.1" } }), { cancelled: 0 });
  const filter = { fromDate: new Date(createdAt), toDate: Date.now(), callerIp: "127.0.0.1" };
  assert.deepEqual(await messages.cancel({ filter }), { cancelled: 1 });
});

check("the older names for cancelling do the same", async (world) => {
  const ids = await delayed(world, {}, {}, {}, {});
  assert.equal(await world.client.messages.delete(ids[0]), undefined);
  assert.equal(await world.client.messages.deleteMany(ids.slice(0, 2)), 1);
  assert.equal(await world.client.messages.deleteAll(), 2);
});

check("a filter that nobody knows cancels nothing", async (world) => {
  const [id] = await delayed(world, {});
  await refused(world.client.messages.cancel({ filter: { labeel: "x" } }), 400, /labeel/);
  await assert.rejects(world.client.messages.cancel({ filter: { label: [] } }), QstashEmptyArrayError);
  assert.equal((await world.client.messages.get(id)).messageId, id);
  assert.deepEqual(await world.client.messages.cancel(id), { cancelled: 1 });
  await refused(world.client.messages.get("msg_unknown"), 404, /msg_unknown not found/);
});

check("B26 B27 logs are filtered by label, url, host and path", async (world) => {
  const { client } = world;
  const { origin } = world.server;
  const place = world.place();
  const path = new URL(place.url).pathname;
  const [red, blue] = await Promise.all([
    client.publish({ url: `${place.url}`, label: ["red", "extra"] }),
    client.publish({ url: `${place.url}/blue`, label: "blue" }),
  ]);
  const [far] = await delayed(world, { url: "http://localhost:1/far" });
  await world.logsAt("DELIVERED", red.messageId);
  await world.logsAt("DELIVERED", blue.messageId);
  const found = async (filter) => {
    const { logs, events, cursor } = await client.logs({ filter });
    assert.ok(Array.isArray(events));
    assert.equal(cursor, undefined);
    return [...new Set(logs.map((one) => one.messageId))].sort();
  };
  const both = [red.messageId, blue.messageId].sort();
  assert.deepEqual(await found({ label: ["red", "blue"] }), both);
  assert.deepEqual(await found({ label: "extra" }), [red.messageId]);
  assert.deepEqual(await found({ url: [place.url, "http://localhost:1/far"] }), [red.messageId, far].sort());
  assert.deepEqual(await found({ host: new URL(origin).hostname }), both);
  assert.deepEqual(await found({ path: [path, `${path}/blue`] }), both);
  assert.deepEqual(await found({ label: "blue", path: `${path}/blue`, host: "localhost" }), []);
  assert.deepEqual(await found({ label: "nobody" }), []);
  const [entry] = (await client.logs({ filter: { messageId: red.messageId } })).logs;
  assert.deepEqual([entry.label, entry.labels, entry.state], ["red", ["red", "extra"], "DELIVERED"]);
});

check("logs are read by id, state, time and page, latest first", async (world) => {
  const { client } = world;
  const ids = await delayed(world, {}, {}, {});
  await client.messages.cancel(ids[2]);
  await world.logsAt("CANCELED", ids[2]);
  const all = (await client.logs()).logs;
  assert.deepEqual(all.map((one) => one.time), all.map((one) => one.time).sort((a, b) => b - a));
  const byId = (await client.logs({ messageIds: ids.slice(0, 2) })).logs;
  assert.deepEqual(byId.map((one) => one.messageId).sort(), ids.slice(0, 2).sort());
  const cancelled = (await client.logs({ filter: { state: "CANCELED" } })).logs;
  assert.deepEqual(cancelled.map((one) => one.messageId), [ids[2]]);
  assert.equal((await client.logs({ filter: { toDate: all.at(-1).time - 1 } })).logs.length, 0);
  assert.equal((await client.logs({ filter: { fromDate: new Date(all.at(-1).time) } })).logs.length, all.length);
  const paged = [];
  let cursor;
  do {
    const page = await client.events({ cursor, count: 2 });
    assert.ok(page.events.length <= 2);
    paged.push(...page.events);
    cursor = page.cursor;
  } while (cursor);
  assert.deepEqual(paged, all);
});
