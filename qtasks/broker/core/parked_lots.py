"""The lots in which messages wait, and whose turn it is: remembered, so that no claim walks over all of them. Pure.

A lot is awake or it rests. Awake lots stand in the line of their host, and hosts in a line of all: whose last start is
the longest ago is first. A lot rests while its URL prefix is down, until the next probe may start.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from qtasks.broker.core import lots

FROM_FIRST: Final = b""
"""`ParkedLots.read_until` when no lot has been read."""


class ParkedLots:
    """A hint beside the rows, which decide: it has each lot in which messages wait, and maybe some that are empty."""

    def __init__(self) -> None:
        self.read_until: bytes | None = FROM_FIRST
        """The last lot that was read from the rows, in their order; None: all were."""
        self._all: set[str] = set()
        self._awake: OrderedDict[str, OrderedDict[str, None]] = OrderedDict()
        """By host."""
        self._resting: dict[str, list[str]] = {}
        """By URL prefix."""
        self._alarms: list[tuple[int, str]] = []
        """A heap: when the lots of a prefix wake, if they still rest."""

    def __contains__(self, lot: object) -> bool:
        return lot in self._all

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._all))

    def __len__(self) -> int:
        return len(self._all)

    def add(self, lot: str) -> None:
        """Messages wait in `lot`."""
        if lot not in self._all:
            self._all.add(lot)
            self._stand(lot)

    def find(self, lot: str) -> None:
        """Messages wait in `lot`, as the rows say; whether they may start is not known any more."""
        if (prefix := lots.parse(lot).prefix) is not None:
            self.wake_prefix(prefix)
        self.add(lot)

    def discard(self, lot: str) -> None:
        """No message waits in `lot`."""
        self._all.discard(lot)
        self._leave(lot)

    def distrust(self) -> None:
        """A transaction was rolled back: lots may be missing. All are read again."""
        self.read_until = FROM_FIRST

    def hosts(self) -> Iterable[str]:
        """The hosts with lots that are awake, in the order of their turns."""
        return self._awake.keys()

    def of(self, host: str) -> Collection[str]:
        """The lots of a host that are awake, in the order of their turns."""
        return self._awake.get(host, ())

    def take_turn(self, lot: str) -> None:
        """A message of `lot` has started."""
        host = lots.parse(lot).host
        if (line := self._awake.get(host)) is not None:
            self._awake.move_to_end(host)
            if lot in line:
                line.move_to_end(lot)

    def rest(self, lot: str, prefix: str, until_ms: int) -> None:
        """No message of `lot` may start before `until_ms`, or before `wake_prefix`."""
        self._leave(lot)
        self._resting.setdefault(prefix, []).append(lot)
        heapq.heappush(self._alarms, (until_ms, prefix))

    def wake_prefix(self, prefix: str) -> None:
        """Messages of `prefix` may start."""
        for lot in self._resting.pop(prefix, ()):
            if lot in self._all:
                self._stand(lot)

    def wake(self, now_ms: int, most: int) -> bool:
        """Wake the lots whose time has come, those of `most` prefixes at most; True if that was not enough."""
        for _ in range(most):
            if not self._alarms or self._alarms[0][0] > now_ms:
                return False
            self.wake_prefix(heapq.heappop(self._alarms)[1])
        return bool(self._alarms) and self._alarms[0][0] <= now_ms

    def _stand(self, lot: str) -> None:
        self._awake.setdefault(lots.parse(lot).host, OrderedDict())[lot] = None

    def _leave(self, lot: str) -> None:
        host, prefix, _, _ = lots.parse(lot)
        if (line := self._awake.get(host)) is not None:
            line.pop(lot, None)
            if not line:
                del self._awake[host]
        if prefix is not None and lot in (resting := self._resting.get(prefix, [])):
            resting.remove(lot)
            if not resting:
                del self._resting[prefix]
