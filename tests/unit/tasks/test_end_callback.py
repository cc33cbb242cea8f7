"""What every message says about its call: its id, where its end is reported, how long interruptions are free."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from qtasks import Snooze, chain
from qtasks.errors import ConfigurationError, DefinitionError, PayloadError
from qtasks.llm import ChatMessage, user
from qtasks.protocol.messages import PublishOptions
from qtasks.tasks.send.end_callback import EndQuery, read
from tests.support.tasks import BASE_URL
from tests.unit.tasks.manual_broker import ManualBroker, SentMessage

pytestmark = pytest.mark.anyio

DAY_MS = 24 * 60 * 60 * 1000


def end_of(message: SentMessage) -> EndQuery:
    """What the end callback of a message says."""
    url = message.options.end_callback or ""
    assert url.startswith(f"{BASE_URL}/_end?")
    return read(url.partition("?")[2])


# --- the query


@pytest.mark.parametrize(
    "query",
    [
        EndQuery("add"),
        EndQuery("mail.send-all_2", "call_0f"),
        EndQuery("add", "of/the&user=?"),
        EndQuery("add", "call_1", "flow_1"),
        EndQuery("add", "call_1", unique="unique:add:0f"),
        EndQuery("add", "call_1", "flow_1", "unique:add:0f", is_request=True),
    ],
)
async def test_a_query_reads_as_it_was_written(query: EndQuery) -> None:
    assert read(query.text()) == query


@pytest.mark.parametrize("text", ["", "task=", "call=1", "task=a&call=%61", "task=a&request=1&call=b", "task=a&x=1"])
async def test_any_other_query_is_refused(text: str) -> None:
    with pytest.raises(PayloadError):
        read(text)


# --- what is sent


async def test_a_call_asks_for_the_report_of_its_end(broker: ManualBroker) -> None:
    @broker.tasks.task(unique=True)
    def add(a: int) -> int:
        return a

    handle = add.delay(1)
    message = broker.take()
    assert message.options.call_id == handle.id
    assert end_of(message) == EndQuery("add", handle.id, unique=message.envelope["unique"])
    assert message.options.interrupted_for_ms == DAY_MS
    # The hosted service has only this one; our broker calls an address that is given twice once.
    assert message.options.failure_callback == message.options.end_callback
    assert message.options.failure_callback_options is None


async def test_the_failure_callback_is_tried_again_even_if_its_message_has_no_retries(broker: ManualBroker) -> None:
    @broker.tasks.task(retries=0)
    def add() -> None: ...

    add.delay()
    assert broker.take().options.failure_callback_options == PublishOptions(retries=3)
    add.using(retries=4).delay()
    assert broker.take().options.failure_callback_options is None


async def test_the_failure_callback_of_the_user_stays_as_it_is(broker: ManualBroker) -> None:
    @broker.tasks.task(retries=0, failure_callback="https://example.com/failed")
    def add() -> None: ...

    handle = add.delay()
    message = broker.take()
    assert message.options.failure_callback == "https://example.com/failed"
    assert message.options.failure_callback_options is None
    assert end_of(message).call_id == handle.id


async def test_each_call_of_a_batch_and_of_a_chain_asks_too(broker: ManualBroker) -> None:
    @broker.tasks.task
    def add(a: int, b: int = 0) -> int:
        return a + b

    handles = add.map([1, 2])
    assert [end_of(message).call_id for message in broker.messages] == [handle.id for handle in handles]
    broker.messages.clear()
    end = chain(add.s(1), add.s(2)).delay()
    await broker.deliver()
    message = broker.take()
    assert message.options.call_id == end_of(message).call_id == end.id
    assert message.options.interrupted_for_ms == DAY_MS


async def test_a_snoozed_call_asks_again(broker: ManualBroker) -> None:
    @broker.tasks.task(unique=True, interrupted_for="1h")
    def later() -> None:
        raise Snooze("5m")

    handle = later.delay()
    await broker.deliver()
    message = broker.take()
    assert end_of(message) == EndQuery("later", handle.id, unique=message.envelope["unique"])
    assert (message.options.delay_ms, message.options.interrupted_for_ms) == (300_000, 3_600_000)


async def test_only_a_cancel_of_a_request_to_a_model_is_reported_for_it(broker: ManualBroker) -> None:
    @broker.tasks.llm(model="any")
    def ask() -> list[ChatMessage]:
        return [user("?")]

    handle = ask.delay()
    options = broker.take().options
    assert read((options.end_callback or "").partition("?")[2]) == EndQuery("ask", handle.id, is_request=True)
    for callback in (options.callback_options, options.failure_callback_options):
        assert callback is not None
        assert callback.failure_callback == callback.end_callback == EndQuery("ask", handle.id).url(BASE_URL)
        assert callback.interrupted_for_ms == DAY_MS


# --- for how long interruptions are free


@pytest.mark.parametrize(("value", "span_ms"), [("2h", 7_200_000), (timedelta(days=2), 2 * DAY_MS), ("0", None)])
async def test_the_setting_is_for_all_tasks(value: Any, span_ms: int | None) -> None:
    broker = ManualBroker(interrupted_for=value)

    @broker.tasks.task
    def add() -> None: ...

    @broker.tasks.task(interrupted_for="5m")
    def other() -> None: ...

    add.delay()
    assert broker.take().options.interrupted_for_ms == span_ms
    other.delay()
    assert broker.take().options.interrupted_for_ms == 300_000
    broker.close()


async def test_a_task_can_count_every_interruption(broker: ManualBroker) -> None:
    @broker.tasks.task(interrupted_for=0)
    def add() -> None: ...

    add.delay()
    assert broker.take().options.interrupted_for_ms is None


@pytest.mark.parametrize("value", ["soon", "367d"])
async def test_a_span_that_no_broker_takes_is_refused(value: str) -> None:
    broker = ManualBroker(interrupted_for=value)
    with pytest.raises(ConfigurationError, match="QTASKS_INTERRUPTED_FOR"):
        broker.tasks.runtime.settings()
    with pytest.raises(DefinitionError, match="interrupted_for"):
        broker.tasks.task(interrupted_for=value, name="add")(lambda: None)


async def test_names_of_the_framework_are_not_names_of_tasks(broker: ManualBroker) -> None:
    with pytest.raises(DefinitionError, match="begins with _"):

        @broker.tasks.task
        def _end() -> None: ...
