"""What is opened closes, also if another part cannot be closed."""

from __future__ import annotations

import asyncio

import pytest

from qtasks import QTasks
from qtasks.qstash.conversation.transport import Reply, Request
from qtasks.tasks.closing import close_all
from qtasks.tasks.send.publisher import Publisher
from tests.support.tasks import RecordingBroker, RecordingTransport, application

pytestmark = pytest.mark.anyio


def test_every_part_is_closed_and_the_first_error_is_raised_with_the_others_as_notes() -> None:
    closed: list[str] = []

    def failing(name: str, error: Exception) -> None:
        closed.append(name)
        raise error

    with pytest.raises(OSError, match="first") as caught:
        close_all(
            lambda: failing("a", OSError("first")),
            lambda: closed.append("b"),
            lambda: failing("c", ValueError("second")),
        )
    assert closed == ["a", "b", "c"]
    assert caught.value.__notes__ == ["closing another part failed as well: ValueError: second"]


class StubbornTransport(RecordingTransport):
    def close(self) -> None:
        super().close()
        raise OSError("the connections do not close")


class StubbornBroker(RecordingBroker):
    def __init__(self) -> None:
        super().__init__()
        self.transport = StubbornTransport()

    def stop(self) -> None:
        super().stop()
        raise RuntimeError("the broker does not stop")


def opened(broker: RecordingBroker) -> tuple[QTasks, list[str]]:
    """An application with every part opened, and what closes of it: ``dispatcher``, ``results``."""
    tasks = QTasks(embedded=broker)

    @tasks.task
    def work() -> None: ...

    work.delay()
    closed: list[str] = []
    dispatcher, results = tasks.runtime.dispatcher(), tasks.runtime.results()
    dispatcher.close = lambda: closed.append("dispatcher")  # type: ignore[method-assign]
    results.close = lambda: closed.append("results")  # type: ignore[method-assign]
    return tasks, closed


def test_a_broker_that_does_not_stop_leaves_nothing_else_open() -> None:
    broker = StubbornBroker()
    tasks, closed = opened(broker)
    with pytest.raises(RuntimeError, match="the broker does not stop") as caught:
        tasks.close()
    assert broker.transport.closed
    assert closed == ["dispatcher", "results"]
    assert caught.value.__notes__ == ["closing another part failed as well: OSError: the connections do not close"]
    tasks.close()


async def test_the_end_of_a_lifespan_closes_everything_even_if_the_broker_does_not_stop() -> None:
    broker = StubbornBroker()
    tasks, closed = opened(broker)
    with pytest.raises(RuntimeError, match="the broker does not stop"):
        async with tasks.asgi_app().router.lifespan_context(tasks.asgi_app()):
            pass
    assert broker.transport.closed
    assert closed == ["dispatcher", "results"]


class AsyncRecordingTransport:
    def __init__(self) -> None:
        self.closed_on: list[asyncio.AbstractEventLoop] = []

    async def send(self, request: Request, timeout_s: float) -> Reply:
        return Reply(201, (("Content-Type", "application/json"),), b'{"messageId": "msg_1"}')

    async def close(self) -> None:
        self.closed_on.append(asyncio.get_running_loop())


async def test_a_publisher_closes_its_client_for_async_code_as_well() -> None:
    transport, async_transport = RecordingTransport(), AsyncRecordingTransport()
    tasks = application(url="http://broker.internal")
    publisher = Publisher(tasks.settings, transport=transport, async_transport=async_transport)

    @tasks.task
    def work() -> None: ...

    await publisher.apublish(work.message((), {}))
    publisher.publish(work.message((), {}))
    publisher.close()
    publisher.close()
    assert transport.closed
    assert len(async_transport.closed_on) == 1


async def test_a_publisher_closes_its_client_for_async_code_even_if_the_other_one_fails() -> None:
    async_transport = AsyncRecordingTransport()
    tasks = application(url="http://broker.internal")
    publisher = Publisher(tasks.settings, transport=StubbornTransport(), async_transport=async_transport)

    @tasks.task
    def work() -> None: ...

    await publisher.apublish(work.message((), {}))
    publisher.publish(work.message((), {}))
    with pytest.raises(OSError, match="do not close"):
        await asyncio.to_thread(publisher.close)
    assert len(async_transport.closed_on) == 1
