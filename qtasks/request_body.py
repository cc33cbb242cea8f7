"""Reads the body of a request from an ASGI server, with limits on size, on time, and on all bodies together.

Shared by the broker's API and the dispatcher. Neither knows who sends before it has the whole body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from qtasks.rare_timers import Deadline

FREE: Final = 64 * 1024
"""Bytes of each body that count against no budget: so there is always room for small requests beside large ones."""

_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class BodyTooLarge(Exception):
    """The body has more bytes than it may have."""


class BodyTooSlow(Exception):
    """The body was not complete in time."""


class BodyCut(Exception):
    """The client disconnected before the body was complete."""


class NoRoomForBody(Exception):
    """All bodies together have as many bytes as they may have: the client should try again later."""


class BufferBudget:
    """Bytes that several requests may hold together, `most` at the same time."""

    def __init__(self, most: int) -> None:
        self._free = most

    def take(self, size: int) -> bool:
        """Take `size` bytes; False, and nothing taken, if so many are not free."""
        if size > self._free:
            return False
        self._free -= size
        return True

    def give_back(self, size: int) -> None:
        """Free `size` bytes that were taken."""
        self._free += size


async def read_body(
    receive: _Receive,
    limit: int,
    *,
    budget: BufferBudget,
    within_s: float | None = None,
) -> bytes:
    """The whole body, of `limit` bytes at most, if it arrives `within_s` seconds (None: the server has such a limit).

    Raises BodyTooLarge, BodyTooSlow, BodyCut, NoRoomForBody.
    """
    running = None if within_s is None else asyncio.current_task()
    if within_s is None or running is None:
        return await _whole(receive, limit, budget)
    deadline = Deadline(within_s, running)
    try:
        body = await _whole(receive, limit, budget)
    except BaseException as error:
        if deadline.has_caused(error):
            raise BodyTooSlow from None
        raise
    deadline.has_caused(None)
    return body


async def _whole(receive: _Receive, limit: int, budget: BufferBudget) -> bytes:
    event = await receive()
    if event["type"] != "http.request" or event.get("more_body", False):
        return await _collect(event, receive, limit, budget)
    body: bytes = event.get("body", b"")
    if len(body) > limit:
        raise BodyTooLarge
    return body


async def _collect(event: MutableMapping[str, Any], receive: _Receive, limit: int, budget: BufferBudget) -> bytes:
    body = bytearray()
    taken = 0
    try:
        while True:
            if event["type"] == "http.disconnect":
                raise BodyCut
            body += event.get("body", b"")
            if len(body) > limit:
                raise BodyTooLarge
            if (beyond := len(body) - FREE - taken) > 0:
                if not budget.take(beyond):
                    raise NoRoomForBody
                taken += beyond
            if not event.get("more_body", False):
                return bytes(body)
            event = await receive()
    finally:
        budget.give_back(taken)
