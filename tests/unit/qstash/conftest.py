"""Fixtures for tests of the client: a server and transports with scripted answers, and a clock that never waits."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from qtasks.errors import BrokerUnreachable
from qtasks.qstash import AsyncQStash, QStash, Reply, Request

TOKEN = "TOKEN"
Cancel = Callable[[str], None]
"""Makes a request to the service at a URL."""


@dataclass(frozen=True)
class ReceivedRequest:
    """A request as the server received it: the raw target, headers in order, body."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


@dataclass
class ScriptedService:
    """A server on a real socket; `received` contains its requests in order."""

    url: str = ""
    received: list[ReceivedRequest] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    """Answers to the next requests: a `Reply`, a value to send as JSON with 200, or a function of the handler."""

    def last(self) -> ReceivedRequest:
        return self.received[-1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together, without a wait of the network stack between them
    service: ScriptedService

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.service.received.append(ReceivedRequest(self.command, self.path, tuple(self.headers.items()), body))
        answer = self.service.answers.pop(0) if self.service.answers else {}
        if callable(answer):
            answer(self)
        else:
            self.reply(answer if isinstance(answer, Reply) else Reply(200, (), json.dumps(answer).encode()))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815

    def reply(self, answer: Reply) -> None:
        self.send_response(answer.status)
        for name, value in (*answer.headers, ("Content-Length", str(len(answer.body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def hang_up(self) -> None:
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@pytest.fixture(scope="session")
def _listening() -> Iterator[ScriptedService]:
    state = ScriptedService()
    handler = type("Handler", (_Handler,), {"service": state})
    server = _Server(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def service(_listening: ScriptedService) -> ScriptedService:
    _listening.received.clear()
    _listening.answers.clear()
    return _listening


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for region in ("", "US_EAST_1_", "EU_CENTRAL_1_"):
        for name in ("URL", "TOKEN", "CURRENT_SIGNING_KEY", "NEXT_SIGNING_KEY", "REGION"):
            monkeypatch.delenv(f"{region}QSTASH_{name}", raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


Outcome = Reply | BrokerUnreachable | dict[str, Any]


class ScriptedTransport:
    """A transport that returns or raises `outcomes` in order, the last one again and again; `sent` has the requests."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.sent: list[Request] = []
        self.timeouts_s: list[float] = []
        self.closed = 0

    def send(self, request: Request, timeout_s: float) -> Reply:
        self.sent.append(request)
        self.timeouts_s.append(timeout_s)
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, BrokerUnreachable):
            raise outcome
        return outcome if isinstance(outcome, Reply) else Reply(200, (), json.dumps(outcome).encode())

    def close(self) -> None:
        self.closed += 1


class AsyncScriptedTransport:
    """`ScriptedTransport` for the asynchronous client."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.sync = ScriptedTransport(*outcomes)

    async def send(self, request: Request, timeout_s: float) -> Reply:
        return self.sync.send(request, timeout_s)

    async def close(self) -> None:
        self.sync.close()


@dataclass
class InstantClock:
    """A clock that `sleep` moves without waiting; `slept_s` lists the seconds asked for."""

    now_s: float = 0.0
    slept_s: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> InstantClock:
    return InstantClock()


def sync_cancel(url: str) -> None:
    with QStash(TOKEN, base_url=url, retry=False) as client:
        client.message.cancel("m")


def async_cancel(url: str) -> None:
    async def run() -> None:
        async with AsyncQStash(TOKEN, base_url=url, retry=False) as client:
            await client.message.cancel("m")

    asyncio.run(run())


@pytest.fixture(params=[sync_cancel, async_cancel], ids=["sync", "async"])
def cancel(request: pytest.FixtureRequest) -> Cancel:
    return request.param  # type: ignore[no-any-return]
