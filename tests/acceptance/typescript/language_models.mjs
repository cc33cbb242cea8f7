// Publishing to language models and mail services: a local stand-in for their servers sees what they would see.

import assert from "node:assert/strict";
import { anthropic, custom, openai, resend, upstash } from "@upstash/qstash";
import { check } from "./support.mjs";

const COMPLETION = { id: "chatcmpl-1", object: "chat.completion", choices: [{ message: { content: "Hi." } }] };
const JSON_ANSWER = { body: JSON.stringify(COMPLETION), headers: { "Content-Type": "application/json" } };
const MESSAGES = [{ role: "user", content: "hello" }];
const ECHO = /built-in echo model.*hello$/;

/** The providers' servers, which the SDK knows by fixed addresses, stand on this machine. */
function at(baseUrl, provider) {
  return Object.assign(provider, { baseUrl });
}

async function publishTo(world, provider, body) {
  const told = world.place();
  const sent = await world.client.publishJSON({ api: { name: "llm", provider }, body, callback: told.url });
  const callback = JSON.parse((await told.arrival()).body);
  assert.equal(callback.sourceMessageId, sent.messageId);
  assert.equal(callback.status, 200);
  return { answer: JSON.parse(atob(callback.body)), callback };
}

check("an OpenAI-compatible server is called and its answer comes to the callback", async (world) => {
  const model = world.place(JSON_ANSWER);
  const provider = custom({ baseUrl: `${model.url}/v1/chat/completions`, token: "secret-1" });
  const { answer } = await publishTo(world, provider, { model: "m", messages: MESSAGES });
  assert.deepEqual(answer, COMPLETION);
  const asked = await model.arrival();
  assert.equal(asked.url, `${model.url}/v1/chat/completions`);
  assert.equal(asked.method, "POST");
  assert.equal(asked.headers.authorization, "Bearer secret-1");
  assert.equal(asked.headers["content-type"], "application/json");
  assert.deepEqual(JSON.parse(asked.body), { model: "m", messages: MESSAGES });
});

check("openai and anthropic get their own headers on their own paths", async (world) => {
  const model = world.place(JSON_ANSWER);
  await publishTo(world, at(model.url, openai({ token: "k1", organization: "org" })), { model: "m", messages: MESSAGES });
  await publishTo(world, at(model.url, anthropic({ token: "k2" })), { model: "c", messages: MESSAGES });
  const [first, second] = await model.arrivals(2);
  assert.equal(first.url, `${model.url}/v1/chat/completions`);
  assert.equal(first.headers.authorization, "Bearer k1");
  assert.equal(first.headers["openai-organization"], "org");
  assert.equal(second.url, `${model.url}/v1/messages`);
  assert.equal(second.headers["x-api-key"], "k2");
  assert.ok(second.headers["anthropic-version"]);
});

check("the upstash provider is answered by the broker's own model", async (world) => {
  const { answer } = await publishTo(world, upstash(), { model: "any", messages: MESSAGES });
  assert.equal(answer.object, "chat.completion");
  assert.match(answer.choices[0].message.content, ECHO);
});

check("a batch mixes language models, mail and URLs", async (world) => {
  const [model, mail, told] = [world.place(JSON_ANSWER), world.place({ body: "{}" }), world.place()];
  const body = { model: "m", messages: MESSAGES };
  const own = custom({ baseUrl: model.url, token: "t" });
  const answers = await world.client.batchJSON([
    { api: { name: "llm", provider: own }, body, callback: told.url },
    { api: { name: "llm" }, body, callback: told.url },
    { api: { name: "email", provider: at(mail.url, resend({ token: "r" })) }, body: { to: "a@h.example" } },
  ]);
  assert.ok(answers.every((one) => one.messageId));
  assert.equal((await model.arrival()).headers.authorization, "Bearer t");
  const sent = await mail.arrival();
  assert.deepEqual([sent.headers.authorization, sent.body], ["Bearer r", '{"to":"a@h.example"}']);
  const sources = (await told.arrivals(2)).map((one) => JSON.parse(one.body).sourceMessageId);
  assert.deepEqual(sources.sort(), answers.slice(0, 2).map((one) => one.messageId).sort());
});

check("mail goes to the mail service, one or many", async (world) => {
  const mail = world.place({ body: "{}" });
  const body = { from: "a@h.example", to: ["b@h.example"], subject: "s", html: "<p>x</p>" };
  await world.client.publishJSON({ api: { name: "email", provider: at(mail.url, resend({ token: "r" })) }, body });
  const batch = at(mail.url, resend({ token: "r", batch: true }));
  await world.client.publishJSON({ api: { name: "email", provider: batch }, body: [body] });
  const urls = (await mail.arrivals(2)).map((one) => one.url).sort();
  assert.deepEqual(urls, [`${mail.url}/emails`, `${mail.url}/emails/batch`]);
});

async function streamed(chunks) {
  const seen = [];
  for await (const chunk of chunks) seen.push(chunk);
  return seen;
}

check("chat completions are answered whole and as a stream", async (world) => {
  const chat = world.client.chat();
  const request = { provider: upstash(), model: "any", messages: MESSAGES };
  const whole = await chat.create(request);
  assert.equal(whole.object, "chat.completion");
  assert.match(whole.choices[0].message.content, ECHO);
  assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);
  const chunks = await streamed(await chat.create({ ...request, stream: true }));
  assert.ok(chunks.every((chunk) => chunk.object === "chat.completion.chunk"));
  assert.equal(chunks[0].choices[0].delta.role, "assistant");
  assert.equal(chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""), whole.choices[0].message.content);
  assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
  const prompted = await chat.prompt({ provider: upstash(), model: "any", system: "be brief", user: "hello" });
  assert.match(prompted.choices[0].message.content, ECHO);
});
