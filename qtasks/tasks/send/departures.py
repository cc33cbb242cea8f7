"""Which calls of a process leave for the broker together, and when. Pure.

A call that finds fewer than `IN_FLIGHT` requests under way leaves at once and alone. Calls that arrive while so many
are under way wait, and leave together when one of these has its answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

from qtasks.tasks.send.prepared_call import PreparedCall

if TYPE_CHECKING:
    from qtasks.errors import BrokerUnreachable
    from qtasks.qstash.operations.publishing import PublishResponse

IN_FLIGHT: Final = 2
"""Requests under way before calls wait for each other. With one, a call would wait for the whole of another's."""

PATIENCE_S: Final = 0.2
"""Seconds that a call waits at most: then it leaves, with those that wait, although no request has had its answer. So
a broker that does not answer is reported as soon as it is to a call that waits for none."""

MAX_ITEMS: Final = 1000
MAX_BYTES: Final = 3 * 1024 * 1024
"""The limits of one request. Our broker takes 1,000 messages and 4 MiB."""


class CallInCompany:
    """A call that may leave with others."""

    __slots__ = ("call", "item")

    def __init__(self, call: PreparedCall) -> None:
        self.call = call
        self.item = call.item()

    @property
    def size(self) -> int:
        """Bytes that the call adds to a request."""
        return len(self.item)


Outcome: TypeAlias = "PublishResponse | BrokerUnreachable | None"
"""What became of a call in company. None: nothing, so that it is sent alone."""

W = TypeVar("W", bound=CallInCompany)


class Departures(Generic[W]):
    """The calls that wait, and the requests under way. Not thread-safe.

    A request that has not ended `longest_s` seconds after its begin counts no more: its thread was killed.
    """

    def __init__(self, longest_s: float, monotonic: Callable[[], float]) -> None:
        self._longest_s = longest_s
        self._monotonic = monotonic
        self._under_way: dict[Hashable, float] = {}
        """The end of each at the latest."""
        self._waiting: deque[W] = deque()

    @property
    def is_idle(self) -> bool:
        """True if no request is under way and no call waits."""
        return not self._under_way and not self._waiting

    @property
    def is_free(self) -> bool:
        """True if a call may leave at once."""
        if len(self._under_way) < IN_FLIGHT:
            return True
        now_s = self._monotonic()
        self._under_way = {key: end_s for key, end_s in self._under_way.items() if end_s > now_s}
        return len(self._under_way) < IN_FLIGHT

    def begin(self, key: Hashable) -> float:
        """Note a request that is under way from now on. Returns the time at which it has ended at the latest."""
        end_s = self._under_way[key] = self._monotonic() + self._longest_s
        return end_s

    def end(self, key: Hashable) -> None:
        """Note the end of a request. Idempotent."""
        self._under_way.pop(key, None)

    def wait(self, call: W) -> None:
        """Add a call to those that wait."""
        self._waiting.append(call)

    def give_up(self, call: W) -> None:
        """Remove a call that waits no more. Idempotent."""
        if call in self._waiting:
            self._waiting.remove(call)

    def first(self) -> W | None:
        """The call that has waited longest, or None."""
        return self._waiting[0] if self._waiting else None

    def __len__(self) -> int:
        """The number of calls that wait."""
        return len(self._waiting)

    def leave(self, leader: W | None = None, *, most: int | None = None) -> list[W]:
        """Remove the calls that leave now: `leader`, then those that have waited longest, as many as fit.

        `most` limits their number; None: `MAX_ITEMS`.
        """
        most = min(MAX_ITEMS, most or MAX_ITEMS)
        group: list[W] = []
        size = 0
        if leader is not None:
            self.give_up(leader)
            group, size = [leader], leader.size
        while self._waiting and len(group) < most:
            size += self._waiting[0].size
            if group and size > MAX_BYTES:
                break
            group.append(self._waiting.popleft())
        return group
