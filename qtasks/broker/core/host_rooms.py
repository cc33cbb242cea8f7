"""Fair turns: how many more attempts each host may have, so that no number of dead hosts takes every slot. Pure.

A slot is the right to have one attempt in flight. What a host may have is in proportion to the slots that are free: the
more are in use, the fewer a further attempt finds. A host of which nothing is known gets a small proportion, one that
answers as many as it has use for, up to its limit. A reserve is kept for hosts that answer now, and half of it for the
first attempt at a host that has none in flight: it may be alive.
"""

from __future__ import annotations

import math
from typing import Final

from qtasks.broker.core.values import Rooms, Trust

PER_SPARE_SLOT: Final = 0.125
"""How many attempts a host may have in flight for each free slot outside the reserve."""
PER_SPARE_SLOT_IF_ALONE: Final = 1.0
"""The same while no other host has an attempt in flight: its first tasks may take long."""
PER_SPARE_SLOT_IF_TRUSTED: Final = 4.0
"""The same for a host that has answered within the last hour."""
PER_FREE_SLOT: Final = 0.5
"""How many attempts a lively host may have in flight for each free slot, the reserve included."""

_STRANGER: Final = ""
"""The name of no host."""
_TRUSTED: Final = (Trust.LIVELY, Trust.PROVEN)


class HostRooms:
    """The rooms at the beginning of a claim, less what the claim has started since."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._before: dict[str, tuple[int, int, Trust]] = {}
        """Limit, attempts in flight, and trust of a host, as they were at the beginning."""
        self._started: dict[str, int] = {}
        self._answers: dict[str, int] = {}
        """What `of` has returned since the last start."""
        self._free = rooms.free
        self._free_for_silent = rooms.free_for_silent
        self._in_flight = sum(rooms.in_flight.values())

    def of(self, host: str) -> int:
        """How many more attempts `host` may have now."""
        room = self._answers.get(host)
        if room is None:
            room = self._answers[host] = self._room_of(host)
        return room

    def _room_of(self, host: str) -> int:
        rooms, started = self._rooms, self._started.get(host, 0)
        limit, in_flight, trust = self._before_of(host)
        room = limit - started
        if room <= 0 or self._free <= 0:
            return 0
        in_flight += started
        free = spare = max(0, self._free - rooms.reserve)
        share = math.ceil(spare * self._per_spare_slot(trust, is_alone=in_flight == self._in_flight))
        if trust is Trust.LIVELY:
            free = self._free
            share = max(share, math.ceil(free * PER_FREE_SLOT))
        elif trust is Trust.SILENT:
            free = min(free, self._free_for_silent)
        elif not in_flight:
            free = max(0, self._free - rooms.reserve // 2)
            share = max(share, 1)
        return max(0, min(room, free, share - in_flight))

    def of_strangers(self) -> int:
        """How many attempts each host may have now of which nothing is known."""
        return self.of(_STRANGER)

    def start(self, host: str) -> None:
        """An attempt at `host` starts."""
        self._started[host] = self._started.get(host, 0) + 1
        self._free -= 1
        self._in_flight += 1
        self._free_for_silent -= self._before_of(host)[2] is Trust.SILENT
        self._answers.clear()

    def _before_of(self, host: str) -> tuple[int, int, Trust]:
        before = self._before.get(host)
        if before is None:
            rooms = self._rooms
            before = self._before[host] = (
                rooms.hosts.get(host, rooms.default),
                rooms.in_flight.get(host, 0),
                rooms.trust.get(host, Trust.UNPROVEN),
            )
        return before

    def _per_spare_slot(self, trust: Trust, *, is_alone: bool) -> float:
        if trust in _TRUSTED:
            return PER_SPARE_SLOT_IF_TRUSTED
        return PER_SPARE_SLOT_IF_ALONE if is_alone and trust is not Trust.SILENT else PER_SPARE_SLOT
