"""What tests of the framework share: an application with fixed settings, and signed deliveries to it."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from qtasks import QTasks
from qtasks.clock import Clock, SystemClock
from qtasks.protocol import signing
from qtasks.protocol.messages import SigningKeys
from qtasks.qstash.conversation.transport import Reply, Request
from qtasks.randomness import SystemRandom
from qtasks.tasks.hooks import Hooks
from qtasks.tasks.ports import ASGIApp, Connection
from qtasks.tasks.results.backend import ResultBackend
from qtasks.tasks.results.writer import ResultWriter
from qtasks.tasks.run.dispatcher import Dispatcher
from qtasks.tasks.run.executor import AttemptExecutor
from qtasks.tasks.run.flows.continuation import Continuation
from qtasks.tasks.run.lease import RunLeases
from qtasks.tasks.run.runner import Runner
from qtasks.tasks.run.thread_pool import ThreadPool
from qtasks.tasks.settings import SettingsOverrides

KEYS = SigningKeys("sig_" + "c" * 28, "sig_" + "n" * 28)
BASE_URL = "https://app.example.com/qtasks"


_TOKENS = itertools.count()


def application(**overrides: Any) -> QTasks:
    """An application with all settings given: it reads neither the environment nor a dev server's file."""
    settings: dict[str, Any] = {
        "url": "https://broker.example.com",
        "token": "token-of-the-tests",
        "base_url": BASE_URL,
        "current_signing_key": KEYS.current,
        "next_signing_key": KEYS.next,
        "results": "memory://",
        **overrides,
    }
    return QTasks(**cast("SettingsOverrides", {name: value for name, value in settings.items() if value is not None}))


def dispatcher_of(
    tasks: QTasks,
    results: ResultBackend | None,
    *,
    keys: SigningKeys = KEYS,
    threads: int = 1,
    secrets: Sequence[str] = (),
    clock: Clock | None = None,
) -> Dispatcher:
    """A dispatcher for `tasks` that publishes nothing."""
    clock = clock or SystemClock()
    writer = ResultWriter(results)
    executor = AttemptExecutor(
        Runner(ThreadPool(threads), ()),
        writer,
        Continuation(tasks.tasks, writer, None, clock),
        hooks=Hooks(),
        secrets=secrets,
        clock=clock,
        random=SystemRandom(),
    )
    return Dispatcher(tasks.tasks, executor, keys=keys, base_url=BASE_URL, clock=clock)


def without_leases(dispatcher: Dispatcher) -> None:
    """Let the dispatcher run every delivery, duplicates too."""
    dispatcher._executor._leases = RunLeases(ResultWriter(None), SystemClock())


def envelope(*args: Any, call_id: str | None = "", retries: int | None = 3, **kwargs: Any) -> bytes:
    """The body of a call. Each has a new call id unless `call_id` is given; None leaves the id out."""
    document: dict[str, Any] = {"v": 1, "args": args, "kwargs": kwargs}
    if call_id is not None:
        document["id"] = call_id or f"call_{next(_TOKENS)}"
    if retries is not None:
        document["retries"] = retries
    return json.dumps(document).encode()


def signature(url: str, body: bytes, *, key: str = KEYS.current, age_s: int = 0) -> str:
    """The signature token of a delivery that was signed `age_s` seconds ago."""
    return signing.sign(key, url=url, body=body, now_s=int(time.time()) - age_s, jti=f"jwt_{next(_TOKENS)}")


@dataclass(frozen=True)
class Answer:
    """The answer to an ASGI request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])


async def request(
    app: ASGIApp,
    path: str,
    body: bytes = b"",
    *,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    pieces: int = 1,
) -> Answer:
    """Send one ASGI request. `path` may have a query; the body arrives in `pieces` parts."""
    path, _, query = path.partition("?")
    size = -(-len(body) // pieces) or 1
    parts = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": part, "more_body": index < len(parts) - 1} for index, part in enumerate(parts)
    ]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        "client": ("127.0.0.1", 1),
        "server": ("internal.example", 80),
    }
    await app(scope, receive, send)
    return Answer(
        sent[0]["status"],
        {name.decode(): value.decode() for name, value in sent[0]["headers"]},
        b"".join(part.get("body", b"") for part in sent[1:]),
    )


async def deliver(
    app: ASGIApp,
    task: str,
    body: bytes | None = None,
    *,
    base_url: str = BASE_URL,
    prefix: str = "/qtasks",
    signed: str | None = None,
    message_id: str = "msg_1",
    retried: int = 0,
    **headers: str,
) -> Answer:
    """Send one delivery, signed and with the headers of a broker; `signed` replaces the signature."""
    content = envelope() if body is None else body
    lines = {
        "Upstash-Signature": signature(f"{base_url}/{task}", content) if signed is None else signed,
        "Upstash-Message-Id": message_id,
        "Upstash-Retried": str(retried),
        "Content-Type": "application/json",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    return await request(app, f"{prefix}/{task}", content, headers=lines)


class RecordingTransport:
    """A transport that accepts every publish and records the request; it lists no schedules."""

    def __init__(self, **answer: Any) -> None:
        self.requests: list[Request] = []
        self.answer = {"messageId": "msg_published", **answer}
        self.closed = False

    def send(self, request: Request, timeout_s: float) -> Reply:
        if request.method == "GET" and request.url.endswith("/v2/schedules"):
            return Reply(200, (("Content-Type", "application/json"),), b"[]")
        self.requests.append(request)
        return Reply(201, (("Content-Type", "application/json"),), json.dumps(self.answer).encode())

    def close(self) -> None:
        self.closed = True


class RecordingBroker:
    """An embedded broker that delivers nothing: `transport` records what the application publishes."""

    def __init__(self, base_url: str = "http://embedded.internal/somewhere", results: str = "memory://") -> None:
        self.transport = RecordingTransport()
        self.started: list[tuple[ASGIApp, asyncio.AbstractEventLoop | None]] = []
        self.stops = 0
        self.base_url = base_url
        self.results = results

    def start(self, app: ASGIApp, loop: asyncio.AbstractEventLoop | None) -> Connection:
        self.started.append((app, loop))
        return Connection(
            url="http://broker.internal",
            token="token-of-the-embedded-broker",
            keys=KEYS,
            base_url=self.base_url,
            results=self.results,
            transport=self.transport,
        )

    def stop(self) -> None:
        self.stops += 1

    @property
    def app(self) -> ASGIApp:
        """The ASGI application that receives the deliveries."""
        return self.started[-1][0]
