"""Cancel: a call that waits does not begin, one that runs is asked to end, and one that has ended stays as it is."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from qtasks import Cancel, NonRetryable, RetryAfter, Snooze, TaskContext, chain, injected
from qtasks.errors import ApiError, BrokerUnreachable, ResultError, ResultTimeout, TaskCancelled
from qtasks.qstash.conversation.transport import Reply, Request
from qtasks.tasks.results.backend import Lock, ResultRecord, ResultStatus
from qtasks.tasks.results.task_result import CallToCancel, TaskResult
from qtasks.tasks.run.cancellation import Canceller
from qtasks.tasks.run.decision import DispatchResponse
from qtasks.tasks.run.lease import LEASE_MS
from tests.unit.tasks.manual_broker import ManualBroker, SentMessage, json_of

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "sqlite"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ManualBroker]:
    made = ManualBroker(results="memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/r.db")
    yield made
    made.close()


class Blocking:
    """A task of both kinds: it notes what happens to it, and runs until `go_on` is set or it is asked to end."""

    def __init__(self, broker: ManualBroker, **options: Any) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.steps: list[str] = []
        self.broker = broker

        @broker.tasks.task(**options)
        async def coroutine() -> str:
            self.begun.set()
            try:
                await asyncio.to_thread(self.go_on.wait, 10)
            except asyncio.CancelledError:
                self.steps.append("cancelled")
                raise
            finally:
                self.go_on.set()
                self.steps.append("closed")
            return "whole"

        @broker.tasks.task(**options)
        def thread(ctx: TaskContext = injected) -> str:
            self.begun.set()
            while not ctx.should_stop:
                if self.go_on.wait(0.001):
                    return "whole"
            self.steps.append("cancelled" if ctx.is_cancelled else "asked to end")
            return "a part"

        self.coroutine, self.thread = coroutine, thread

    @asynccontextmanager
    async def running(self, message: SentMessage | None = None) -> AsyncIterator[asyncio.Task[DispatchResponse]]:
        """Deliver the call; the block begins once the function runs."""
        delivery = asyncio.create_task(self.broker.deliver(message))
        assert await asyncio.to_thread(self.begun.wait, 10)
        try:
            yield delivery
        finally:
            self.go_on.set()
            await delivery


@pytest.fixture
def blocking(broker: ManualBroker) -> Blocking:
    return Blocking(broker)


def cancel_elsewhere(broker: ManualBroker, handle: TaskResult[Any], **changes: Any) -> bool:
    """Cancel a call as another process does: only the broker and the results are shared."""
    canceller = Canceller(
        results=broker.tasks.runtime.results(),
        clock=broker.clock,
        cancel_message=changes.get("cancel_message", lambda _: True),
        stop_here=lambda _: False,
        finds_all=changes.get("finds_all", True),
    )
    return canceller.cancel(CallToCancel(task=handle.task, id=handle.id))


@pytest.fixture
def renewed_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qtasks.tasks.run.lease.RENEW_S", 0.002)


# --- a call that waits


@pytest.mark.parametrize("key", ["call id", "message id"])
async def test_a_call_that_waits_is_cancelled_by_a_stored_id(broker: ManualBroker, key: str) -> None:
    @broker.tasks.task
    def work() -> None: ...

    sent = work.delay()
    (message,) = broker.messages
    stored = work.result(sent.id if key == "call id" else message.message_id)
    assert stored.cancel() is True
    assert broker.messages == []
    assert stored.status == "cancelled"
    with pytest.raises(TaskCancelled, match="by its caller"):
        await stored


async def test_a_second_cancel_says_the_same(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> None: ...

    handle = work.delay()
    assert [handle.cancel(), await handle.acancel(), work.result(handle.id).cancel()] == [True, True, True]


async def test_a_delivery_that_comes_after_a_cancel_ends_as_cancelled_and_runs_nothing(blocking: Blocking) -> None:
    handle = blocking.thread.delay()
    (message,) = blocking.broker.messages
    handle.cancel()
    answer = await blocking.broker.deliver(message)
    assert (answer.status, json_of(answer)) == (200, {"cancelled": "cancelled by its caller", "code": "QT411"})
    assert not blocking.begun.is_set()
    assert handle.status == "cancelled"


@pytest.mark.parametrize("options", [{}, {"unique_for": "1h"}])
async def test_a_cancel_frees_the_unique_key(broker: ManualBroker, options: dict[str, Any]) -> None:
    @broker.tasks.task(unique=True, **options)
    def work() -> None: ...

    work.delay().cancel()
    stored = work.delay()
    assert stored.deduplicated is False
    work.result(stored.id).cancel()
    assert work.delay().deduplicated is False
    assert work.delay().deduplicated is True


# --- a call that has ended


@pytest.mark.parametrize("raised", [None, ValueError("x")])
async def test_a_call_that_has_ended_is_not_said_to_be_cancelled(
    broker: ManualBroker, raised: Exception | None
) -> None:
    @broker.tasks.task(retries=0)
    def work() -> int:
        if raised is not None:
            raise raised
        return 1

    handle = work.delay()
    message = broker.take()
    await broker.deliver(message)
    broker.messages.append(message)  # the broker has not settled it yet
    ended = handle.status
    assert handle.cancel() is False
    assert handle.status == ended
    assert broker.messages == [message]


async def test_an_id_that_nothing_is_known_of_cannot_be_cancelled(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> None: ...

    assert work.result("call_unknown").cancel() is False
    assert work.result("call_unknown").status == "queued"


# --- a call that runs


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
async def test_a_run_in_this_process_ends_at_once(blocking: Blocking, kind: str) -> None:
    handle = getattr(blocking, kind).delay()
    async with blocking.running() as delivery:
        assert await handle.acancel() is True
        answer = await delivery
    assert (answer.status, json_of(answer)["cancelled"]) == (200, "cancelled by its caller")
    assert blocking.steps[0] == "cancelled"
    assert handle.status == "cancelled"
    with pytest.raises(TaskCancelled):
        await handle


@pytest.mark.usefixtures("renewed_often")
@pytest.mark.parametrize("kind", ["coroutine", "thread"])
async def test_a_run_in_another_process_ends_with_the_next_renewal(blocking: Blocking, kind: str) -> None:
    handle = getattr(blocking, kind).delay()
    async with blocking.running() as delivery:
        assert cancel_elsewhere(blocking.broker, handle) is True
        assert json_of(await delivery)["cancelled"] == "cancelled by its caller"
    assert blocking.steps[0] == "cancelled"
    assert handle.status == "cancelled"


async def test_the_state_is_cancelling_while_it_runs_and_a_wait_goes_on(broker: ManualBroker) -> None:
    begun, go_on = threading.Event(), threading.Event()

    @broker.tasks.task
    def work(ctx: TaskContext = injected) -> str:
        begun.set()
        assert go_on.wait(10)
        ctx.progress(1, 2)
        assert ctx.should_stop
        return "a part"

    handle = work.delay()
    delivery = asyncio.create_task(broker.deliver())
    assert await asyncio.to_thread(begun.wait, 10)
    assert handle.cancel() is True
    with pytest.raises(ResultTimeout, match="it is cancelling"):
        await handle.aget(timeout=0)
    assert handle.cancel() is True
    waiting = asyncio.ensure_future(handle.aget(timeout=10))
    go_on.set()
    await delivery
    with pytest.raises(TaskCancelled):
        await waiting


async def test_what_a_run_reports_on_its_way_does_not_erase_the_cancel(broker: ManualBroker) -> None:
    begun, cancelled, go_on = threading.Event(), threading.Event(), threading.Event()

    @broker.tasks.task
    def work(ctx: TaskContext = injected) -> None:
        begun.set()
        assert cancelled.wait(10)
        ctx.progress(2, 2)
        assert go_on.wait(10)
        raise OSError("away")

    handle = work.delay()
    delivery = asyncio.create_task(broker.deliver())
    assert await asyncio.to_thread(begun.wait, 10)
    cancel_elsewhere(broker, handle)
    cancelled.set()
    await broker.tasks.runtime.dispatcher()._executor._writer.flush()
    assert handle.status == "cancelling"
    go_on.set()
    assert (await delivery).status == 200
    assert handle.status == "cancelled"


async def test_a_function_in_a_thread_that_never_looks_has_succeeded(broker: ManualBroker) -> None:
    begun, go_on = threading.Event(), threading.Event()

    @broker.tasks.task
    def work() -> str:
        begun.set()
        assert go_on.wait(10)
        return "whole"

    handle = work.delay()
    delivery = asyncio.create_task(broker.deliver())
    assert await asyncio.to_thread(begun.wait, 10)
    assert handle.cancel() is True
    assert handle.status == "cancelling"
    go_on.set()
    assert (await delivery).body == b'"whole"'
    assert await handle == "whole"
    assert handle.cancel() is False


async def test_a_coroutine_that_catches_the_cancellation_is_cancelled_all_the_same(broker: ManualBroker) -> None:
    begun = asyncio.Event()

    @broker.tasks.task
    async def work() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "a part"
        return "whole"

    handle = work.delay()
    delivery = asyncio.create_task(broker.deliver())
    await begun.wait()
    await handle.acancel()
    assert json_of(await delivery)["cancelled"] == "cancelled by its caller"


@pytest.mark.parametrize("raised", [OSError("away"), RetryAfter("1h"), Snooze("1h"), NonRetryable("no")])
@pytest.mark.parametrize("is_last", [False, True])
async def test_no_attempt_follows_one_that_was_cancelled(
    broker: ManualBroker, raised: Exception, is_last: bool
) -> None:
    """Even if the run does not know yet: nothing of this process was asked, and no renewal is due."""
    ends: list[str] = []

    @broker.tasks.task(retries=0 if is_last else 3, unique=True)
    def work() -> None:
        cancel_elsewhere(broker, handle)
        raise raised

    work.on_retry(lambda event: ends.append("retry"))
    work.on_failure(lambda event: ends.append("failure"))
    handle = work.delay()
    answer = await broker.deliver()
    assert (answer.status, json_of(answer)["cancelled"]) == (200, "cancelled by its caller")
    assert (handle.status, handle.error) == ("cancelled", "cancelled by its caller")
    assert (broker.messages, ends) == ([], [])
    assert work.delay().deduplicated is False


async def test_a_task_that_gives_its_own_reason_keeps_it(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> None:
        cancel_elsewhere(broker, handle)
        raise Cancel("3 of 9 rows were written")

    handle = work.delay()
    assert json_of(await broker.deliver())["cancelled"] == "3 of 9 rows were written"


async def test_a_function_that_waits_for_a_thread_never_begins() -> None:
    broker = ManualBroker(threads=1)
    blocking, ran = Blocking(broker), threading.Event()

    @broker.tasks.task
    def work() -> None:
        ran.set()

    blocking.thread.delay()
    async with blocking.running():
        handle = work.delay()
        delivery = asyncio.create_task(broker.deliver())
        await wait_until_locked(broker, handle)
        assert await handle.acancel() is True
        blocking.go_on.set()
        assert json_of(await delivery)["cancelled"] == "cancelled by its caller"
    assert not ran.is_set()
    broker.close()


async def wait_until_locked(broker: ManualBroker, handle: TaskResult[Any]) -> None:
    """Return once a delivery of the call was admitted; it may still wait for a thread."""
    begun = asyncio.Event()
    with broker.tasks.runtime.results().watchers.watching(handle.id, begun.set):
        async with asyncio.timeout(10):
            await begun.wait()


# --- who has the lock


async def test_a_call_whose_process_has_died_is_cancelled_at_once(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> None: ...

    handle = work.delay()
    program = "from qtasks.tasks.run.process_id import new_owner; print(new_owner())"
    dead = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    lock_run(broker, handle, dead)
    assert cancel_elsewhere(broker, handle) is True
    assert handle.status == "cancelled"


async def test_a_call_whose_machine_is_silent_ends_with_its_next_delivery(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> None: ...

    handle = work.delay()
    message = broker.take()
    lock_run(broker, handle, "another machine")
    assert cancel_elsewhere(broker, handle) is True
    assert handle.status == "cancelling"
    assert (await broker.deliver(message)).status == 503
    broker.clock.advance(LEASE_MS)
    assert json_of(await broker.deliver(message, retried=1))["cancelled"] == "cancelled by its caller"
    assert handle.status == "cancelled"


async def test_a_run_that_ends_in_the_middle_of_a_cancel_is_not_waited_for(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> None: ...

    handle = work.delay()
    results = broker.tasks.runtime.results()
    lock = lock_run(broker, handle, "another machine")
    write = results.write

    def write_after_the_end(records: Sequence[ResultRecord], *others: Any) -> None:
        if records and records[0].status is ResultStatus.CANCELLING:
            write((), [lock])
        write(records, *others)

    results.write = write_after_the_end  # type: ignore[method-assign, assignment]
    assert cancel_elsewhere(broker, handle) is True
    assert handle.status == "cancelled"


def lock_run(broker: ManualBroker, handle: TaskResult[Any], owner: str) -> Lock:
    """Lock a call as if `owner` ran it."""
    now_ms = broker.clock.now_ms()
    lock = Lock(f"run:{handle.id}", owner, now_ms + LEASE_MS)
    broker.tasks.runtime.results().lock([lock], now_ms=now_ms)
    return lock


# --- flows


async def test_what_would_follow_a_cancelled_call_is_cancelled_with_it(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work(n: int = 0) -> int:
        return n

    end = chain(work.s(1), work.s(), work.s()).delay()
    (message,) = broker.messages
    work.result(message.envelope["id"]).cancel()
    await broker.deliver(message)
    with pytest.raises(TaskCancelled, match="the flow ended with work call_"):
        await end


# --- the broker


async def test_no_broker_is_said_plainly(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> None: ...

    handle = work.delay()

    def down(request: Request, timeout_s: float) -> Reply:
        raise BrokerUnreachable("no answer", sent=False)

    broker.embedded.transport.send = down  # type: ignore[method-assign]
    broker.tasks.runtime.publisher()._opened().http._sleep = lambda seconds: None
    with pytest.raises(BrokerUnreachable, match=f"the cancellation of {handle.id}"):
        handle.cancel()
    assert handle.status == "queued"


async def test_a_refusal_of_the_broker_is_raised(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> None: ...

    handle = work.delay()

    def refuse(request: Request, timeout_s: float) -> Reply:
        return Reply(403, (), json.dumps({"error": "no"}).encode())

    broker.embedded.transport.send = refuse  # type: ignore[method-assign]
    with pytest.raises(ApiError):
        handle.cancel()


async def test_the_results_suffice_where_the_broker_does_not_know_the_ids_of_calls(blocking: Blocking) -> None:
    handle = blocking.thread.delay()
    assert cancel_elsewhere(blocking.broker, handle, cancel_message=lambda _: False, finds_all=False) is True
    assert json_of(await blocking.broker.deliver())["cancelled"] == "cancelled by its caller"
    assert not blocking.begun.is_set()


async def test_the_message_id_is_found_in_the_results(broker: ManualBroker) -> None:
    asked: list[str] = []

    @broker.tasks.task
    def work() -> None:
        raise OSError

    handle = work.delay()
    await broker.deliver()

    def cancel_message(message_or_call_id: str) -> bool:
        asked.append(message_or_call_id)
        return message_or_call_id == "msg_1"

    assert cancel_elsewhere(broker, handle, cancel_message=cancel_message, finds_all=False) is True
    assert asked == [handle.id, "msg_1"]
    assert handle.status == "cancelled"


# --- without results


@pytest.fixture
def without_results() -> Iterator[ManualBroker]:
    made = ManualBroker()
    made.tasks.runtime.results_or_none = lambda: None  # type: ignore[method-assign]
    yield made
    made.close()


async def test_without_results_a_cancel_reaches_the_broker_and_says_what_it_cannot_reach(
    without_results: ManualBroker, caplog: pytest.LogCaptureFixture
) -> None:
    @without_results.tasks.task
    def work() -> None: ...

    handle = work.delay()
    assert work.result(handle.id).cancel() is True
    assert without_results.messages == []
    assert "an attempt that runs in another process goes on" in caplog.text
    assert "set QTASKS_RESULTS" in caplog.text
    assert handle.cancel() is False


async def test_without_results_a_run_in_this_process_is_cancelled(without_results: ManualBroker) -> None:
    blocking = Blocking(without_results)
    handle = blocking.coroutine.delay()
    async with blocking.running() as delivery:
        assert await handle.acancel() is True
        assert json_of(await delivery)["cancelled"] == "cancelled by its caller"


def test_without_results_the_hosted_service_cannot_cancel_by_the_id_of_a_call(broker: ManualBroker) -> None:
    canceller = Canceller(
        results=None,
        clock=broker.clock,
        cancel_message=lambda _: False,
        stop_here=lambda _: False,
        finds_all=False,
    )
    with pytest.raises(ResultError, match="under an id that is not known here") as caught:
        canceller.cancel(CallToCancel(task="work", id="call_1"))
    assert caught.value.code == "QT164"
