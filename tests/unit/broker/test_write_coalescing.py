"""What one turn of the event loop writes leaves in one piece, and nothing is held back for longer."""

from __future__ import annotations

import asyncio

import pytest

from qtasks.broker.server.write_coalescing import CoalescingTransport

pytestmark = pytest.mark.anyio


class RecordingTransport(asyncio.Transport):
    """A transport that records what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes | str] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))

    def close(self) -> None:
        self.sent.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.sent


@pytest.fixture
async def recording() -> RecordingTransport:
    return RecordingTransport()


@pytest.fixture
async def coalescing(recording: RecordingTransport) -> CoalescingTransport:
    return CoalescingTransport(recording, asyncio.get_running_loop())


async def test_head_and_body_of_an_answer_leave_in_one_piece(
    recording: RecordingTransport, coalescing: CoalescingTransport
) -> None:
    coalescing.write(b"head ")
    coalescing.write(b"body")
    assert recording.sent == []
    await asyncio.sleep(0)
    coalescing.write(b"next")
    await asyncio.sleep(0)
    assert recording.sent == [b"head body", b"next"]


async def test_a_close_sends_what_was_written_before_and_nothing_after(
    recording: RecordingTransport, coalescing: CoalescingTransport
) -> None:
    coalescing.write(b"the end")
    coalescing.close()
    await asyncio.sleep(0)
    assert recording.sent == [b"the end", "closed"]
    assert coalescing.is_closing()


async def test_what_was_written_before_an_abort_is_dropped(
    recording: RecordingTransport, coalescing: CoalescingTransport
) -> None:
    coalescing.write(b"too late")
    recording.close()
    await asyncio.sleep(0)
    coalescing.end()
    assert recording.sent == ["closed"]


async def test_much_is_not_held_back_so_that_a_slow_reader_is_felt(
    recording: RecordingTransport, coalescing: CoalescingTransport
) -> None:
    for _ in range(5):
        coalescing.write(bytes(40_000))
    assert recording.sent == [bytes(80_000), bytes(80_000)]
