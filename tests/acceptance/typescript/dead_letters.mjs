// The dead letter queue: listed, deleted, retried; by id, by filter, by page.

import assert from "node:assert/strict";
import { check, NOT_FOUND, refused } from "./support.mjs";

const listed = async (world, options) => (await world.client.dlq.listMessages(options)).messages;
const letterOf = async (world, messageId) => (await listed(world, { filter: { messageId } }))[0];

check("B12 B27 a message that fails for good is a dead letter with the last answer", async (world) => {
  const { url } = world.place(NOT_FOUND);
  const request = { url, body: { n: 1 }, retryDelay: "1000", label: ["first", "second"] };
  const [id] = await world.dead({ ...request, flowControl: { key: "k", parallelism: 2 } });
  const letter = await letterOf(world, id);
  assert.deepEqual([letter.messageId, letter.url, letter.body], [id, url, '{"n":1}']);
  assert.deepEqual([letter.responseStatus, letter.responseBody], [404, "404 Not Found"]);
  assert.deepEqual(letter.responseHeader["Content-Type"], ["text/plain"]);
  assert.deepEqual([letter.retryDelayExpression, letter.maxRetries], ["1000", 0]);
  assert.deepEqual([letter.label, letter.labels], ["first", ["first", "second"]]);
  assert.deepEqual([letter.flowControlKey, letter.parallelism], ["k", 2]);
  const [same] = await listed(world, { dlqIds: letter.dlqId });
  assert.deepEqual(same, letter);
  await world.client.dlq.delete(letter.dlqId);
  assert.deepEqual(await listed(world), []);
  await refused(world.client.dlq.delete(letter.dlqId), 404, /not found/);
});

check("B14 five dead letters are deleted by their ids, and those already gone are no error", async (world) => {
  const { url } = world.place(NOT_FOUND);
  await world.dead(...[1, 2, 3, 4, 5, 6].map((body) => ({ url, body })));
  const ids = (await listed(world)).map((one) => one.dlqId);
  assert.deepEqual(await world.client.dlq.deleteMany({ dlqIds: ids.slice(0, 5) }), { deleted: 5 });
  assert.deepEqual(await world.client.dlq.deleteMany({ dlqIds: ids.slice(0, 5) }), { deleted: 0 });
  assert.deepEqual(await world.client.dlq.delete(ids), { deleted: 1 });
});

check("B15 dead letters are listed by filter", async (world) => {
  const places = [world.place(NOT_FOUND), world.place({ status: 500 })];
  const endpoints = [{ url: places[0].url }];
  await world.client.urlGroups.addEndpoints({ name: "g", endpoints });
  const flowControl = { key: "k", parallelism: 2 };
  const [first, second, third] = await world.dead(
    { url: places[0].url, label: "red", flowControl },
    { url: places[1].url, label: "blue" },
    { url: places[1].url, label: "green" },
  );
  const [grouped] = await world.client.publishJSON({ urlGroup: "g", retries: 0 });
  await world.logsAt("FAILED", grouped.messageId);
  const queued = await world.client.queue({ queueName: "q" }).enqueue({ url: places[1].url, retries: 0 });
  await world.logsAt("FAILED", queued.messageId);
  const found = async (filter) => (await listed(world, { filter })).map((one) => one.messageId).sort();
  assert.deepEqual(await found({ label: ["red", "blue"] }), [first, second].sort());
  assert.deepEqual(await found({ url: places.map((one) => one.url), label: "green" }), [third]);
  assert.deepEqual(await found({ flowControlKey: ["k", "other"] }), [first]);
  assert.deepEqual(await found({ responseStatus: 404 }), [first, grouped.messageId].sort());
  assert.deepEqual(await found({ responseStatus: [500], label: ["green"] }), [third]);
  assert.deepEqual(await found({ urlGroup: "g" }), [grouped.messageId]);
  assert.deepEqual(await found({ queueName: "q" }), [queued.messageId]);
  assert.deepEqual(await found({ messageId: second }), [second]);
  assert.deepEqual(await found({ scheduleId: "none" }), []);
  assert.deepEqual(await found({ callerIp: "127.0.0.1", fromDate: 0, toDate: new Date() }).then((all) => all.length), 5);
  assert.deepEqual(await found({ toDate: 1 }), []);
  const [page, rest] = [await world.client.dlq.listMessages({ count: 4 }), []];
  assert.equal(page.messages.length, 4);
  rest.push(...(await listed(world, { cursor: page.cursor, count: 4 })));
  assert.equal(rest.length, 1);
  assert.equal((await world.client.dlq.listMessages({ count: 5 })).cursor, undefined);
});

check("B15 dead letters are deleted by filter, by count and page by page", async (world) => {
  const { dlq } = world.client;
  const { url } = world.place(NOT_FOUND);
  await world.dead(...["a", "a", "b", "c", "d"].map((label) => ({ url, label })));
  await refused(dlq.delete({ filter: { labeel: "a" } }), 400, /labeel/);
  await refused(dlq.retry({ filter: { labeel: "a" } }), 400, /labeel/);
  assert.deepEqual(await dlq.delete({ filter: { label: "nobody" } }), { deleted: 0 });
  assert.equal((await dlq.delete({ filter: { label: "a" }, count: 1 })).deleted, 1);
  assert.deepEqual(await dlq.delete({ filter: { label: ["a", "b"] } }), { deleted: 2 });
  await assert.rejects(dlq.delete({ dlqIds: [] }), /Empty dlqIds/);
  assert.equal((await listed(world)).length, 2);
  let [deleted, pages, cursor] = [0, 0, undefined];
  do {
    const result = await dlq.delete({ all: true, count: 1, cursor });
    [deleted, pages, cursor] = [deleted + result.deleted, pages + 1, result.cursor];
  } while (cursor && pages < 5);
  assert.equal(deleted, 2);
  assert.deepEqual(await listed(world), []);
});

check("B16 dead letters are retried by id, by filter, and all in turn", async (world) => {
  const { dlq } = world.client;
  const endpoint = world.place(...Array(5).fill(NOT_FOUND), {});
  const ids = await world.dead(...[1, 2, 3, 4, 5].map((body) => ({ url: endpoint.url, body, label: `l${body}` })));
  const letters = await listed(world);
  const one = await dlq.retry(letters.find((letter) => letter.messageId === ids[0]).dlqId);
  assert.equal(one.responses.length, 1);
  assert.ok(!one.cursor && !ids.includes(one.responses[0].messageId));
  await world.logsAt("DELIVERED", one.responses[0].messageId);
  const byFilter = await dlq.retry({ filter: { label: ["l2", "l3"] } });
  assert.equal(byFilter.responses.length, 2);
  const counted = await dlq.retry({ all: true, count: 1 });
  assert.equal(counted.responses.length, 1);
  const last = await dlq.retry((await listed(world)).map((letter) => letter.dlqId));
  assert.equal(last.responses.length, 1);
  assert.ok(!last.cursor);
  assert.deepEqual((await dlq.retry({ all: true })).responses, []);
  assert.deepEqual(await listed(world), []);
  const again = (await endpoint.arrivals(10)).slice(5).map((one) => one.body).sort();
  assert.deepEqual(again, ["1", "2", "3", "4", "5"]);
  const { maxRetries, label } = await world.client.messages.get(counted.responses[0].messageId);
  assert.equal(maxRetries, 0);
  assert.match(label, /^l[45]$/);
});
