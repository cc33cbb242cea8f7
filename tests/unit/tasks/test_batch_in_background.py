"""Calls that are made in the background of a batch: by threads, asyncio tasks and generators that outlive its block."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from qtasks import TaskResult, chain
from qtasks.errors import BrokerUnreachable
from qtasks.tasks.send.batch import Batch
from qtasks.tasks.task import Task
from tests.unit.tasks.manual_broker import ManualBroker

pytestmark = pytest.mark.anyio

Work = Task[..., int]


@pytest.fixture
def work(broker: ManualBroker) -> Work:
    @broker.tasks.task
    def work(n: int) -> int:
        return n

    return work


def sent(broker: ManualBroker) -> list[int]:
    """The argument of each call that has arrived, in order."""
    return [message.envelope["args"][0] for message in broker.messages]


def in_thread(call: Callable[[], Any]) -> None:
    """Make a call in a thread that inherits the context, as `asyncio.to_thread` does."""
    thread = threading.Thread(target=contextvars.copy_context().run, args=(call,))
    thread.start()
    thread.join()


async def test_an_asyncio_task_that_outlives_the_block_sends_its_calls_itself(broker: ManualBroker, work: Work) -> None:
    closed = asyncio.Event()

    async def later() -> TaskResult[int]:
        await closed.wait()
        return await work.adelay(2)

    async with broker.tasks.batch():
        await work.adelay(1)
        background = asyncio.create_task(later())
    closed.set()
    handle = await background
    assert sent(broker) == [1, 2]
    assert handle.message_id == broker.messages[1].message_id


async def test_a_thread_that_outlives_the_block_sends_its_calls_itself(broker: ManualBroker, work: Work) -> None:
    with broker.tasks.batch():
        context = contextvars.copy_context()
        work.delay(1)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(context.run, work.delay, 2).result().message_id is not None
    assert sent(broker) == [1, 2]


async def test_what_asyncio_tasks_call_inside_leaves_with_the_batch(broker: ManualBroker, work: Work) -> None:
    async with broker.tasks.batch():
        await asyncio.gather(*(work.adelay(n) for n in range(5)))
        await asyncio.to_thread(work.delay, 5)
        assert sent(broker) == []
    assert sent(broker) == [0, 1, 2, 3, 4, 5]
    assert len(broker.embedded.transport.requests) == 1


@pytest.mark.parametrize("how", ["thread", "asyncio task"])
async def test_an_exception_drops_only_what_the_block_itself_has_called(
    broker: ManualBroker, work: Work, how: str
) -> None:
    async def block() -> None:
        async with broker.tasks.batch():
            await work.adelay(1)
            if how == "thread":
                in_thread(lambda: work.delay(2))
            else:
                await asyncio.create_task(work.adelay(2))
            raise KeyError("the block")

    with pytest.raises(KeyError):
        await block()
    assert sent(broker) == [2]


async def test_a_blocking_batch_that_raises_sends_the_calls_of_others(broker: ManualBroker, work: Work) -> None:
    def block() -> None:
        with broker.tasks.batch():
            work.delay(1)
            in_thread(lambda: work.delay(2))
            raise KeyError("the block")

    with pytest.raises(KeyError):
        block()
    assert sent(broker) == [2]


@pytest.mark.parametrize("blocking", [True, False])
async def test_calls_of_others_that_cannot_be_sent_are_named_in_the_error_of_the_block(
    broker: ManualBroker,
    work: Work,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    blocking: bool,
) -> None:
    def away(*_: object) -> None:
        raise BrokerUnreachable("the broker is away")

    async def block() -> None:
        if blocking:
            with broker.tasks.batch():
                in_thread(lambda: work.delay(2))
                raise KeyError("the block")
        async with broker.tasks.batch():
            in_thread(lambda: work.delay(2))
            raise KeyError("the block")

    monkeypatch.setattr(broker.embedded.transport, "send", away)
    with caplog.at_level(logging.ERROR, logger="qtasks.batch"), pytest.raises(KeyError) as caught:
        await block()
    (note,) = caught.value.__notes__
    assert note.startswith("1 calls that other threads or asyncio tasks made inside the batch were not sent: ")
    assert "the broker is away" in note
    assert note in caplog.text


async def test_a_flow_of_another_asyncio_task_is_recorded_and_sent_although_the_block_raises(
    broker: ManualBroker, work: Work
) -> None:
    async def block() -> None:
        async with broker.tasks.batch():
            await chain(work.s(1), work.s()).adelay()
            await asyncio.create_task(chain(work.s(2), work.s()).adelay())
            raise KeyError("the block")

    with pytest.raises(KeyError):
        await block()
    assert sent(broker) == [2]


async def test_an_inner_batch_joins_only_an_open_one(broker: ManualBroker, work: Work) -> None:
    with broker.tasks.batch():
        with Batch(broker.tasks.runtime, joins=True):
            work.delay(1)
        assert sent(broker) == []
        context = contextvars.copy_context()

    def late() -> None:
        with Batch(broker.tasks.runtime, joins=True):
            work.delay(2)

    assert sent(broker) == [1]
    context.run(late)
    assert sent(broker) == [1, 2]


async def test_a_call_after_an_inner_batch_belongs_to_the_outer_one(broker: ManualBroker, work: Work) -> None:
    with broker.tasks.batch():
        with broker.tasks.batch():
            context = contextvars.copy_context()
        context.run(work.delay, 1)
        assert sent(broker) == []
    assert sent(broker) == [1]


async def test_a_generator_that_is_left_early_sends_what_was_called(broker: ManualBroker, work: Work) -> None:
    def numbers() -> Iterator[int]:
        with broker.tasks.batch():
            for n in range(3):
                work.delay(n)
                yield n

    generator = numbers()
    assert next(generator) == 0
    work.delay(10)  # a generator has the context of its caller
    generator.close()  # type: ignore[attr-defined]
    work.delay(11)
    assert sent(broker) == [0, 10, 11]


async def test_an_async_generator_that_is_closed_in_another_context_sends_what_was_called(
    broker: ManualBroker, work: Work
) -> None:
    async def numbers() -> AsyncIterator[int]:
        async with broker.tasks.batch():
            for n in range(3):
                await work.adelay(n)
                yield n

    generator: Any = numbers()
    assert await anext(generator) == 0
    await asyncio.create_task(generator.aclose())
    await work.adelay(11)
    assert sent(broker) == [0, 11]


async def test_every_handle_belongs_to_a_call_that_arrives_once_however_threads_and_blocks_meet(
    broker: ManualBroker, work: Work
) -> None:
    handles: list[TaskResult[int]] = []
    stop = threading.Event()

    def call_on() -> None:
        while not stop.is_set():
            handles.append(work.delay(1))

    threads: list[threading.Thread] = []
    for number in range(30):
        try:
            with broker.tasks.batch():
                if number % 10 == 0:
                    context = contextvars.copy_context()
                    threads.append(threading.Thread(target=context.run, args=(call_on,)))
                    threads[-1].start()
                await asyncio.sleep(0)
                if number % 3 == 0:
                    raise KeyError(number)
        except KeyError:
            pass
    stop.set()
    for thread in threads:
        thread.join()
    arrived = [message.envelope["id"] for message in broker.messages]
    assert sorted(arrived) == sorted(handle.id for handle in handles)
    assert all(handle.message_id for handle in handles)


async def test_a_call_that_meets_the_end_of_the_block_is_sent_at_once(
    broker: ManualBroker, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    with broker.tasks.batch() as batch:
        pass
    found = iter([batch, None])  # it was open when the call looked
    monkeypatch.setattr(Batch, "current", lambda _: next(found))
    assert work.delay(1).message_id is not None
    assert (sent(broker), len(batch)) == ([1], 0)


async def test_a_cancelled_block_drops_its_calls_and_sends_those_of_others(broker: ManualBroker, work: Work) -> None:
    inside = asyncio.Event()

    async def block() -> None:
        async with broker.tasks.batch():
            await work.adelay(1)
            await asyncio.create_task(work.adelay(2))
            inside.set()
            await asyncio.Event().wait()

    running: Awaitable[None] = (task := asyncio.create_task(block()))
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sent(broker) == [2]
