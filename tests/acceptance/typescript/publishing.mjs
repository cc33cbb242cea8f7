// Publish, enqueue, batch, and what the destination gets.

import assert from "node:assert/strict";
import { check, NOT_FOUND, refused, until } from "./support.mjs";

check("publish delivers method, headers and body as given, signed", async (world) => {
  const { client } = world;
  const endpoint = world.place();
  const url = `${endpoint.url}/hook/?a=1&b=x%2Fy&empty=`;
  const sent = await client.publish({
    url,
    method: "PUT",
    body: "héllo",
    headers: { "Content-Type": "text/plain", "Test-Header": "test-value" },
  });
  assert.match(sent.messageId, /^msg_/);
  assert.equal(sent.url, url);
  assert.equal(sent.deduplicated, undefined);
  const got = await endpoint.arrival();
  assert.deepEqual([got.method, got.url, got.body], ["PUT", url, "héllo"]);
  assert.equal(got.headers["content-type"], "text/plain");
  assert.equal(got.headers["test-header"], "test-value");
  assert.equal(got.headers["upstash-message-id"], sent.messageId);
  assert.equal(got.headers["upstash-retried"], "0");
  assert.equal(got.headers["upstash-caller-ip"], "127.0.0.1");
  assert.equal(got.headers.authorization, undefined);
  const ours = Object.keys(got.headers).filter((name) => /^upstash-(forward|method|telemetry)/.test(name));
  assert.deepEqual(ours, [], "neither the client's own headers nor its options reach the destination");
});

check("publish takes every kind of body and every method", async (world) => {
  const endpoint = world.place();
  const bytes = new Uint8Array([0, 255, 254, 128]);
  for (const body of [bytes, new Blob(["blob"]), new URLSearchParams({ a: "1 2" }), undefined]) {
    await world.client.publish({ url: endpoint.url, body });
  }
  const form = new FormData();
  form.set("field", "value");
  await world.client.publish({ url: endpoint.url, body: form });
  for (const method of ["GET", "POST", "PUT", "DELETE", "PATCH"]) {
    await world.client.publish({ url: endpoint.url, method, body: method });
  }
  await until("ten deliveries", () => endpoint.received.length === 10);
  const bodies = endpoint.received.map((one) => one.body);
  assert.ok(endpoint.received.some((one) => one.bytes.equals(Buffer.from(bytes))));
  for (const body of ["blob", "a=1+2", ""]) assert.ok(bodies.includes(body), body);
  const posted = endpoint.received.find((one) => one.headers["content-type"]?.startsWith("multipart/form-data"));
  assert.match(posted.body, /name="field"\r\n\r\nvalue/);
  for (const method of ["GET", "POST", "PUT", "DELETE", "PATCH"]) {
    const got = endpoint.received.find((one) => one.body === method);
    assert.equal(got.method, method);
    await endpoint.verify(got);
  }
});

check("B9 B27 publishJSON with every option is kept and read back", async (world) => {
  const url = `${world.place().url}/123/?asdasd=ooo`;
  const sent = await world.client.publishJSON({
    url,
    body: { hello: "world" },
    headers: { "test-header": "test-value", "Upstash-Callback-Forward-X": "y" },
    method: "PATCH",
    delay: "1h",
    retries: 5,
    retryDelay: "1000 * (1 + retried)",
    timeout: 30,
    callback: "http://127.0.0.1:1/callback?a=1&b=2",
    failureCallback: "http://127.0.0.1:1/failure?c=3",
    flowControl: { key: "a-key", parallelism: 3, rate: 7, period: "1m" },
    label: ["first", "second"],
    deduplicationId: "once",
  });
  const message = await world.client.messages.get(sent.messageId);
  assert.equal(message.messageId, sent.messageId);
  assert.equal(message.url, url);
  assert.equal(message.method, "PATCH");
  assert.equal(message.body, '{"hello":"world"}');
  assert.deepEqual(message.header, { "Content-Type": ["application/json"], "Test-Header": ["test-value"] });
  assert.equal(message.maxRetries, 5);
  assert.equal(message.retryDelayExpression, "1000 * (1 + retried)");
  assert.equal(message.callback, "http://127.0.0.1:1/callback?a=1&b=2");
  assert.equal(message.failureCallback, "http://127.0.0.1:1/failure?c=3");
  assert.deepEqual(message.callbackHeader, { X: ["y"] });
  assert.equal(message.flowControlKey, "a-key");
  assert.deepEqual([message.parallelism, message.rate, message.period], [3, 7, 60]);
  assert.equal(message.label, "first");
  assert.deepEqual(message.labels, ["first", "second"]);
  assert.equal(message.notBefore, message.createdAt + 3_600_000);
  assert.equal(message.callerIp, "127.0.0.1");
  const [entry] = await world.logsAt("CREATED", sent.messageId);
  assert.deepEqual([entry.label, entry.labels, entry.timeout], ["first", ["first", "second"], 30_000]);
});

