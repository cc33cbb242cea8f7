"""Runs of a schedule that would overlap and are to be left out: `overlap="skip"`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from qtasks import Snooze, TaskResult
from qtasks.errors import PayloadError, TaskCancelled
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.results.backend import Lock, ResultStatus
from qtasks.tasks.run.decision import DispatchResponse
from qtasks.tasks.run.lease import LEASE_MS
from tests.support.tasks import application, deliver, envelope
from tests.unit.tasks.manual_broker import ManualBroker, SentMessage, json_of

pytestmark = pytest.mark.anyio

SKIPPED = {"skipped": "another run of its schedule is running", "code": "QT418"}


@pytest.fixture(params=["memory", "sqlite"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ManualBroker]:
    made = ManualBroker(results="memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/r.db")
    yield made
    made.close()


async def delivered(broker: ManualBroker, message: SentMessage, **facts: Any) -> DispatchResponse:
    """The answer, which must not wait for a run that is under way."""
    return await asyncio.wait_for(broker.deliver(message, **facts), 10)


class BlockingSchedule:
    """A scheduled task that runs until the test sets `go_on`."""

    def __init__(self, broker: ManualBroker, *, overlap: Any = "skip", **options: Any) -> None:
        self.broker = broker
        self.begun, self.go_on, self.runs = asyncio.Event(), asyncio.Event(), 0
        self.error: Exception | None = None

        @broker.tasks.every("1m", overlap=overlap, **options)
        async def slow() -> int:
            self.runs += 1
            self.begun.set()
            await self.go_on.wait()
            if self.error is not None:
                raise self.error
            return self.runs

        (self.schedule,) = slow.schedules

    def tick(self) -> tuple[TaskResult[int], SentMessage]:
        """One run on its way."""
        result = self.schedule.trigger()
        return result, self.broker.take()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[DispatchResponse]]:
        """A run that is under way."""
        _, message = self.tick()
        self.begun.clear()
        under_way = asyncio.create_task(self.broker.deliver(message))
        await self.begun.wait()
        yield under_way
        self.go_on.set()
        await under_way


async def test_a_run_that_finds_another_one_under_way_ends_unrun_and_everybody_can_see_it(
    broker: ManualBroker, caplog: pytest.LogCaptureFixture
) -> None:
    slow = BlockingSchedule(broker)
    async with slow.running():
        result, message = slow.tick()
        answer = await delivered(broker, message)
    assert (answer.status, json_of(answer)) == (200, SKIPPED)
    assert slow.runs == 1
    assert result.status is ResultStatus.CANCELLED
    with pytest.raises(TaskCancelled, match="another run of its schedule is running"):
        result.get(timeout=5)
    (record,) = [entry for entry in caplog.records if getattr(entry, "action", "") == "skipped"]
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "slow skipped: another run of its schedule is running"


async def test_the_run_after_the_end_of_the_other_runs(broker: ManualBroker) -> None:
    slow = BlockingSchedule(broker)
    async with slow.running():
        pass
    _, message = slow.tick()
    assert (await broker.deliver(message)).body == b"2"


async def test_a_skipped_run_is_over_also_when_it_is_delivered_again(broker: ManualBroker) -> None:
    slow = BlockingSchedule(broker)
    async with slow.running():
        _, message = slow.tick()
        await delivered(broker, message)
    again = await broker.deliver(message, retried=1)
    assert again.status == 200
    assert json_of(again)["cancelled"] == SKIPPED["skipped"]
    assert slow.runs == 1


async def test_a_failed_run_lets_the_next_one_run_and_one_that_waits_for_its_retry_is_not_under_way(
    broker: ManualBroker,
) -> None:
    slow = BlockingSchedule(broker, retries=1)
    slow.error = OSError("no")
    slow.go_on.set()
    _, failed = slow.tick()
    assert (await broker.deliver(failed)).status == 500
    slow.error = None
    _, message = slow.tick()
    assert (await broker.deliver(message)).body == b"2"
    assert (await broker.deliver(failed, retried=1)).body == b"3"


async def test_a_duplicate_delivery_of_a_running_run_is_answered_503(broker: ManualBroker) -> None:
    slow = BlockingSchedule(broker)
    _, message = slow.tick()
    first = asyncio.create_task(broker.deliver(message))
    await slow.begun.wait()
    assert (await broker.deliver(message)).status == 503
    slow.go_on.set()
    assert (await first).body == b"1"
    assert (await broker.deliver(message)).body == b"1"


async def test_other_schedules_of_the_same_task_do_not_count(broker: ManualBroker) -> None:
    slow = BlockingSchedule(broker)
    task = broker.tasks.tasks["slow"]
    broker.tasks.every("1h", schedule="other", overlap="skip")(task)
    async with slow.running() as first:
        slow.go_on.set()
        task.schedules[1].trigger()
        assert (await broker.deliver()).body == b"2"
        assert (await first).status == 200


async def test_runs_that_may_overlap_do(broker: ManualBroker) -> None:
    slow = BlockingSchedule(broker, overlap="allow")
    async with slow.running():
        _, message = slow.tick()
        second = asyncio.create_task(broker.deliver(message))
        slow.begun.clear()
        await slow.begun.wait()
        slow.go_on.set()
        assert (await second).body == b"2"


async def test_a_run_whose_process_has_died_on_this_machine_delays_no_other(broker: ManualBroker) -> None:
    program = "from qtasks.tasks.run.process_id import new_owner; print(new_owner())"
    died = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    slow = BlockingSchedule(broker)
    slow.go_on.set()
    _, message = slow.tick()
    hold(broker, slow, died)
    assert (await broker.deliver(message)).body == b"1"


async def test_a_silent_run_elsewhere_keeps_its_schedule_locked_for_its_lease_at_most(broker: ManualBroker) -> None:
    slow = BlockingSchedule(broker)
    slow.go_on.set()
    hold(broker, slow, "elsewhere/1/1/x")
    _, message = slow.tick()
    assert json_of(await delivered(broker, message)) == SKIPPED
    broker.clock.advance(LEASE_MS)
    _, message = slow.tick()
    assert (await broker.deliver(message)).body == b"1"


def hold(broker: ManualBroker, slow: BlockingSchedule, owner: str) -> None:
    """Lock the schedule for `owner`, as a run does."""
    now_ms = broker.clock.now_ms()
    key = f"schedule:{slow.schedule.id}"
    broker.tasks.runtime.results().lock([Lock(key, owner, now_ms + LEASE_MS)], now_ms=now_ms)


async def test_a_long_run_keeps_its_schedule_to_itself(broker: ManualBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qtasks.tasks.run.lease.RENEW_S", 0.0)
    slow = BlockingSchedule(broker)
    async with slow.running():
        results = broker.tasks.runtime.results()
        broker.clock.advance(LEASE_MS - 1_000)
        now_ms = broker.clock.now_ms()
        other = Lock(f"schedule:{slow.schedule.id}", "other", now_ms + 1)
        async with asyncio.timeout(10):
            while True:
                (held,) = await asyncio.to_thread(results.lock, [other], now_ms=now_ms)
                if held.until_ms == now_ms + LEASE_MS:
                    break
                await asyncio.sleep(0)
        broker.clock.advance(2_000)
        _, message = slow.tick()
        assert json_of(await delivered(broker, message)) == SKIPPED


async def test_a_run_that_is_put_off_lets_others_run_and_is_left_out_where_one_does(broker: ManualBroker) -> None:
    go_on, begun, runs = asyncio.Event(), asyncio.Event(), 0

    @broker.tasks.every("1m", overlap="skip")
    async def work() -> str:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise Snooze("1m")
        begun.set()
        await go_on.wait()
        return "done"

    work.schedules[0].trigger()
    await broker.deliver()
    put_off = broker.take()
    work.schedules[0].trigger()
    running = asyncio.create_task(broker.deliver())
    await begun.wait()
    assert json_of(await delivered(broker, put_off)) == SKIPPED
    go_on.set()
    assert (await running).body == b'"done"'


async def test_without_a_place_for_results_such_a_run_fails_and_names_the_setting() -> None:
    tasks = application(results=None)
    runs: list[int] = []

    @tasks.task
    def work() -> None:
        runs.append(1)

    body = envelope()[:-1] + b', "schedule": "work-1", "overlap": "skip"}'
    answer = await deliver(tasks.asgi_app(), "work", body)
    assert (answer.status, answer.json["code"]) == (500, "QT209")
    assert "QTASKS_RESULTS" in answer.error
    assert runs == []


@pytest.mark.parametrize("extra", ['"overlap": "queue"', '"schedule": 1', '"schedule": "a b"', '"schedule": ""'])
def test_an_envelope_with_something_else_there_is_none(extra: str) -> None:
    with pytest.raises(PayloadError):
        envelopes.decode(envelope()[:-1] + f", {extra}}}".encode())
