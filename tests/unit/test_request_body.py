"""A body is read whole or not at all: within its size, within its time, and within what all bodies may hold."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from qtasks.request_body import FREE, BodyCut, BodyTooLarge, BodyTooSlow, BufferBudget, NoRoomForBody, read_body

pytestmark = pytest.mark.anyio


class Arriving:
    """The events of a request; after the last one nothing comes."""

    def __init__(self, *pieces: bytes, is_complete: bool = True, is_cut: bool = False) -> None:
        self.events: list[MutableMapping[str, Any]] = [
            {"type": "http.request", "body": piece, "more_body": not is_complete or number < len(pieces) - 1}
            for number, piece in enumerate(pieces)
        ]
        if is_cut:
            self.events.append({"type": "http.disconnect"})

    async def __call__(self) -> MutableMapping[str, Any]:
        if not self.events:
            await asyncio.Event().wait()
        return self.events.pop(0)


@pytest.mark.parametrize("pieces", [[b""], [b"abc"], [b"a", b"", b"bc"], [b"a"] * 10_000])
async def test_pieces_are_joined(pieces: list[bytes]) -> None:
    assert await read_body(Arriving(*pieces), 10_000, budget=BufferBudget(0)) == b"".join(pieces)


@pytest.mark.parametrize("pieces", [[b"xxxx"], [b"xx", b"xx"]])
async def test_a_body_over_the_limit_is_not_read_further(pieces: list[bytes]) -> None:
    with pytest.raises(BodyTooLarge):
        await read_body(Arriving(*pieces), 3, budget=BufferBudget(0))


@pytest.mark.parametrize("pieces", [[], [b"abc"]])
async def test_a_body_that_does_not_come_is_given_up(pieces: list[bytes]) -> None:
    with pytest.raises(BodyTooSlow):
        await read_body(Arriving(*pieces, is_complete=False), 10, budget=BufferBudget(0), within_s=0.01)


async def test_a_body_that_is_cut_is_no_body() -> None:
    with pytest.raises(BodyCut):
        await read_body(Arriving(b"abc", is_complete=False, is_cut=True), 10, budget=BufferBudget(0))


async def test_the_part_of_a_body_beyond_the_free_one_takes_from_the_budget_until_the_body_is_read() -> None:
    budget = BufferBudget(100)
    with pytest.raises(NoRoomForBody):
        await read_body(Arriving(b"x" * FREE, b"x" * 60, b"x" * 41), 2 * FREE, budget=budget)
    assert len(await read_body(Arriving(b"x" * FREE, b"x" * 60, b"x" * 40), 2 * FREE, budget=budget)) == FREE + 100
    assert not budget.take(101)
    assert budget.take(100)