check("B10 the headers of a message are exactly those that were forwarded", async (world) => {
  const { client } = world;
  const url = world.place().url;
  const headers = { "test-header": "test-value" };
  const { messageId } = await client.publish({ url, delay: "1h", headers });
  assert.deepEqual((await client.messages.get(messageId)).header, { "Test-Header": ["test-value"] });
});

check("B11 a delay counts from now, in seconds or as a duration up to days", async (world) => {
  const { client } = world;
  const { url } = world.place();
  const before = Date.now();
  for (const [delay, ms] of [["10d", 864_000_000], [60, 60_000], ["1h", 3_600_000]]) {
    const { messageId } = await client.publish({ url, delay });
    const { notBefore } = await client.messages.get(messageId);
    // The clocks of two processes differ by the milliseconds that each of them cuts off.
    const [earliest, latest] = [before + ms - 100, Date.now() + ms + 100];
    assert.ok(notBefore >= earliest && notBefore <= latest, `${delay}: ${notBefore - before}`);
  }
  const notBefore = Math.floor(Date.now() / 1000) + 120;
  const { messageId } = await client.publish({ url, notBefore });
  assert.equal((await client.messages.get(messageId)).notBefore, notBefore * 1000);
});

check("a delayed message arrives at its time", async (world) => {
  const endpoint = world.place();
  const before = Date.now();
  await world.client.publish({ url: endpoint.url, delay: 1 });
  await endpoint.arrival();
  assert.ok(Date.now() - before >= 990);
});

check("B29 a client-wide header given twice arrives as one value", async (world) => {
  const endpoint = world.place();
  const headers = new Headers({ "x-own": "a" });
  headers.append("x-own", "b");
  headers.append("Upstash-Retries", "0");
  const sent = await world.clientWith({ headers }).publish({ url: endpoint.url });
  assert.equal((await endpoint.arrival()).headers["x-own"], "a, b");
  assert.equal((await world.client.messages.get(sent.messageId)).maxRetries, 0);
});

check("a duplicate gives the first message again, by id and by content", async (world) => {
  const { url } = world.place();
  for (const options of [{ deduplicationId: "order-1" }, { contentBasedDeduplication: true }]) {
    const request = () => world.client.publishJSON({ url, body: { n: 1 }, ...options });
    const [first, second] = [await request(), await request()];
    assert.equal(first.deduplicated, undefined);
    assert.equal(second.deduplicated, true);
    assert.equal(second.messageId, first.messageId);
  }
});

check("a failing endpoint is tried again with the delay asked for", async (world) => {
  const endpoint = world.place({ status: 500, body: "oops" }, { status: 503 }, { body: "ok" });
  const sent = await world.client.publishJSON({ url: endpoint.url, body: 1, retries: 2, retryDelay: "10 * (1 + retried)" });
  const arrivals = await endpoint.arrivals(3);
  assert.deepEqual(arrivals.map((one) => one.headers["upstash-retried"]), ["0", "1", "2"]);
  assert.equal(new Set(arrivals.map((one) => one.headers["upstash-message-id"])).size, 1);
  const entries = await world.logsAt("DELIVERED", sent.messageId);
  const states = entries.map((one) => one.state).filter((state) => state !== "ACTIVE" && state !== "ERROR");
  assert.deepEqual(states, ["CREATED", "RETRY", "RETRY", "DELIVERED"]);
});

check("callbacks tell of success and of failure", async (world) => {
  const endpoint = world.place({ status: 201, body: "done" }, NOT_FOUND);
  const [told, toldFailure] = [world.place(), world.place()];
  const callbacks = { callback: `${told.url}/?x=1`, failureCallback: toldFailure.url, retries: 0 };
  const good = await world.client.publishJSON({ url: endpoint.url, body: { n: 1 }, ...callbacks });
  const success = JSON.parse((await told.arrival()).body);
  assert.equal(success.status, 201);
  assert.equal(atob(success.body), "done");
  assert.equal(success.sourceMessageId, good.messageId);
  assert.equal(atob(success.sourceBody), '{"n":1}');
  const bad = await world.client.publishJSON({ url: endpoint.url, body: { n: 2 }, ...callbacks });
  const failure = JSON.parse((await toldFailure.arrival()).body);
  assert.deepEqual([failure.status, atob(failure.body)], [404, "404 Not Found"]);
  assert.deepEqual([failure.sourceMessageId, failure.retried, failure.maxRetries], [bad.messageId, 0, 0]);
  const { messages } = await world.client.dlq.listMessages({ dlqIds: failure.dlqId });
  assert.deepEqual(messages.map((one) => one.messageId), [bad.messageId]);
});

