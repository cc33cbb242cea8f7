"""What the broker's tests share: a virtual clock, seeded randomness, a scripted transport, and messages to deliver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from qtasks.broker.core.values import Publication
from qtasks.broker.ports import DeliveryRequest, Failure
from qtasks.protocol import wire
from qtasks.protocol.messages import Message, PublishOptions, Response
from qtasks.testing.fakes import virtual_clock
from qtasks.testing.fakes.virtual_clock import SeededRandom

__all__ = ["ACCOUNT", "START_MS", "ScriptedTransport", "SeededRandom", "VirtualClock", "message", "publication"]

START_MS = 1_800_000_000_000
ACCOUNT = 1


class VirtualClock(virtual_clock.VirtualClock):
    """A virtual clock that starts at `START_MS`."""

    def __init__(self, now_ms: int = START_MS) -> None:
        super().__init__(now_ms)


class ScriptedTransport:
    """A transport that answers each request with `answer(request)`; `sent` lists the requests."""

    def __init__(
        self, answer: Callable[[DeliveryRequest], Response | Failure] = lambda request: Response(status=200)
    ) -> None:
        self.answer = answer
        self.sent: list[DeliveryRequest] = []

    async def send(self, request: DeliveryRequest) -> Response | Failure:
        self.sent.append(request)
        return self.answer(request)

    async def close(self) -> None: ...


def message(number: int, *, now_ms: int = START_MS, **changes: Any) -> Message:
    """Message `msg_<number>`: due at once, three retries, a unique body. `changes` replace fields."""
    plain = Message(
        id=f"msg_{number}",
        account=ACCOUNT,
        url="http://127.0.0.1:8000/qtasks/add",
        method="POST",
        headers=(("Content-Type", "application/json"),),
        body=f'{{"n":{number}}}'.encode(),
        created_ms=now_ms,
        not_before_ms=now_ms,
        max_retries=3,
        timeout_ms=30_000,
        caller_ip="127.0.0.1",
        options=PublishOptions(),
    )
    return replace(plain, **changes)


def publication(number: int, *, deduplication_key: str | None = None, **changes: Any) -> Publication:
    new_message = message(number, **changes)
    return Publication(new_message, wire.host_of(new_message.url), deduplication_key)
