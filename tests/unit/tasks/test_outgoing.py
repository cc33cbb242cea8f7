"""A call on its way out: its envelope is encoded once, however it is sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import context as otel
from opentelemetry import trace

from qtasks import chain, group
from qtasks.llm import ChatMessage, user
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.send.outgoing import Outgoing
from qtasks.tasks.send.send_middleware import Sending
from qtasks.tasks.task import Task
from tests.unit.tasks.manual_broker import ManualBroker

pytestmark = pytest.mark.anyio


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Envelope]:
    """The envelopes that were encoded."""
    envelopes_encoded: list[Envelope] = []
    encode = envelopes.encode

    def recording(envelope: Envelope) -> bytes:
        envelopes_encoded.append(envelope)
        return encode(envelope)

    monkeypatch.setattr(envelopes, "encode", recording)
    return envelopes_encoded


@pytest.fixture
def broker() -> Iterator[ManualBroker]:
    broker = ManualBroker()
    yield broker
    broker.tasks.close()


@pytest.fixture
def add(broker: ManualBroker) -> Task[..., int]:
    @broker.tasks.task
    def add(a: int, b: int = 0) -> int:
        return a + b

    return add


WAYS: dict[str, tuple[Callable[[Any], Any], int]] = {
    "delay": (lambda add: add.delay(1), 1),
    "unique": (lambda add: add.using(unique=True).delay(1), 1),
    "map": (lambda add: add.map([1, 2, 3]), 3),
    "chain": (lambda add: chain(add.s(1), add.s(2), add.s(3)).delay(), 1),
    "group in a chain": (lambda add: (group(add.s(1), add.s(2)) | add.si(3)).delay(), 2),
}


@pytest.mark.parametrize("way", WAYS)
async def test_each_call_is_encoded_once(
    broker: ManualBroker, add: Task[..., int], encoded: list[Envelope], way: str
) -> None:
    send, messages = WAYS[way]
    send(add)
    # The arguments of a later call are tried in an envelope without a call.
    assert len([envelope for envelope in encoded if envelope.call_id is not None]) == messages


async def test_a_call_with_middleware_and_a_trace_is_encoded_once(
    broker: ManualBroker, add: Task[..., int], encoded: list[Envelope]
) -> None:
    @broker.tasks.send_middleware
    def tenant(message: Outgoing) -> Sending:
        yield message.carrying({"tenant": "acme"})

    parent = trace.SpanContext(0xA1, 0xB2, is_remote=False, trace_flags=trace.TraceFlags(1))
    token = otel.attach(trace.set_span_in_context(trace.NonRecordingSpan(parent)))
    try:
        await add.adelay(1)
    finally:
        otel.detach(token)
    assert len(encoded) == 1
    assert broker.take().envelope["carried"].keys() == {"tenant", "traceparent"}


async def test_a_call_to_a_language_model_is_encoded_once(broker: ManualBroker, encoded: list[Envelope]) -> None:
    @broker.tasks.llm(model="any")
    def words(text: str) -> list[ChatMessage]:
        return [user(text)]

    words.delay("hello")
    assert len(encoded) == 1


async def test_the_body_of_a_schedule_is_encoded_once(broker: ManualBroker, encoded: list[Envelope]) -> None:
    @broker.tasks.cron("0 9 * * *", args=[1])
    def report(day: int) -> None: ...

    (schedule,) = broker.tasks.schedules.check()
    assert len(encoded) == 1
    assert json.loads(schedule.body)["args"] == [1]


async def test_the_call_that_follows_is_encoded_once(
    broker: ManualBroker, add: Task[..., int], encoded: list[Envelope]
) -> None:
    chain(add.s(1), add.s(2)).delay()
    first = broker.take()
    encoded.clear()
    await broker.deliver(first)
    assert len(encoded) == 1
