// Queues, URL groups, schedules, flow control.

import assert from "node:assert/strict";
import { check, refused, until } from "./support.mjs";

check("B17 a queue is made, changed, listed, paused and deleted", async (world) => {
  const queue = world.client.queue({ queueName: "line" });
  await queue.upsert({ parallelism: 1 });
  const made = await queue.get();
  assert.deepEqual([made.name, made.parallelism, made.paused, made.lag], ["line", 1, false, 0]);
  await queue.upsert({ parallelism: 2 });
  const changed = await queue.get();
  assert.deepEqual([changed.parallelism, changed.createdAt], [2, made.createdAt]);
  assert.ok(changed.updatedAt >= made.updatedAt);
  assert.deepEqual(await world.client.queue().list(), [changed]);
  await queue.pause();
  assert.equal((await queue.get()).paused, true);
  const endpoint = world.place();
  await queue.enqueueJSON({ url: endpoint.url, body: 1 });
  assert.equal((await queue.get()).lag, 1);
  await queue.resume();
  await endpoint.arrival();
  await until("an empty queue", async () => (await queue.get()).lag === 0);
  await queue.upsert({ paused: true });
  assert.equal((await queue.get()).paused, true);
  await queue.delete();
  assert.deepEqual(await queue.list(), []);
  await refused(queue.get(), 404, /queue line not found/);
  await queue.delete();
});

check("B18 a URL group is made, listed, changed and deleted", async (world) => {
  const groups = world.client.urlGroups;
  await groups.delete("unknown");
  const [one, two] = [{ name: "First endpoint", url: world.place().url }, { url: world.place().url }];
  await groups.addEndpoints({ name: "pair", endpoints: [one, two] });
  const made = await groups.get("pair");
  assert.deepEqual([made.name, made.endpoints], ["pair", [one, two]]);
  assert.ok(made.createdAt > 1_600_000_000_000 && made.updatedAt >= made.createdAt);
  assert.deepEqual(await world.client.topics.list(), [made]);
  const moved = { name: "First endpoint", url: world.place().url };
  await groups.addEndpoints({ name: "pair", endpoints: [moved] });
  assert.deepEqual((await groups.get("pair")).endpoints, [moved, two]);
  await groups.removeEndpoints({ name: "pair", endpoints: [{ name: "First endpoint" }] });
  assert.deepEqual((await groups.get("pair")).endpoints, [two]);
  await groups.removeEndpoints({ name: "pair", endpoints: [{ url: two.url }] });
  await refused(groups.get("pair"), 404, /pair/);
  await groups.addEndpoints({ name: "other", endpoints: [two] });
  await groups.delete("other");
  assert.deepEqual(await groups.list(), []);
});

check("B19 a schedule is made, read, paused, resumed and deleted", async (world) => {
  const { schedules } = world.client;
  const { url } = world.place();
  const { scheduleId } = await schedules.create({ destination: url, cron: "1 1 1 1 1" });
  assert.match(scheduleId, /^scd_/);
  const made = await schedules.get(scheduleId);
  assert.deepEqual([made.destination, made.cron, made.method, made.retries], [url, "1 1 1 1 1", "POST", 3]);
  assert.equal(made.isPaused, false);
  assert.ok(made.nextScheduleTime > Date.now() && made.lastScheduleTime === undefined);
  assert.deepEqual((await schedules.list()).map((one) => one.scheduleId), [scheduleId]);
  await schedules.pause({ schedule: scheduleId });
  assert.equal((await schedules.get(scheduleId)).isPaused, true);
  await schedules.resume({ schedule: scheduleId });
  assert.equal((await schedules.get(scheduleId)).isPaused, false);
  await schedules.delete(scheduleId);
  assert.deepEqual(await schedules.list(), []);
  await refused(schedules.get(scheduleId), 404, /not found/);
  await refused(schedules.create({ destination: url, cron: "61 * * * *" }), 400, /cron/i);
});

const EVERYTHING = {
  scheduleId: "nightly.report_1",
  cron: "*/10 * * * * ",
  body: "a body",
  headers: { "Bypass-Tunnel-Reminder": "client-test", "test-header": "test-value" },
  method: "PUT",
  delay: 10,
  retries: 5,
  retryDelay: "1000",
  timeout: "30s",
  queueName: "line",
  label: ["first", "second"],
  flowControl: { key: "k", parallelism: 2 },
};

