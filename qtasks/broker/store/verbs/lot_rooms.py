"""How many messages of each lot may start, during one claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import apsw

from qtasks.broker.core import lots
from qtasks.broker.core.values import Rooms
from qtasks.broker.store.verbs import prefixes
from qtasks.broker.store.verbs.prefixes import PrefixState


class LotRooms:
    """The room of each lot. It shrinks as messages start."""

    def __init__(self, db: apsw.Connection, rooms: Rooms, *, parked_lots: Iterable[str], now_ms: int) -> None:
        self._db = db
        self._rooms = rooms
        self._now_ms = now_ms
        self._running = Counter(rooms.running)
        self._started: Counter[str] = Counter()
        """Messages that have started during this claim, by host."""
        self._probes: Counter[str] = Counter()
        """Of these, those of a prefix that is down, by prefix."""
        self._parked_lots = set(parked_lots)
        self._prefixes: dict[str, PrefixState] = {}

    def of(self, lot: str) -> int:
        """How many more messages of `lot` may start."""
        host = lots.host_of(lot)
        room = self._rooms.hosts.get(host, self._rooms.default) - self._started[host]
        prefix = lots.prefix_of(lot)
        if room <= 0:
            return 0
        if prefix is not None:
            return self._room_at(prefix, is_alone=lots.is_alone(lot), room=room)
        if lots.is_crashed(lot) and any(count and lots.is_crashed(other) for other, count in self._running.items()):
            return 0
        return 1 if lots.is_crashed(lot) else room

    def _room_at(self, prefix: str, *, is_alone: bool, room: int) -> int:
        """The room of a prefix: for its messages, or for the one that is tried alone."""
        state, alone = self.prefix(prefix), lots.alone_lot(prefix)
        if state.down_since_ms is not None:
            room = max(0, min(room, state.probes_at(self._now_ms) - self._probes[prefix]))
        if not is_alone:
            # While a prefix is down, others than those that may have ended it are its probes.
            waits = alone in self._parked_lots and state.down_since_ms is None
            return 0 if waits or self._running[alone] else room
        waits = prefix in self._parked_lots and state.down_since_ms is not None
        return 0 if waits or self._running[prefix] or self._running[alone] else min(room, 1)

    def prefix(self, prefix: str) -> PrefixState:
        """The state of a prefix before this claim."""
        if prefix not in self._prefixes:
            self._prefixes[prefix] = prefixes.read(self._db, prefix)
        return self._prefixes[prefix]

    def start(self, lot: str) -> None:
        """A message of `lot` has started."""
        self._running[lot] += 1
        self._started[lots.host_of(lot)] += 1
        prefix = lots.prefix_of(lot)
        if prefix is not None and self.prefix(prefix).down_since_ms is not None:
            self._probes[prefix] += 1

    def park(self, lot: str) -> None:
        """A message waits in `lot`."""
        self._parked_lots.add(lot)

    def close(self) -> None:
        """Store when the next probes may start."""
        for prefix in self._probes:
            is_first = not self._parked_lots & {prefix, lots.alone_lot(prefix)}
            prefixes.note_probes(self._db, prefix, self.prefix(prefix), is_first=is_first, now_ms=self._now_ms)
