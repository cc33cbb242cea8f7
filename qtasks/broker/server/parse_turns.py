"""Lets the connections that sent much to parse take turns, so that they do not delay the others."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

WORK_PER_TURN: Final = 1000
"""Units of work in one iteration of the event loop, for all connections together: about a millisecond."""


class Parsing(Protocol):
    """A connection with input that is not parsed yet."""

    def parse(self) -> int:
        """Parse a bounded part of the input; return the units of work that it took.

        A unit is about a microsecond.
        """


class ParseTurns:
    """The connections that wait for a turn, in order of arrival."""

    def __init__(self) -> None:
        self._waiting: dict[object, Parsing] = {}
        self._is_scheduled = False

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, connection: Parsing, loop: asyncio.AbstractEventLoop) -> None:
        """Let `connection` parse at its turn. It does not lose its place if it waits already."""
        self._waiting.setdefault(connection, connection)
        if not self._is_scheduled:
            self._is_scheduled = True
            loop.call_soon(self._take_turns, loop)

    def discard(self, connection: object) -> None:
        """`connection` has ended."""
        self._waiting.pop(connection, None)

    def _take_turns(self, loop: asyncio.AbstractEventLoop) -> None:
        work = 0
        try:
            while self._waiting and work < WORK_PER_TURN:
                work += 1 + self._waiting.pop(next(iter(self._waiting))).parse()
        finally:
            self._is_scheduled = bool(self._waiting)
            if self._is_scheduled:
                loop.call_soon(self._take_turns, loop)
