"""The soft time limit: an `async def` gets an exception that it can catch; a `def` is told what to write."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qtasks import Embedded, QTasks, SoftTimeLimitExceeded, TaskEvent
from qtasks.errors import DefinitionError, TaskFailed
from qtasks.tasks.control import AttemptTimeout
from qtasks.tasks.run.soft_limit import SoftLimit
from tests.unit.tasks.manual_broker import ManualBroker, json_of

pytestmark = pytest.mark.anyio
SOON_S = 0.02
LATE_S = 20.0


async def test_the_function_can_catch_it_and_return(broker: ManualBroker) -> None:
    @broker.tasks.task(soft_time_limit=SOON_S)
    async def work() -> str:
        try:
            await asyncio.sleep(LATE_S)
        except SoftTimeLimitExceeded:
            await asyncio.sleep(0)  # it may go on to await
            return "in order"
        return "too long"

    result = work.delay()
    answer = await broker.deliver()
    assert (answer.status, answer.body) == (200, b'"in order"')
    assert result.get(timeout=0) == "in order"


async def test_a_function_that_does_not_catch_it_has_failed_with_its_attempt(broker: ManualBroker) -> None:
    events: list[TaskEvent] = []
    steps: list[str] = []

    @broker.tasks.task(soft_time_limit=SOON_S, retries=1)
    async def work() -> None:
        try:
            await asyncio.sleep(LATE_S)
        except Exception:  # it does not swallow a cancellation
            steps.append("swallowed")
        finally:
            steps.append("finally")

    work.on_failure(events.append)
    result = work.delay()
    message = broker.take()
    answer = await broker.deliver(message)
    assert (answer.status, json_of(answer)["code"]) == (500, "QT410")
    assert result.state == "RETRY"
    await broker.deliver(message, retried=1)
    assert result.error == "AttemptTimeout: work has run for 0.02 s, its soft time limit"
    assert isinstance(events[0].error, AttemptTimeout)
    assert steps == ["finally"] * 2
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_what_the_function_awaits_is_cancelled_and_a_task_group_ends_in_order(broker: ManualBroker) -> None:
    ends: list[str] = []

    async def child(name: str) -> None:
        try:
            await asyncio.sleep(LATE_S)
        except asyncio.CancelledError as error:
            ends.append(f"{name} {type(error).__name__}")
            raise

    @broker.tasks.task(soft_time_limit=SOON_S)
    async def work() -> list[str]:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(child("a"))
                group.create_task(child("b"))
        except SoftTimeLimitExceeded:
            return ends
        return []

    work.delay()
    answer = await broker.deliver()
    assert sorted(json_of(answer)) == ["a CancelledError", "b CancelledError"]


async def test_a_function_that_ends_before_it_never_sees_it(broker: ManualBroker) -> None:
    @broker.tasks.task(soft_time_limit=LATE_S)
    async def work() -> int:
        await asyncio.sleep(0)
        return 1

    work.delay()
    assert (await broker.deliver()).body == b"1"
    loop: Any = asyncio.get_running_loop()
    assert [handle for handle in loop._scheduled if "_interrupt" in repr(handle) and not handle.cancelled()] == []


async def test_a_cancel_from_outside_stays_a_cancel() -> None:
    seen: list[type[BaseException]] = []

    async def wait() -> None:
        try:
            await asyncio.sleep(LATE_S)
        except BaseException as error:
            seen.append(type(error))
            raise

    async def limited() -> None:
        await SoftLimit(wait(), LATE_S, "work")

    running = asyncio.create_task(limited())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert seen == [asyncio.CancelledError]


async def test_a_cancel_from_outside_wins_against_a_limit_of_the_same_moment() -> None:
    seen: list[type[BaseException]] = []

    async def wait() -> None:
        try:
            await asyncio.sleep(LATE_S)
        except BaseException as error:
            seen.append(type(error))
            raise

    limit = SoftLimit(wait(), LATE_S, "work")

    async def limited() -> None:
        await limit

    running = asyncio.create_task(limited())
    await asyncio.sleep(0)
    limit._interrupt()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert seen == [asyncio.CancelledError]
    assert running.cancelled()


async def test_values_and_exceptions_pass_through_as_they_are() -> None:
    async def echo() -> list[str]:
        values = []
        for value in ("a", "b"):
            values.append(value)
            await asyncio.sleep(0)
        try:
            await asyncio.wait_for(asyncio.sleep(LATE_S), 0.001)
        except TimeoutError:
            values.append("timeout")
        return values

    assert await SoftLimit(echo(), LATE_S, "work") == ["a", "b", "timeout"]

    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    with pytest.raises(KeyError):
        await SoftLimit(fail(), LATE_S, "work")


async def test_it_works_on_a_broker(anyio_backend: str) -> None:
    with QTasks(embedded=Embedded(":memory:")) as tasks:

        @tasks.task(soft_time_limit=SOON_S, retries=0)
        async def work(*, catches: bool) -> str:
            try:
                await asyncio.sleep(LATE_S)
            except SoftTimeLimitExceeded:
                if not catches:
                    raise
            return "in order"

        assert await work.delay(catches=True).aget(timeout=LATE_S) == "in order"
        with pytest.raises(TaskFailed, match="its soft time limit"):
            await work.delay(catches=False).aget(timeout=LATE_S)


async def test_a_def_has_none_and_the_error_says_what_to_check() -> None:
    with pytest.raises(DefinitionError, match="a thread cannot be interrupted") as caught:

        @QTasks().task(soft_time_limit=5)
        def work() -> None: ...

    assert "ctx.should_stop" in (caught.value.fix or "")


async def test_it_must_be_shorter_than_the_timeout() -> None:
    with pytest.raises(DefinitionError, match="'20m' is not shorter than its timeout, 15m"):

        @QTasks().task(soft_time_limit="20m")
        async def work() -> None: ...

    @QTasks().task(soft_time_limit="20m", timeout="30m")
    async def long_work() -> None: ...

    with pytest.raises(DefinitionError, match="not shorter"):
        long_work.using(timeout="10m")
