"""A broker whose answers a test holds back, as the transport of a publisher: blocking and for event loops."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qtasks import QTasks
from qtasks.protocol.headers import BROKER_HEADER
from qtasks.qstash.conversation.transport import Reply, Request
from qtasks.tasks.send.publisher import Publisher
from tests.support.tasks import application

PATIENCE_S = 20.0


@dataclass(frozen=True)
class Stored:
    """A message that the broker has."""

    message_id: str
    number: int


@dataclass
class GatedBroker:
    """Stores each deduplication id once. While `held`, a request waits for `release`, before it is looked at."""

    is_ours: bool = True
    url: str = "http://broker.internal"
    held: bool = False
    refused: frozenset[int] = frozenset()
    """The arguments of calls that are refused."""
    batch_status: int = 201
    fault: Callable[[Request], Reply | None] | None = None
    """Answers in place of the broker, or raises; called with every request once it is released."""
    requests: list[list[int]] = field(default_factory=list)
    """The arguments of the calls of each request, in the order of their answers."""
    stored: dict[str, Stored] = field(default_factory=dict)
    arrived: int = 0

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._released = 0
        self.tasks: QTasks = application(url=self.url)

        @self.tasks.task
        def work(n: int) -> int:
            return n

        self.work = work
        self.publisher = Publisher(self.tasks.settings, transport=self, async_transport=_OnLoop(self))

    def publish(self, number: int) -> str:
        """Publish a call; returns its message id."""
        return self.publisher.publish(self.work.message((number,), {})).message_id

    async def apublish(self, number: int) -> str:
        """As `publish`, on the event loop."""
        return (await self.publisher.apublish(self.work.message((number,), {}))).message_id

    def numbers(self) -> list[int]:
        """The arguments of the stored calls, sorted."""
        return sorted(each.number for each in self.stored.values())

    def of(self, message_id: str) -> int:
        """The argument of a stored call."""
        return next(each.number for each in self.stored.values() if each.message_id == message_id)

    def release(self, count: int = 1) -> None:
        """Let the `count` oldest requests be answered that are held."""
        with self._changed:
            self._released += count
            self._changed.notify_all()

    def release_all(self) -> None:
        """Hold nothing any more."""
        self.held = False
        self.release(0)

    def wait_for_requests(self, count: int) -> None:
        """Wait until `count` requests have arrived in all."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.arrived >= count, PATIENCE_S)

    def send(self, request: Request, timeout_s: float) -> Reply:
        """See `SyncTransport`."""
        with self._changed:
            place = self.arrived
            self.arrived += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: not self.held or self._released > place, PATIENCE_S)
            return self._answer(request)

    def close(self) -> None:
        """See `SyncTransport`."""

    def _answer(self, request: Request) -> Reply:
        if self.fault is not None and (reply := self.fault(request)) is not None:
            return reply
        if not request.url.endswith("/v2/batch"):
            number = _number(request.body)
            self.requests.append([number])
            accepted = self._store(dict(request.headers), number)
            return self._reply(400 if "error" in accepted else 201, accepted)
        items: Sequence[Mapping[str, Any]] = json.loads(request.body)
        self.requests.append([_number(item["body"]) for item in items])
        if self.batch_status != 201:
            return self._reply(self.batch_status, {"error": "no batches here"})
        return self._reply(201, [self._store(item["headers"], _number(item["body"])) for item in items])

    def _store(self, headers: Mapping[str, str], number: int) -> dict[str, Any]:
        if number in self.refused:
            return {"error": f"{number} is refused"}
        key = headers["Upstash-Deduplication-Id"]
        is_known = key in self.stored
        stored = self.stored.setdefault(key, Stored(f"msg_{len(self.stored)}", number))
        return {"messageId": stored.message_id, **({"deduplicated": True} if is_known else {})}

    def _reply(self, status: int, document: object) -> Reply:
        own = ((BROKER_HEADER, "true"),) if self.is_ours else ()
        return Reply(status, (("Content-Type", "application/json"), *own), json.dumps(document).encode())


@dataclass
class _OnLoop:
    broker: GatedBroker

    async def send(self, request: Request, timeout_s: float) -> Reply:
        return await asyncio.get_running_loop().run_in_executor(None, self.broker.send, request, timeout_s)

    async def close(self) -> None:
        pass


def _number(body: str | bytes) -> int:
    number: int = json.loads(body)["args"][0]
    return number


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds in another thread."""
    until_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until_s
        threading.Event().wait(0.001)


class Callers:
    """Threads, each with one call."""

    def __init__(self, broker: GatedBroker) -> None:
        self._broker = broker
        self._threads: list[threading.Thread] = []
        self.answers: dict[int, str | BaseException] = {}

    def call(self, *numbers: int) -> None:
        """Begin a call for each of `numbers`, in threads."""
        for number in numbers:
            thread = threading.Thread(target=self._call, args=(number,))
            self._threads.append(thread)
            thread.start()

    def wait_until_waiting(self, count: int) -> None:
        """Wait until `count` calls wait for a request."""
        departures = self._broker.publisher._calls._coalescer._departures
        until(lambda: len(departures._waiting) == count)

    def join(self) -> dict[int, str | BaseException]:
        """Wait for all calls; returns a message id or an error for each."""
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        return self.answers

    def _call(self, number: int) -> None:
        try:
            self.answers[number] = self._broker.publish(number)
        except BaseException as error:
            self.answers[number] = error
