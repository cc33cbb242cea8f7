"""The writer buffers for a backend: what it hands over, and when."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest

from qtasks.errors import ResultError
from qtasks.tasks.results.backend import Lock, ResultRecord, ResultStatus
from qtasks.tasks.results.memory import MemoryResults
from qtasks.tasks.results.outage import Outage
from qtasks.tasks.results.writer import LockState, ResultWriter
from qtasks.testing.fakes.virtual_clock import VirtualClock

pytestmark = pytest.mark.anyio

RECORD = ResultRecord(
    call_id="call_1", message_id="msg_1", task="work", status=ResultStatus.SUCCEEDED, attempt=1, updated_ms=1
)
LOCK = Lock("k", "me", 60_000)


class BlockingResults(MemoryResults):
    """Results in memory that count as written to a disk."""

    blocking = True


class FullResults(MemoryResults):
    """Results that cannot be written."""

    def __init__(self) -> None:
        super().__init__(ttl_ms=1000)
        self.attempts: list[Sequence[ResultRecord]] = []

    def write(
        self, records: Sequence[ResultRecord], unlocked: Sequence[Lock] = (), released: Sequence[str] = ()
    ) -> None:
        self.attempts.append(records)
        raise ResultError("disk full")


@pytest.mark.parametrize("kind", [MemoryResults, BlockingResults])
async def test_records_and_unlocks_are_written_with_the_next_flush(kind: type[MemoryResults]) -> None:
    backend = kind(ttl_ms=1000)
    backend.lock([LOCK], now_ms=0)
    writer = ResultWriter(backend)
    writer.record([RECORD])
    writer.unlock([LOCK])
    assert backend.read("call_1") is None
    await writer.flush()
    assert backend.read("call_1") == RECORD
    yours = Lock("k", "you", 60_000)
    assert backend.lock([yours], now_ms=0) == [yours]
    writer.close()


@pytest.mark.parametrize("kind", [MemoryResults, BlockingResults])
async def test_records_are_released_with_the_next_flush(kind: type[MemoryResults]) -> None:
    backend = kind(ttl_ms=1000)
    backend.write([replace(RECORD, kept=True)])
    writer = ResultWriter(backend)
    writer.release(["call_1"])
    await writer.flush()
    assert backend.read("call_1") == RECORD
    writer.close()


@pytest.mark.parametrize("kind", [MemoryResults, BlockingResults])
def test_closing_writes_what_is_left(kind: type[MemoryResults]) -> None:
    backend = kind(ttl_ms=1000)
    writer = ResultWriter(backend)
    writer.record([RECORD])
    writer.close()
    assert backend.read("call_1") == RECORD


async def test_what_could_not_be_written_is_logged_and_does_not_come_back(caplog: pytest.LogCaptureFixture) -> None:
    backend = FullResults()
    writer = ResultWriter(backend)
    writer.record([RECORD])
    await writer.flush()
    await writer.flush()
    assert backend.attempts == [[RECORD]]
    assert caplog.messages == ["results cannot be written: disk full; records lost: 1"]
    writer.close()


class BrokenResults(BlockingResults):
    """Results whose first write and first lock fail in a way that no backend should."""

    def __init__(self) -> None:
        super().__init__(ttl_ms=1000)
        self.faults = {"write", "lock"}

    def write(
        self, records: Sequence[ResultRecord], unlocked: Sequence[Lock] = (), released: Sequence[str] = ()
    ) -> None:
        self._fail("write")
        super().write(records, unlocked, released)

    def lock(self, locks: Sequence[Lock], *, now_ms: int) -> list[Lock]:
        self._fail("lock")
        return super().lock(locks, now_ms=now_ms)

    def _fail(self, operation: str) -> None:
        if operation in self.faults:
            self.faults.remove(operation)
            raise ZeroDivisionError(operation)


async def test_an_error_that_no_backend_should_raise_ends_neither_the_thread_nor_a_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = BrokenResults()
    writer = ResultWriter(backend)
    writer.record([RECORD])
    await asyncio.wait_for(writer.flush(), 20)
    assert await asyncio.wait_for(writer.lock([LOCK], "call_1", now_ms=0), 20) is None
    writer.record([RECORD])
    await asyncio.wait_for(writer.flush(), 20)
    assert await asyncio.wait_for(writer.lock([LOCK], "call_1", now_ms=0), 20) == LockState([LOCK], RECORD)
    assert "ZeroDivisionError('write')" in caplog.text
    assert "Traceback" in caplog.text
    writer.close()


class GatedResults(BlockingResults):
    """Results whose first transaction waits until the test lets it go on; counts the transactions."""

    def __init__(self) -> None:
        super().__init__(ttl_ms=1000)
        self.begun, self.may_go_on = threading.Event(), threading.Event()
        self.transactions: list[str] = []

    def write(
        self, records: Sequence[ResultRecord], unlocked: Sequence[Lock] = (), released: Sequence[str] = ()
    ) -> None:
        self.transactions.append(f"{len(records)} records")
        super().write(records, unlocked, released)

    def lock(self, locks: Sequence[Lock], *, now_ms: int) -> list[Lock]:
        self.transactions.append(f"{len(locks)} locks")
        self.begun.set()
        assert self.may_go_on.wait(20)
        return super().lock(locks, now_ms=now_ms)


async def test_what_arrives_during_a_transaction_shares_the_next_one() -> None:
    backend = GatedResults()
    backend.write([RECORD])
    writer = ResultWriter(backend)

    async def admit(number: int) -> LockState | None:
        return await writer.lock([Lock(f"k{number}", "me", 60_000)], f"call_{number}", now_ms=0)

    async def record(number: int) -> None:
        writer.record([replace(RECORD, call_id=f"call_{number}")])
        await writer.flush()

    first = asyncio.create_task(admit(0))
    assert await asyncio.to_thread(backend.begun.wait, 20)
    others = [asyncio.create_task(admit(number)) for number in range(1, 64)]
    writes = [asyncio.create_task(record(number)) for number in range(64, 128)]
    await asyncio.sleep(0)
    backend.may_go_on.set()
    states = await asyncio.wait_for(asyncio.gather(first, *others), 20)
    await asyncio.wait_for(asyncio.gather(*writes), 20)
    assert backend.transactions == ["1 records", "1 locks", "63 locks", "64 records"]
    assert [state.locks[0].key for state in states if state] == [f"k{number}" for number in range(64)]
    assert [state.record for state in states if state] == [None, RECORD, *[None] * 62]
    writer.close()


def test_an_outage_is_a_line_a_minute_with_a_count_and_one_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock(0)
    outage = Outage("results cannot be written", "records lost", clock.monotonic)
    outage.worked()
    for _ in range(130):
        outage.failed(ResultError("the results cannot be reached:\n  refused"), 2)
        clock.advance(1000)
    outage.worked()
    outage.worked()
    outage.failed(ResultError("disk full"), 1)
    assert caplog.messages == [
        "results cannot be written: the results cannot be reached: refused; records lost: 2",
        "results cannot be written for 60 s: the results cannot be reached: refused; records lost: 120",
        "results cannot be written for 120 s: the results cannot be reached: refused; records lost: 120",
        "results cannot be written: over after 130 s; records lost: 260",
        "results cannot be written: disk full; records lost: 1",
    ]
    assert "Traceback" not in caplog.text


async def test_without_a_backend_it_does_nothing() -> None:
    writer = ResultWriter(None)
    writer.record([RECORD])
    writer.unlock([LOCK])
    await writer.flush()
    writer.flush_soon()
    assert await writer.lock([LOCK], "call_1", now_ms=0) is None
    assert await writer.read("call_1") is None
    writer.close()