check("what is redacted is hidden from readers and delivered in clear", async (world) => {
  const endpoint = world.place();
  const request = { url: endpoint.url, body: { hello: "world" }, headers: { "X-Secret": "s", "X-Open": "o" } };
  const some = await world.client.publishJSON({ ...request, redact: { body: true, header: ["X-Secret"] } });
  const got = await endpoint.arrival();
  assert.deepEqual([got.body, got.headers["x-secret"]], ['{"hello":"world"}', "s"]);
  const shown = await world.client.messages.get(some.messageId);
  assert.equal(shown.body, "REDACTED:93a23971a914e5eacbf0a8d25154cda309c3c1c72fbb9914d47c60f3cb681588");
  assert.match(shown.header["X-Secret"][0], /^REDACTED:/);
  assert.deepEqual(shown.header["X-Open"], ["o"]);
  const all = await world.client.publishJSON({ ...request, redact: { header: true } });
  const { header, body } = await world.client.messages.get(all.messageId);
  assert.ok(Object.values(header).flat().every((value) => value.startsWith("REDACTED:")), JSON.stringify(header));
  assert.equal(body, '{"hello":"world"}');
});

check("a URL group gets a message for each endpoint", async (world) => {
  const [one, two] = [world.place(), world.place()];
  const endpoints = [{ name: "one", url: one.url }, { url: two.url }];
  await world.client.urlGroups.addEndpoints({ name: "pair", endpoints });
  for (const target of [{ urlGroup: "pair" }, { topic: "pair" }]) {
    const sent = await world.client.publishJSON({ ...target, body: { to: "both" } });
    assert.deepEqual(sent.map((each) => each.url), [one.url, two.url]);
    const first = await world.client.messages.get(sent[0].messageId);
    assert.deepEqual([first.topicName, first.endpointName], ["pair", "one"]);
    await world.logsAt("DELIVERED", sent[0].messageId);
    await world.logsAt("DELIVERED", sent[1].messageId);
  }
  await one.arrivals(2);
  await two.arrivals(2);
});

check("a queue delivers in order, whatever fails in between", async (world) => {
  const endpoint = world.place({ status: 500 }, {});
  const queue = world.client.queue({ queueName: "line" });
  const options = { url: endpoint.url, retries: 1, retryDelay: "20" };
  const sent = [];
  for (const n of [1, 2]) sent.push(await queue.enqueueJSON({ ...options, body: { n } }));
  sent.push(await queue.enqueue({ ...options, body: "3" }));
  const bodies = (await endpoint.arrivals(4)).map((one) => one.body);
  assert.deepEqual(bodies, ['{"n":1}', '{"n":1}', '{"n":2}', "3"]);
  assert.equal((await world.client.messages.get(sent[0].messageId)).queueName, "line");
  await world.client.urlGroups.addEndpoints({ name: "group", endpoints: [{ url: endpoint.url }] });
  const grouped = await queue.enqueueJSON({ urlGroup: "group", body: 4 });
  assert.equal(grouped.length, 1);
  assert.equal((await endpoint.arrivals(5))[4].body, "4");
});

check("a batch answers item by item, in order", async (world) => {
  const [one, two] = [world.place(), world.place()];
  await world.client.urlGroups.addEndpoints({ name: "pair", endpoints: [{ url: one.url }, { url: two.url }] });
  const texts = await world.client.batch([
    { urlGroup: "pair", body: "to both", headers: { "x-n": "1" } },
    { url: one.url, body: "to one", method: "PUT", deduplicationId: "d" },
    { url: one.url, body: "again", deduplicationId: "d" },
    { url: two.url, queueName: "line", body: "queued" },
  ]);
  assert.equal(texts.length, 4);
  assert.deepEqual(texts[0].map((each) => each.url), [one.url, two.url]);
  assert.equal(texts[2].messageId, texts[1].messageId);
  assert.equal(texts[2].deduplicated, true);
  assert.equal((await world.client.messages.get(texts[3].messageId)).queueName, "line");
  const objects = await world.client.batchJSON([
    { url: one.url, body: { n: 1 }, label: "x" },
    { url: two.url, body: [2], retries: 0, delay: "1h" },
  ]);
  assert.deepEqual((await world.client.messages.get(objects[0].messageId)).labels, ["x"]);
  assert.equal((await world.client.messages.get(objects[1].messageId)).body, "[2]");
  const bodies = (await one.arrivals(3)).map((each) => each.body).sort();
  assert.deepEqual(bodies, ["to both", "to one", '{"n":1}'].sort());
  assert.deepEqual((await two.arrivals(2)).map((each) => each.body).sort(), ["queued", "to both"]);
});

