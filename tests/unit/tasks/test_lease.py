"""Once: of several deliveries of one call one runs, and of several calls that are the same one is sent."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from qtasks import Cancel, QTasks, RetryAfter, RetryPolicy, Snooze, TaskContext, TaskEvent, injected
from qtasks.errors import (
    ArgumentsError,
    BrokerUnreachable,
    DefinitionError,
    PartlyRefused,
    ResultError,
    ResultsDisabled,
)
from qtasks.qstash.conversation.transport import Reply, Request
from qtasks.tasks.results.backend import Lock
from qtasks.tasks.run.decision import DispatchResponse
from qtasks.tasks.run.lease import LEASE_MS
from qtasks.tasks.run.process_id import is_gone, new_owner
from tests.support.tasks import application
from tests.unit.tasks.manual_broker import ManualBroker, SentMessage, json_of

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "sqlite"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ManualBroker]:
    made = ManualBroker(results="memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/r.db")
    yield made
    made.close()


class BlockingTask:
    """A task that runs until the test sets `go_on`, and counts its runs."""

    def __init__(self, broker: ManualBroker, **options: Any) -> None:
        self.begun, self.go_on, self.runs = asyncio.Event(), asyncio.Event(), 0
        self.error: Exception | None = None

        async def slow(n: int = 1) -> int:
            self.runs += 1
            self.begun.set()
            await self.go_on.wait()
            if self.error is not None:
                raise self.error
            return self.runs

        self.task = broker.tasks.task(**options)(slow)

    @contextlib.asynccontextmanager
    async def running(
        self, broker: ManualBroker, message: SentMessage
    ) -> AsyncIterator[asyncio.Task[DispatchResponse]]:
        """Deliver `message`; its run is under way until the block ends."""
        under_way = asyncio.create_task(broker.deliver(message))
        await self.begun.wait()
        yield under_way
        self.go_on.set()
        await under_way


def retry_after(after_ms: int) -> tuple[tuple[str, str], ...]:
    """The header line that asks for the next delivery after so long."""
    return (("Retry-After", str(after_ms // 1000)),)


# --- deliveries of one call


async def test_a_second_delivery_while_the_first_runs_is_answered_503(broker: ManualBroker) -> None:
    slow = BlockingTask(broker)
    slow.task.delay()
    message = broker.take()
    async with slow.running(broker, message) as first:
        again = await broker.deliver(message)
        assert again.status == 503
        assert again.headers == (*retry_after(LEASE_MS), ("Qtasks-Interrupted", "running elsewhere"))
        assert json_of(again) == {"error": "this call is running elsewhere", "code": "QT415"}
        slow.go_on.set()
        assert (await first).body == b"1"
    assert slow.runs == 1


async def test_a_delivery_after_the_end_gets_the_stored_outcome_and_runs_nothing(broker: ManualBroker) -> None:
    slow = BlockingTask(broker)
    slow.go_on.set()
    slow.task.delay()
    message = broker.take()
    assert await broker.deliver(message) == DispatchResponse(200, b"1")
    assert await broker.deliver(message) == DispatchResponse(200, b"1", (("Qtasks-Duplicate", "true"),))
    assert slow.runs == 1


async def test_the_last_permitted_attempt_waits_for_the_run_instead_of_making_a_dead_letter(
    broker: ManualBroker,
) -> None:
    slow = BlockingTask(broker, retries=2)
    slow.task.delay()
    message = broker.take()
    async with slow.running(broker, message) as first:
        last = asyncio.create_task(broker.deliver(message, retried=2))
        await asyncio.sleep(0)
        assert not last.done()
        slow.go_on.set()
        assert (await first).body == b"1"
        assert (await last).body == b"1"
    assert slow.runs == 1


async def test_the_last_attempt_runs_when_the_one_it_waited_for_has_failed(broker: ManualBroker) -> None:
    slow = BlockingTask(broker, retries=1)
    slow.error = OSError("no")
    slow.task.delay()
    message = broker.take()
    async with slow.running(broker, message) as first:
        last = asyncio.create_task(broker.deliver(message, retried=1))
        await asyncio.sleep(0)
        slow.go_on.set()
        assert (await first).status == 500
        assert (await last).status == 500
    assert slow.runs == 2


async def test_a_silent_process_elsewhere_keeps_its_call_locked_for_its_lease_at_most(broker: ManualBroker) -> None:
    slow = BlockingTask(broker)
    slow.go_on.set()
    result = slow.task.delay()
    message = broker.take()
    dead = Lock(f"run:{result.id}", "a process that died", broker.clock.now_ms() + LEASE_MS)
    broker.tasks.runtime.results().lock([dead], now_ms=broker.clock.now_ms())
    broker.clock.advance(5_000)
    answer = await broker.deliver(message)
    assert (answer.status, answer.headers) == (
        503,
        (*retry_after(LEASE_MS - 5_000), ("Qtasks-Interrupted", "running elsewhere")),
    )
    broker.clock.advance(LEASE_MS - 5_000)
    assert (await broker.deliver(message, retried=1)).body == b"1"


async def test_the_lock_of_a_process_of_this_machine_that_has_died_is_void_at_once(broker: ManualBroker) -> None:
    program = "from qtasks.tasks.run.process_id import new_owner; print(new_owner())"
    died = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    slow = BlockingTask(broker)
    slow.go_on.set()
    result = slow.task.delay()
    message = broker.take()
    now_ms = broker.clock.now_ms()
    broker.tasks.runtime.results().lock([Lock(f"run:{result.id}", died, now_ms + LEASE_MS)], now_ms=now_ms)
    assert (await broker.deliver(message, retried=1)).body == b"1"


def test_an_owner_is_gone_only_if_that_is_certain() -> None:
    owner = new_owner()
    place, number, started, chance = owner.split("/")
    assert owner != new_owner()
    assert not is_gone(owner)
    assert is_gone(f"{place}/{number}/{int(started) - 1}/{chance}")  # its number was given to this process
    assert not is_gone(f"elsewhere/{number}/1/{chance}")
    assert not is_gone("another form")


async def test_a_long_run_keeps_its_lock(broker: ManualBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qtasks.tasks.run.lease.RENEW_S", 0.0)
    slow = BlockingTask(broker)
    result = slow.task.delay()
    message = broker.take()
    async with slow.running(broker, message):
        results = broker.tasks.runtime.results()
        broker.clock.advance(LEASE_MS - 1_000)
        now_ms = broker.clock.now_ms()
        other = Lock(f"run:{result.id}", "other", now_ms + 1)
        async with asyncio.timeout(10):
            while True:
                (held,) = await asyncio.to_thread(results.lock, [other], now_ms=now_ms)
                if held.until_ms == now_ms + LEASE_MS:
                    break
                await asyncio.sleep(0)
        assert held.owner != "other"


async def test_a_run_that_has_ended_is_not_locked_again_while_its_hooks_run(
    broker: ManualBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qtasks.tasks.run.lease.RENEW_S", 0.002)
    locked: list[bool] = []

    @broker.tasks.task
    def work() -> None: ...

    @work.on_success
    async def look(event: TaskEvent) -> None:
        await asyncio.sleep(0.02)  # several renewals
        results, now_ms = broker.tasks.runtime.results(), broker.clock.now_ms()
        (valid,) = await asyncio.to_thread(results.lock, [Lock(f"run:{handle.id}", "other", now_ms + 1)], now_ms=now_ms)
        locked.append(valid.owner != "other")

    handle = work.delay()
    await broker.deliver()
    assert locked == [False]


async def test_a_retry_after_a_failure_runs(broker: ManualBroker) -> None:
    attempts: list[int] = []

    @broker.tasks.task
    def work(ctx: TaskContext = injected) -> int:
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            raise OSError
        return ctx.attempt

    work.delay()
    message = broker.take()
    assert [(await broker.deliver(message, retried=n)).status for n in range(3)] == [500, 500, 200]
    assert attempts == [1, 2, 3]


async def test_a_failed_call_that_comes_once_more_by_itself_fails_again_without_running(broker: ManualBroker) -> None:
    reasons: list[str] = []
    slow = BlockingTask(broker, retries=0)
    slow.go_on.set()
    slow.error = OSError("no")
    slow.task.on_failure(lambda event: reasons.append(event.reason))
    slow.task.delay()
    message = broker.take()
    await broker.deliver(message)
    again = await broker.deliver(message)
    assert (again.status, json_of(again)["error"], slow.runs) == (500, "OSError: no", 1)
    assert reasons == ["OSError: no"]


async def test_a_dead_letter_that_is_sent_again_runs(broker: ManualBroker) -> None:
    slow = BlockingTask(broker, retries=0)
    slow.go_on.set()
    slow.error = OSError("no")
    slow.task.delay()
    message = broker.take()
    await broker.deliver(message)
    message.message_id = "msg_again"
    slow.error = None
    assert (await broker.deliver(message)).body == b"2"


async def test_the_same_signed_request_never_runs_twice(broker: ManualBroker) -> None:
    @broker.tasks.task(retries=5)
    def work() -> None:
        runs.append(1)
        raise OSError

    runs: list[int] = []
    work.delay()
    message = broker.take()
    token = broker.delivery(message).signature
    assert (await broker.deliver(message, token=token)).status == 500
    replayed = await broker.deliver(message, token=token, retried=1)
    assert (replayed.status, json_of(replayed)["error"]) == (503, "this request was received before")
    assert dict(replayed.headers).keys() == {"Retry-After"}, "a proxy that sends requests twice ends its retries"
    assert (await broker.deliver(message, retried=1)).status == 500
    assert len(runs) == 2


async def test_the_same_signed_request_beside_its_own_run_ends_no_attempt(broker: ManualBroker) -> None:
    slow = BlockingTask(broker)
    slow.task.delay()
    message = broker.take()
    token = broker.delivery(message).signature
    first = asyncio.create_task(broker.deliver(message, token=token))
    await slow.begun.wait()
    again = await broker.deliver(message, token=token)
    assert dict(again.headers)["Qtasks-Interrupted"] == "running elsewhere"
    slow.go_on.set()
    assert (await first).body == b"1"
    assert slow.runs == 1


async def test_the_task_runs_if_locks_cannot_be_taken(broker: ManualBroker, caplog: pytest.LogCaptureFixture) -> None:
    slow = BlockingTask(broker)
    slow.go_on.set()
    slow.task.delay()

    def broken(locks: Any, *, now_ms: int) -> list[Lock]:
        raise ResultError("no database")

    broker.tasks.runtime.results().lock = broken  # type: ignore[method-assign]
    assert (await broker.deliver()).body == b"1"
    assert "locks cannot be taken" in caplog.text


async def test_a_snoozed_call_is_unlocked(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work(ctx: TaskContext = injected) -> str:
        if not ctx.snoozed:
            raise Snooze(1)
        return "done"

    work.delay()
    await broker.deliver()
    assert (await broker.deliver()).body == b'"done"'


# --- calls that are the same


async def test_a_second_call_with_the_same_arguments_is_not_sent_and_says_so(
    broker: ManualBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """The trap: an id for deduplication that swallows a wanted call without a word."""

    @broker.tasks.task(unique=True)
    def work(a: int, b: str = "x") -> str:
        return f"{a}{b}"

    first = work.delay(1)
    with caplog.at_level("INFO"):
        second = work.delay(1, b="x")
    third = await work.adelay(b="x", a=1)
    other = work.delay(2)
    assert [message.envelope["args"] for message in broker.messages] == [[1], [2]]
    assert (second.deduplicated, second.id, third.id) == (True, first.id, first.id)
    assert f"call {first.id} takes its place" in caplog.text
    assert not first.deduplicated
    assert not other.deduplicated
    await broker.deliver(broker.messages[0])
    assert second.get(timeout=1) == "1x"
    assert not work.delay(1).deduplicated


@pytest.mark.parametrize(
    ("raised", "free"),
    [(None, True), (ArgumentsError("x"), True), (Cancel(), True), (OSError(), False), (Snooze(1), False)],
)
async def test_the_key_is_free_again_when_the_call_is_done_and_not_before(
    broker: ManualBroker, raised: Exception | None, free: bool
) -> None:
    @broker.tasks.task(unique=True, retries=RetryPolicy(give_up_on=ArgumentsError))
    def work() -> None:
        if raised is not None:
            raise raised

    work.delay()
    await broker.deliver()
    broker.messages.clear()
    assert work.delay().deduplicated is not free


async def test_parameters_may_be_chosen(broker: ManualBroker) -> None:
    @broker.tasks.task(unique="order")
    def one(order: int, note: str) -> None: ...

    @broker.tasks.task(unique=["a", "b"])
    def two(a: int, b: int, c: int) -> None: ...

    assert [one.delay(1, "x").deduplicated, one.delay(1, "y").deduplicated, one.delay(2, "x").deduplicated] == [
        False,
        True,
        False,
    ]
    assert [two.delay(1, 2, 3).deduplicated, two.delay(1, 2, 4).deduplicated, two.delay(1, 3, 3).deduplicated] == [
        False,
        True,
        False,
    ]
    with pytest.raises(DefinitionError, match="no parameter 'nonsense'"):
        one.using(unique="nonsense").delay(1, "x")


async def test_a_window_lasts_whether_the_call_is_done_or_not(broker: ManualBroker) -> None:
    @broker.tasks.task(unique=True, unique_for="10m")
    def work() -> None: ...

    work.delay()
    await broker.deliver()
    broker.clock.advance(599_000)
    assert work.delay().deduplicated
    broker.clock.advance(1_000)
    assert not work.delay().deduplicated


async def test_a_call_that_is_never_heard_of_again_blocks_for_a_day_after_its_delay(broker: ManualBroker) -> None:
    @broker.tasks.task(unique=True)
    def work() -> None: ...

    work.using(delay="2d").delay()
    broker.clock.advance((3 * 86_400 - 1) * 1000)
    assert work.delay().deduplicated
    broker.clock.advance(1_000)
    assert not work.delay().deduplicated


async def test_a_call_that_could_not_be_sent_does_not_keep_its_key(broker: ManualBroker) -> None:
    @broker.tasks.task(unique=True)
    def work() -> None: ...

    publisher = broker.tasks.runtime.publisher()

    def down(message: object) -> Any:
        raise BrokerUnreachable("down")

    async def adown(message: object) -> Any:
        return down(message)

    publisher.publish = down  # type: ignore[method-assign]
    publisher.apublish = adown  # type: ignore[method-assign]
    with pytest.raises(BrokerUnreachable):
        work.delay()
    with pytest.raises(BrokerUnreachable):
        await work.adelay()
    del publisher.publish, publisher.apublish
    assert not work.delay().deduplicated


@pytest.mark.parametrize("error", [Snooze("3d"), OSError("away"), RetryAfter("1d")])
async def test_a_call_that_comes_again_is_unique_until_it_has_ended(broker: ManualBroker, error: Exception) -> None:
    """However long that takes: the limit of a day is only for calls without any sign of life."""

    @broker.tasks.task(unique=True, retries=9)
    def work() -> None:
        if next(runs) < 4:
            raise error

    runs = itertools.count(1)
    first = work.delay()
    message = broker.take()
    for retried in range(3):
        await broker.deliver(message, retried=0 if isinstance(error, Snooze) else retried)
        broker.clock.advance(round((2.9 if isinstance(error, Snooze) else 1) * 86_400_000))
        assert work.delay().id == first.id
        if broker.messages:
            message = broker.take()
    assert (await broker.deliver(message, retried=3)).status == 200
    assert work.delay().id != first.id


@pytest.mark.parametrize("how", ["left by an exception", "no broker", "refused"])
@pytest.mark.parametrize("blocking", [True, False])
async def test_a_call_of_a_batch_that_was_not_sent_does_not_keep_its_key(
    broker: ManualBroker, monkeypatch: pytest.MonkeyPatch, how: str, blocking: bool
) -> None:
    @broker.tasks.task(unique=True)
    def work(n: int) -> None: ...

    def unreachable(request: Request, timeout_s: float) -> Reply:
        raise BrokerUnreachable("away")

    async def make() -> None:
        if blocking:
            with broker.tasks.batch():
                work.delay(1)
                if how == "left by an exception":
                    raise KeyError
        else:
            async with broker.tasks.batch():
                await work.adelay(1)
                if how == "left by an exception":
                    raise KeyError

    with monkeypatch.context() as away:
        if how == "no broker":
            away.setattr(broker.embedded.transport, "send", unreachable)
        elif how == "refused":
            broker.refuses = '"args":[1]'
        with pytest.raises((KeyError, BrokerUnreachable, PartlyRefused)):
            await make()
    broker.refuses = ""
    assert broker.messages == []
    assert not work.delay(1).deduplicated
    assert len(broker.messages) == 1
    assert work.delay(1).deduplicated


async def test_without_a_place_for_results_uniqueness_names_the_setting() -> None:
    tasks = application(results=None)

    @tasks.task(unique=True)
    def work() -> None: ...

    with pytest.raises(ResultsDisabled, match="QTASKS_RESULTS"):
        work.delay()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"unique": 3}, "unique=3"),
        ({"unique": ""}, "unique=''"),
        ({"unique": []}, "unique="),
        ({"unique": [1]}, "unique="),
        ({"unique_for": "1h"}, "`unique` is not set"),
        ({"unique": True, "unique_for": 0}, "unique_for=0"),
    ],
)
async def test_uniqueness_that_means_nothing_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        QTasks().task(name="work", **options)(lambda: None)
