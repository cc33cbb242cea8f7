"""The interface of a store: writes and reads, each by a function that the caller names.

The functions are in `verbs`, one module for each subject: `await store.write(queues.pause_queue, account, name,
paused=True, now_ms=now_ms)`. Their first parameter is a connection inside an open transaction. They read no clock and
create no ids: the caller passes both. `now_ms` is the broker's time (`steady_clock`) in Unix milliseconds. Tests and
simulations call them directly.

The functions are written for SQLite. A store for another database runs its own function in place of the one that
the caller names, and defines only those that differ.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Concatenate, Final, ParamSpec, Protocol, TypeVar

import apsw

from qtasks.broker.core.values import Accepted, ClaimBatch, Publication, Rooms
from qtasks.broker.steady_clock import SteadyClock

P = ParamSpec("P")
T = TypeVar("T")

SHORT_WRITE: Final = 128
"""Messages that a write stores on the event loop's thread at most, two milliseconds of work; more are a long write."""


class Store(Protocol):
    """Stores messages and everything that belongs to them. After `close` every call raises StoreError."""

    promise: str
    """The durability of an accepted message on this storage, in words; shown at the start and by ``/readyz``."""
    clock: SteadyClock
    """The broker's time, which goes on where the storage's last process stood."""
    broken: asyncio.Event
    """Set when the storage has failed permanently: end the process and start it again."""

    written: asyncio.Event
    """Set after each commit that has changed something. It stays set until it is cleared."""
    lacks_room: asyncio.Event
    """Set while the disk is full, or nearly: call `look_for_room` every second."""

    @property
    def shortage(self) -> str | None:
        """A sentence that says why no new message is accepted although all else goes on; None while there is room."""

    async def look_for_room(self) -> None:
        """Make room on a full disk by removing old history, and accept messages again once there is room."""

    @property
    def failure(self) -> str | None:
        """A sentence that says why the storage is broken; None while it is not."""

    async def write(self, verb: Callable[Concatenate[apsw.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `verb` in a transaction and return its value once the commit survives a power cut.

        If `verb` or the commit raises, nothing is changed. Raises StoreError (StoreFull for a full disk) for errors
        of the storage. A caller that is cancelled does not stop the write.
        """

    async def write_patiently(
        self, verb: Callable[Concatenate[apsw.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `write`, for a verb whose result no client waits for: it waits a moment for others to share its commit."""

    async def write_long(
        self, verb: Callable[Concatenate[apsw.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `write`, for a verb that may take more than some milliseconds: the event loop goes on meanwhile.

        The verb runs on another thread. Other writes wait for it.
        """

    async def read(self, query: Callable[Concatenate[apsw.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `query`, which changes nothing, and return its value. It sees every write that has returned."""

    async def read_long(
        self, query: Callable[Concatenate[apsw.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `read`, for a query that may look at very many rows: other reads do not wait for it."""

    async def accept(self, publications: Sequence[Publication], *, now_ms: int) -> list[Accepted]:
        """Write with `accept.accept`, as long as there is room for new messages."""

    async def claim(self, *, now_ms: int, limit: int, rooms: Rooms) -> ClaimBatch:
        """Write with `claim.claim`."""

    def fail(self, reason: str) -> None:
        """Accept no write from now on, because of `reason`, a sentence: the storage is broken. Idempotent."""

    async def close(self) -> None:
        """Finish the writes that were submitted, then release the storage. Idempotent."""