check("a bad item of a batch has an error and its neighbours are sent", async (world) => {
  const endpoint = world.place();
  const answers = await world.client.batch([
    { url: endpoint.url, body: "before" },
    { url: endpoint.url, body: "bad", retryDelay: "nonsense(" },
    { url: "no-such-group", body: "nowhere" },
    { url: endpoint.url, body: "after" },
  ]);
  assert.match(answers[1].error, /Upstash-Retry-Delay/);
  assert.match(answers[2].error, /endpoint has invalid scheme/);
  assert.ok(answers[0].messageId && answers[3].messageId);
  assert.deepEqual((await endpoint.arrivals(2)).map((one) => one.body).sort(), ["after", "before"]);
});

check("a refused publish says what is wrong", async (world) => {
  const { client } = world;
  const { url } = world.place();
  const scheme = /invalid destination url: endpoint has invalid scheme, add http:\/\/ or https:\/\//;
  await refused(client.publish({ url: "no-such-group" }), 400, scheme);
  await refused(client.publish({ url: encodeURIComponent("https://h.example/") }), 400, scheme);
  await refused(client.publish({ url, delay: "10" }), 400, /missing unit in duration/);
  await refused(client.publish({ url, retryDelay: "__import__('os')" }), 400, /Upstash-Retry-Delay/);
  await refused(client.publish({ url, deduplicationId: "a:b" }), 400, /DeduplicationId cannot contain ':'/);
  const flowControl = { key: "k", rate: -1 };
  await refused(client.publish({ url, flowControl }), 400, /Upstash-Flow-Control-Value should be either/);
  await refused(client.queue({ queueName: "a b" }).enqueue({ url }), 400, /queue name/);
  assert.deepEqual((await client.logs()).logs, []);
});

check("a wrong token is refused", async (world) => {
  const stranger = world.clientWith({ token: "wrong" });
  await refused(stranger.publish({ url: world.place().url }), 401, /unauthorized/);
});

check("a batch delivers any JSON value as its JSON text, as JSON.stringify writes it", async (world) => {
  const values = [{ a: [1, { b: null }], "é": "😀", n: 1e-7 }, [1, "two", 3.5, 1e21], 17, 0.1 + 0.2, true, false, {}, []];
  const endpoint = world.place();
  const items = values.map((body) => ({ destination: endpoint.url, body }));
  const sent = await world.call("POST", "/v2/batch", { body: JSON.stringify(items) });
  assert.equal(sent.status, 201);
  await until("all deliveries", () => endpoint.received.length === values.length);
  const bodies = endpoint.received.map((one) => one.body).sort();
  assert.deepEqual(bodies, values.map((value) => JSON.stringify(value)).sort());
});

check("a message or a batch of a workflow run is refused whole", async (world) => {
  const { client } = world;
  const endpoint = world.place();
  const run = { url: endpoint.url, headers: { "Upstash-Workflow-Init": "true", "Upstash-Workflow-RunId": "wfr_1" } };
  await refused(client.publishJSON({ ...run, body: {} }), 501, /workflows are not served/);
  await refused(client.queue({ queueName: "q" }).enqueueJSON({ ...run, body: {} }), 501, /workflows/);
  await refused(client.batchJSON([{ url: endpoint.url, body: {} }, { ...run, body: {} }]), 501, /workflows/);
  assert.deepEqual((await client.logs()).logs, [], "nothing of it is stored");
});

check("headers of one connection that a caller passes on are left out", async (world) => {
  const endpoint = world.place();
  const headers = { "Content-Length": "3", Host: "other.example", Connection: "close, x", "Transfer-Encoding": "chunked" };
  await world.client.publish({ url: endpoint.url, body: "a longer body", headers: { ...headers, X: "1" } });
  const got = await endpoint.arrival();
  assert.deepEqual([got.body, got.headers["content-length"], got.headers.x], ["a longer body", "13", "1"]);
  assert.equal(got.headers.host, new URL(endpoint.url).host);
  assert.equal(got.headers["transfer-encoding"], undefined);
});

check("the body of a callback is what JSON.stringify writes", async (world) => {
  const answered = { status: 200, body: "grüß", headers: { "X-Odd": 'a"b', "Content-Type": "text/plain" } };
  const [endpoint, callback] = [world.place(answered), world.place()];
  await world.client.publishJSON({ url: endpoint.url, body: { a: 1 }, callback: callback.url });
  const { body } = await callback.arrival();
  assert.equal(body, JSON.stringify(JSON.parse(body)));
  assert.deepEqual(JSON.parse(body).header["X-Odd"], ['a"b']);
});
