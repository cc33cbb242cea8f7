"""The writer buffers for a backend: what it hands over, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from qtasks.errors import ResultError
from qtasks.tasks.results.backend import Lock, ResultRecord, ResultStatus
from qtasks.tasks.results.memory import MemoryResults
from qtasks.tasks.results.writer import ResultWriter

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
    assert "is lost" in caplog.text
    writer.close()


async def test_without_a_backend_it_does_nothing() -> None:
    writer = ResultWriter(None)
    writer.record([RECORD])
    writer.unlock([LOCK])
    await writer.flush()
    writer.flush_soon()
    assert await writer.lock([LOCK], "call_1", now_ms=0) is None
    assert await writer.read("call_1") is None
    writer.close()
