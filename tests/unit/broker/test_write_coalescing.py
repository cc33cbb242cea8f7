"""What one turn of the event loop writes leaves in one piece, and nothing is held back for longer."""

from __future__ import annotations

import asyncio

import pytest

from qtasks.broker.server.write_coalescing import CoalescingTransport

pytestmark = pytest.mark.anyio


class Wire(asyncio.Transport):
    """A transport that keeps what was sent."""

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
async def wire() -> Wire:
    return Wire()


@pytest.fixture
async def together(wire: Wire) -> CoalescingTransport:
    return CoalescingTransport(wire, asyncio.get_running_loop())


async def test_head_and_body_of_an_answer_leave_in_one_piece(wire: Wire, together: CoalescingTransport) -> None:
    together.write(b"head ")
    together.write(b"body")
    assert wire.sent == []
    await asyncio.sleep(0)
    together.write(b"next")
    await asyncio.sleep(0)
    assert wire.sent == [b"head body", b"next"]


async def test_a_close_sends_what_was_written_before_and_nothing_after(
    wire: Wire, together: CoalescingTransport
) -> None:
    together.write(b"the end")
    together.close()
    await asyncio.sleep(0)
    assert wire.sent == [b"the end", "closed"]
    assert together.is_closing()


async def test_much_is_not_held_back_so_that_a_slow_reader_is_felt(wire: Wire, together: CoalescingTransport) -> None:
    for _ in range(5):
        together.write(bytes(40_000))
    assert wire.sent == [bytes(80_000), bytes(80_000)]
