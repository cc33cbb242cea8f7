"""How many messages of each lot may start, during one claim."""

from __future__ import annotations

from collections.abc import Iterable

import apsw

from qtasks.broker.core import lots
from qtasks.broker.core.host_rooms import HostRooms
from qtasks.broker.core.values import Rooms
from qtasks.broker.store.verbs import prefixes
from qtasks.broker.store.verbs.prefixes import PrefixState


class LotRooms:
    """The room of each lot. It shrinks as messages start."""

    def __init__(self, db: apsw.Connection, rooms: Rooms, *, parked_lots: Iterable[str], now_ms: int) -> None:
        self._db = db
        self._hosts = HostRooms(rooms)
        self._now_ms = now_ms
        self._running = dict(rooms.running)
        self._probes: dict[str, int] = {}
        """Messages that have started during this claim at a prefix that is down, by prefix."""
        self.parked_lots = set(parked_lots)
        """Lots in which messages wait, or have waited when the claim began."""
        self._prefixes: dict[str, PrefixState] = {}

    def of(self, lot: str) -> int:
        """How many more messages of `lot` may start."""
        host, prefix, is_alone, is_crashed = lots.parse(lot)
        room = self._hosts.of(host)
        if room <= 0:
            return 0
        if prefix is not None:
            return self._room_at(prefix, is_alone=is_alone, room=room)
        if is_crashed:
            return int(not any(lots.parse(running).is_crashed for running in self._running))
        return room

    def turn(self, lot: str) -> int:
        """The place of `lot` in the line of lots whose turn it is."""
        return self._hosts.turn(lots.parse(lot).host)

    def _room_at(self, prefix: str, *, is_alone: bool, room: int) -> int:
        """The room of a prefix: for its messages, or for the one that is tried alone."""
        state, alone = self.prefix(prefix), lots.alone_lot(prefix)
        if (is_down := state.down_since_ms is not None) and (
            room := min(room, state.probes_at(self._now_ms) - self._probes.get(prefix, 0))
        ) <= 0:
            return 0
        if alone in self._running:
            return 0
        # While a prefix is down, others than those that may have ended it are its probes.
        if is_alone:
            return int(prefix not in self._running and not (is_down and prefix in self.parked_lots))
        return 0 if alone in self.parked_lots and not is_down else room

    def prefix(self, prefix: str) -> PrefixState:
        """The state of a prefix before this claim."""
        state = self._prefixes.get(prefix)
        if state is None:
            state = self._prefixes[prefix] = prefixes.read(self._db, prefix)
            prefixes.note_use(self._db, prefix, state, now_ms=self._now_ms)
        return state

    def start(self, lot: str) -> None:
        """A message of `lot` has started."""
        host, prefix, _, _ = lots.parse(lot)
        self._running[lot] = self._running.get(lot, 0) + 1
        self._hosts.start(host)
        if prefix is not None and self.prefix(prefix).down_since_ms is not None:
            self._probes[prefix] = self._probes.get(prefix, 0) + 1

    def park(self, lot: str) -> None:
        """A message waits in `lot`."""
        self.parked_lots.add(lot)

    def close(self) -> None:
        """Store when the next probes may start."""
        for prefix in self._probes:
            is_first = not self.parked_lots & {prefix, lots.alone_lot(prefix)}
            prefixes.note_probes(self._db, prefix, self.prefix(prefix), is_first=is_first, now_ms=self._now_ms)
