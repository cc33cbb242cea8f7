"""A complete broker in memory for several applications, on a clock that only the test moves; no sockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from qtasks import QTasks
from qtasks.broker.broker import Broker
from qtasks.broker.ports import DeliveryRequest as Attempt
from qtasks.broker.ports import Failure
from qtasks.broker.settings import BrokerSettings
from qtasks.protocol import development
from qtasks.protocol.messages import Response
from qtasks.qstash.conversation.transport import Reply, Request
from qtasks.tasks.ports import ASGIApp, Connection
from qtasks.testing.fakes.virtual_clock import TaskClock
from tests.support import tasks as asgi
from tests.support.api import Service
from tests.support.broker import ScriptedTransport, SeededRandom, VirtualClock

T = TypeVar("T")

PATIENCE_S = 20.0
BASE_URL = "https://app.example.com/qtasks"
_BROKER = "http://broker.internal"


class SimulatedBroker:
    """A broker on an event loop in a separate thread; all applications share the account of one user."""

    def __init__(self, start: str = "2030-05-01T00:00:30+00:00") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.clock = VirtualClock(int(datetime.fromisoformat(start).timestamp() * 1000))
        opening = Broker.open(BrokerSettings(path=":memory:"), transport=self, clock=self.clock, random=SeededRandom())
        self.service = Service(self.call(opening), self.clock, ScriptedTransport())
        self.apps: dict[str, ASGIApp] = {}
        self.requests: list[Request] = []
        """The requests of the applications to the API."""
        self.forgets_pauses = False
        """True: replacing a schedule resumes it. QStash does not promise to keep the pause."""

    def application(self, base_url: str = BASE_URL, *, results: str | None = "memory://", **settings: Any) -> QTasks:
        """An application that receives deliveries at `base_url`; each base URL is a separate environment."""
        if results is not None:
            settings["results"] = results
        tasks = QTasks(embedded=_EmbeddedBroker(self, base_url), **settings)
        tasks.runtime.clock = TaskClock(self.clock)
        return tasks

    def run(self) -> None:
        """Fire schedules and deliver messages that are due."""
        self.call(self.service.run())

    def advance(self, **span: float) -> None:
        """Move the clock minute by minute, and run what becomes due."""
        remaining_ms = int(timedelta(**span) / timedelta(milliseconds=1))
        while remaining_ms > 0:
            step_ms = min(remaining_ms, 60_000)
            self.clock.advance(step_ms)
            self.run()
            remaining_ms -= step_ms

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock.now_ms() / 1000, UTC)

    @property
    def schedules(self) -> dict[str, dict[str, Any]]:
        """The schedules that the API lists, by id."""
        return {schedule["scheduleId"]: schedule for schedule in self.call(self.service.get("/v2/schedules"))}

    def written(self) -> list[str]:
        """Method and path of each request that was not a GET since the last call of `written`."""
        writes = [request for request in self.requests if request.method != "GET"]
        self.requests.clear()
        return [f"{request.method} {request.url.removeprefix(_BROKER)}" for request in writes]

    def handle(self, request: Request) -> Reply:
        """Answer one request to the API, as the client's transport."""
        self.requests.append(request)
        path = request.url.removeprefix(_BROKER)
        headers = dict(request.headers)
        if self.forgets_pauses and request.method == "POST" and path.startswith("/v2/schedules/"):
            self.call(self.service.call("DELETE", f"/v2/schedules/{headers['Upstash-Schedule-Id']}"))
        answered = self.call(self.service.call(request.method, path, headers, request.body))
        return Reply(answered.status, tuple(answered.headers.items()), answered.body)

    async def send(self, attempt: Attempt) -> Response | Failure:
        """Deliver one message to its application, as the broker's transport."""
        base_url, _, task = attempt.url.rpartition("/")
        answer = await asgi.request(self.apps[base_url], f"/qtasks/{task}", attempt.body, headers=dict(attempt.headers))
        return Response(status=answer.status, headers=tuple(answer.headers.items()), body=answer.body)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    async def close(self) -> None: ...

    def stop(self) -> None:
        self.call(self.service.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _EmbeddedBroker:
    """Connects one application to the broker."""

    def __init__(self, broker: SimulatedBroker, base_url: str) -> None:
        self._broker = broker
        self._base_url = base_url

    def start(self, app: ASGIApp, loop: asyncio.AbstractEventLoop | None) -> Connection:
        self._broker.apps[self._base_url] = app
        user = development.USERS[0]
        return Connection(
            url=_BROKER,
            token=user.token,
            keys=user.keys,
            base_url=self._base_url,
            results="memory://",
            transport=_Transport(self._broker),
        )

    def stop(self) -> None: ...


class _Transport:
    def __init__(self, broker: SimulatedBroker) -> None:
        self._broker = broker

    def send(self, request: Request, timeout_s: float) -> Reply:
        return self._broker.handle(request)

    def close(self) -> None: ...