check("B20 B22 a schedule with everything comes back with everything", async (world) => {
  const { schedules } = world.client;
  const destination = world.place().url;
  const callbacks = { callback: `${destination}/c?x=1`, failureCallback: `${destination}/f` };
  const { scheduleId } = await schedules.create({ ...EVERYTHING, ...callbacks, destination });
  assert.equal(scheduleId, EVERYTHING.scheduleId);
  const shown = await schedules.get(scheduleId);
  assert.deepEqual(shown.header, {
    "Bypass-Tunnel-Reminder": ["client-test"],
    "Content-Type": ["application/json"],
    "Test-Header": ["test-value"],
  });
  const { scheduleId: id, createdAt, nextScheduleTime, header, callerIP, ...rest } = shown;
  assert.ok(id && createdAt && nextScheduleTime && header && callerIP);
  assert.deepEqual(rest, {
    destination,
    cron: "*/10 * * * *",
    body: "a body",
    method: "PUT",
    delay: 10,
    retries: 5,
    retryDelayExpression: "1000",
    timeout: 30,
    queueName: "line",
    ...callbacks,
    label: "first",
    labels: ["first", "second"],
    flowControlKey: "k",
    parallelism: 2,
    period: 1,
    isPaused: false,
    callerIp: "127.0.0.1",
  });
});

check("B21 a schedule of the same id replaces the other, body and all", async (world) => {
  const { schedules } = world.client;
  const [first, second] = [world.place().url, world.place().url];
  await schedules.create({ scheduleId: "same", destination: first, cron: "* * * * *", body: "old" });
  await schedules.create({ scheduleId: "same", destination: second, cron: "0 0 * * *" });
  const [only, ...others] = await schedules.list();
  assert.deepEqual(others, []);
  assert.deepEqual([only.destination, only.cron, only.body], [second, "0 0 * * *", undefined]);
  const redact = { body: true, header: ["Authorization"] };
  const secret = { scheduleId: "same", destination: second, cron: "@daily", body: "x", headers: { Authorization: "y" } };
  await schedules.create({ ...secret, redact });
  const { body, header } = await schedules.get("same");
  assert.match(body, /^REDACTED:/);
  assert.match(header.Authorization[0], /^REDACTED:/);
});

check("B23 a flow-control key is read, paused, pinned, unpinned and reset", async (world) => {
  const { flowControl } = world.client;
  const endpoint = world.place();
  const options = { url: endpoint.url, flowControl: { key: "k", parallelism: 5, ratePerSecond: 2, period: "1m" } };
  await world.client.publish(options);
  const made = await flowControl.get("k");
  assert.equal(made.flowControlKey, "k");
  assert.deepEqual([made.parallelismMax, made.rateMax, made.ratePeriod], [5, 2, 60]);
  for (const count of [made.waitListSize, made.parallelismCount, made.rateCount, made.ratePeriodStart]) {
    assert.equal(typeof count, "number");
  }
  assert.deepEqual([made.isPaused, made.isPinnedParallelism, made.isPinnedRate], [false, false, false]);
  await endpoint.arrival();
  await until("one start counted", async () => (await flowControl.get("k")).rateCount === 1);
  await flowControl.resetRate("k");
  assert.equal((await flowControl.get("k")).rateCount, 0);
  await flowControl.pause("k");
  assert.equal((await flowControl.get("k")).isPaused, true);
  await world.client.publish(options);
  assert.equal((await flowControl.get("k")).waitListSize, 1);
  await flowControl.resume("k");
  await endpoint.arrivals(2);
  assert.equal((await flowControl.get("k")).isPaused, false);
  await flowControl.pin("k", { parallelism: 3, rate: 20, period: 120 });
  const pinned = await flowControl.get("k");
  assert.deepEqual([pinned.isPinnedParallelism, pinned.isPinnedRate], [true, true]);
  assert.deepEqual([pinned.parallelismMax, pinned.rateMax, pinned.ratePeriod], [3, 20, 120]);
  await world.client.publish(options);
  assert.deepEqual((await flowControl.get("k")).parallelismMax, 3, "a pin holds against what messages bring");
  await flowControl.unpin("k", { parallelism: true });
  const half = await flowControl.get("k");
  assert.deepEqual([half.isPinnedParallelism, half.isPinnedRate], [false, true]);
  await flowControl.unpin("k", { parallelism: true, rate: true });
  const none = await flowControl.get("k");
  assert.deepEqual([none.isPinnedParallelism, none.isPinnedRate], [false, false]);
  await refused(flowControl.get("unknown"), 404, /unknown not found/);
  await refused(flowControl.pin("k", { rate: 0 }), 400, /rate/);
});

check("B24 the global parallelism is two numbers", async (world) => {
  const { parallelismMax, parallelismCount } = await world.client.flowControl.getGlobalParallelism();
  assert.equal(typeof parallelismMax, "number");
  assert.equal(parallelismCount, 0);
});

check("parallelism holds back what is beyond it", async (world) => {
  let [running, most] = [0, 0];
  const answer = async () => {
    most = Math.max(most, ++running);
    await new Promise((resolve) => setTimeout(resolve, 30));
    running--;
    return {};
  };
  const endpoint = world.place(answer);
  const flowControl = { key: "narrow", parallelism: 2 };
  const sent = [1, 2, 3, 4, 5, 6].map((body) => world.client.publishJSON({ url: endpoint.url, body, flowControl }));
  await Promise.all(sent);
  await endpoint.arrivals(6);
  assert.equal(most, 2);
});

check("a workflow is refused in plain words", async (world) => {
  await refused(world.client.workflow.cancel("wfr_1"), 501, /workflows are not served/);
});
