"""How many attempts each host may have in flight, and how many more it may have now."""

from __future__ import annotations

from collections import Counter

from qtasks.broker.core import lots
from qtasks.broker.core.values import Rooms
from qtasks.broker.settings import DeliveryLimits


class HostLimits:
    """The attempts in flight, by host and by lot, and the room for more."""

    def __init__(self, limits: DeliveryLimits) -> None:
        self._limits = limits
        self._in_flight: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        """Attempts in flight, by lot."""

    @property
    def in_flight(self) -> int:
        """Attempts in flight to all hosts together."""
        return self._in_flight.total()

    @property
    def room(self) -> int:
        """How many more attempts there may be now, to all hosts together."""
        return self._limits.in_flight - self.in_flight

    def rooms(self) -> Rooms:
        """How many more attempts each host may have now."""
        hosts = {host: self._limits.per_host - count for host, count in self._in_flight.items()}
        return Rooms(self._limits.per_host, hosts, dict(self._running))

    def start(self, lot: str) -> None:
        """Count an attempt of a message of `lot`."""
        self._in_flight[lots.parse(lot).host] += 1
        self._running[lot] += 1

    def end(self, lot: str) -> None:
        """An attempt of a message of `lot` has an outcome."""
        for counter, key in ((self._in_flight, lots.parse(lot).host), (self._running, lot)):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]
