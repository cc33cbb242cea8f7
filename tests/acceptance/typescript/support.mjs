// What every check uses: the register of checks, a receiving server, and patience.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { Client, Receiver } from "@upstash/qstash";

const PATIENCE_MS = 10_000;

const registered = [];

/** Register a check; `body` gets a `World` of its own. Checks run one after the other, in the order of registration. */
export function check(name, body) {
  registered.push({ name, body });
}

/** Run every check and print one line of JSON each: its name, whether it held, and what was seen if not. */
export async function run(broker, users) {
  const server = await ReceivingServer.start();
  for (const { name, body } of registered) {
    let error;
    try {
      await body(new World(broker, users[name], server));
    } catch (thrown) {
      error = thrown;
    }
    const detail = error === undefined ? "" : (error.stack ?? String(error));
    process.stdout.write(JSON.stringify({ name, ok: error === undefined, detail }) + "\n");
  }
  server.stop();
}

/** What `probe` returns as soon as it is truthy. */
export async function until(what, probe) {
  const end = Date.now() + PATIENCE_MS;
  for (;;) {
    const found = await probe();
    if (found) return found;
    if (Date.now() > end) throw new Error(`waited ${PATIENCE_MS} ms in vain: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** The error of a promise that must be rejected with this status and a text that matches. */
export async function refused(promise, status, text) {
  const error = await promise.then(
    (value) => assert.fail(`expected a refusal, got ${JSON.stringify(value)}`),
    (error) => error,
  );
  assert.equal(error.name, "QstashError", String(error.stack));
  assert.equal(error.status, status, error.message);
  assert.match(error.message, text);
  assert.equal(typeof JSON.parse(error.message).error, "string", "an error body is an object with a text");
  return error;
}

/** A user of the broker with a client of the official SDK, and places that receive what is published. */
class World {
  constructor(broker, user, server) {
    this.broker = broker;
    this.user = user;
    this.server = server;
    this.client = this.clientWith({});
  }

  clientWith(config) {
    return new Client({ baseUrl: this.broker, token: this.user.token, retry: false, ...config });
  }

  /** An endpoint that answers with `answers` in turn, the last of them for ever. */
  place(...answers) {
    return this.server.place(this.user, answers.length ? answers : [{}]);
  }

  /** A call that the SDK has no method for. */
  async call(method, path, init = {}) {
    const headers = { Authorization: `Bearer ${this.user.token}`, ...init.headers };
    return fetch(this.broker + path, { method, ...init, headers });
  }

  /** The log entries of a message, oldest first, once it has come to `state`. */
  async logsAt(state, messageId) {
    return until(`${messageId} is ${state}`, async () => {
      const { logs } = await this.client.logs({ filter: { messageId } });
      return logs.some((entry) => entry.state === state) && logs.reverse();
    });
  }

  /** Publish what fails at once and for good; the ids of the messages, once they are dead letters. */
  async dead(...requests) {
    const sent = await Promise.all(requests.map((request) => this.client.publishJSON({ retries: 0, ...request })));
    const ids = sent.map((one) => one.messageId);
    await Promise.all(ids.map((id) => this.logsAt("FAILED", id)));
    return ids;
  }
}

export const NOT_FOUND = { status: 404, body: "404 Not Found", headers: { "Content-Type": "text/plain" } };

/** One URL of the receiving server, and what came there. */
class Place {
  constructor(url, user, answers) {
    this.url = url;
    this.user = user;
    this.answers = answers;
    this.received = [];
    this.waiting = [];
  }

  take(request) {
    const answer = this.answers.length > 1 ? this.answers.shift() : this.answers[0];
    this.received.push(request);
    for (const told of this.waiting.splice(0)) told();
    return typeof answer === "function" ? answer(request) : answer;
  }

  /** The first `count` requests, in order of arrival, each verified by the official receiver. */
  async arrivals(count) {
    const end = Date.now() + PATIENCE_MS;
    while (this.received.length < count) {
      const left = end - Date.now();
      assert.ok(left > 0, `${this.received.length} of ${count} requests came to ${this.url}`);
      let timer;
      await Promise.race([
        new Promise((resolve) => this.waiting.push(resolve)),
        new Promise((resolve) => (timer = setTimeout(resolve, left))),
      ]);
      clearTimeout(timer);
    }
    const arrived = this.received.slice(0, count);
    for (const request of arrived) await this.verify(request);
    return arrived;
  }

  async arrival() {
    return (await this.arrivals(1))[0];
  }

  async verify(request, changes = {}) {
    const receiver = new Receiver({ currentSigningKey: this.user.current, nextSigningKey: this.user.next });
    const given = { signature: request.headers["upstash-signature"], body: request.body, url: request.url };
    assert.equal(await receiver.verify({ ...given, ...changes }), true);
  }
}

/** A real HTTP server; every place on it has a path of its own, and keeps what comes below that path. */
class ReceivingServer {
  static async start() {
    const made = new ReceivingServer();
    await new Promise((resolve) => made.server.listen(0, "127.0.0.1", resolve));
    made.origin = `http://127.0.0.1:${made.server.address().port}`;
    return made;
  }

  constructor() {
    this.places = new Map();
    this.server = createServer((request, response) => void this.serve(request, response));
  }

  place(user, answers) {
    const name = `p${this.places.size}`;
    const place = new Place(`${this.origin}/${name}`, user, answers);
    this.places.set(name, place);
    return place;
  }

  async serve(request, response) {
    const pieces = [];
    for await (const piece of request) pieces.push(piece);
    const bytes = Buffer.concat(pieces);
    const url = this.origin + request.url;
    const place = this.places.get(new URL(url).pathname.split("/")[1]);
    const { method, headers } = request;
    const answer = await place.take({ method, url, headers, bytes, body: bytes.toString("utf8") });
    response.writeHead(answer.status ?? 200, answer.headers ?? {});
    for (const piece of [answer.body ?? ""].flat()) response.write(piece);
    response.end();
  }

  stop() {
    this.server.close();
    this.server.closeAllConnections();
  }
}
