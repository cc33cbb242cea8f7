"""How many messages of each lot may start, during one claim."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import apsw

from qtasks.broker.core import lots
from qtasks.broker.core.host_rooms import HostRooms
from qtasks.broker.core.parked_lots import ParkedLots
from qtasks.broker.core.values import Rooms
from qtasks.broker.store.verbs.parking import prefixes
from qtasks.broker.store.verbs.parking.parked import has_parked
from qtasks.broker.store.verbs.parking.prefixes import PrefixState

LOOKS: Final = 128
"""Parked lots without room that one claim puts to rest at most, and prefixes whose lots it wakes: 1 ms."""


class LotRooms:
    """The room of each lot. It shrinks as messages start."""

    def __init__(self, db: apsw.Connection, rooms: Rooms, *, parked: ParkedLots, now_ms: int) -> None:
        self._db = db
        self._known_hosts = rooms.hosts
        self._hosts = HostRooms(rooms)
        self._now_ms = now_ms
        self._running = dict(rooms.running)
        self._waits_for_answer = rooms.waits_for_answer
        self.answering = rooms.answering
        """See `Rooms.answering`."""
        self._probes: dict[str, int] = {}
        """Messages that have started during this claim at a prefix that is down, by prefix."""
        self._parked = parked
        self._waited: dict[str, bool] = {}
        """Whether messages wait in a lot, or have waited when this claim first asked."""
        self._passes_over = {False: False, True: False}
        """Whether further parked lots may have room: those of hosts that are known, or of strangers."""
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

    def line(self, most: int) -> list[str]:
        """Parked lots with room, in turns: up to `most` of strangers, which come first, and as many of other hosts.

        Strangers are hosts of which nothing is known; they all have the same room. Lots that wait for a probe are put
        to rest.
        """
        wakes_more = self._parked.wake(self._now_ms, LOOKS)
        others = self._with_room(self._known_hosts, most, strangers=False)
        self._passes_over[False] |= wakes_more
        if self._hosts.of_strangers() <= 0:
            return others
        strangers = (host for host in self._parked.hosts() if host not in self._known_hosts)
        return self._with_room(strangers, most, strangers=True) + others

    def passes_over(self) -> bool:
        """True if there may be parked lots with room that were not in the line."""
        return self._passes_over[False] or (self._passes_over[True] and self._hosts.of_strangers() > 0)

    def _with_room(self, hosts: Iterable[str], most: int, *, strangers: bool) -> list[str]:
        """Up to `most` lots with room of `hosts`."""
        chosen: list[str] = []
        resting: list[tuple[str, str, int]] = []
        parked_lots = (
            lot for host in hosts if (parked := self._parked.of(host)) and self._hosts.of(host) > 0 for lot in parked
        )
        for lot in parked_lots:
            if len(chosen) >= most or len(resting) >= LOOKS:
                self._passes_over[strangers] = True
                break
            if self.of(lot) > 0:
                chosen.append(lot)
            elif (wait := self._wait_of(lot)) is not None:
                resting.append((lot, *wait))
        for lot, prefix, until_ms in resting:
            self._parked.rest(lot, prefix, until_ms)
        return chosen

    def _wait_of(self, lot: str) -> tuple[str, int] | None:
        """The prefix of a lot, and until when no probe of it may start; None if the lot waits for something else."""
        prefix = lots.parse(lot).prefix
        if prefix is None or (state := self.prefix(prefix)).down_since_ms is None:
            return None
        probe_ms = state.probe_ms or 0
        return (prefix, probe_ms) if probe_ms > self._now_ms else None

    def _room_at(self, prefix: str, *, is_alone: bool, room: int) -> int:
        """The room of a prefix: for its messages, or for the one that is tried alone."""
        state, alone = self.prefix(prefix), lots.alone_lot(prefix)
        alone_waits, others_wait = self._has_waited(alone), self._has_waited(prefix)  # before any of them starts
        if (is_down := state.down_since_ms is not None) and (
            room := min(room, state.probes_at(self._now_ms) - self._probes.get(prefix, 0))
        ) <= 0:
            return 0
        if alone in self._running:
            return 0
        if self._waits_for_answer(prefix):
            return 0
        # While a prefix is down, others than those that may have ended it are its probes.
        if is_alone:
            return int(prefix not in self._running and not (is_down and others_wait))
        return 0 if alone_waits and not is_down else room

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
        self._parked.take_turn(lot)
        if prefix is not None and self.prefix(prefix).down_since_ms is not None:
            self._probes[prefix] = self._probes.get(prefix, 0) + 1

    def park(self, lot: str) -> None:
        """A message waits in `lot`."""
        self._waited[lot] = True
        self._parked.add(lot)

    def _has_waited(self, lot: str) -> bool:
        waited = self._waited.get(lot)
        if waited is None:
            waited = self._waited[lot] = lot in self._parked and has_parked(self._db, lot)
        return waited

    def close(self) -> None:
        """Store when the next probes may start."""
        for prefix in self._probes:
            is_first = not (self._has_waited(prefix) or self._has_waited(lots.alone_lot(prefix)))
            prefixes.note_probes(self._db, prefix, self.prefix(prefix), is_first=is_first, now_ms=self._now_ms)
