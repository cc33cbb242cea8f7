"""How many attempts each host may have in flight, and how many more it may have now."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from qtasks.broker.core.values import Rooms
from qtasks.broker.settings import DeliveryLimits


@dataclass(slots=True)
class _Pause:
    """A host that gets no attempt but probes, one after each pause."""

    until_ms: int
    probing: bool = False
    """The probe of this pause is in flight."""


class HostLimits:
    """The attempts in flight, by host, and the room for more. A host is the key of `Publication.host`."""

    def __init__(self, limits: DeliveryLimits) -> None:
        self._limits = limits
        self._in_flight: Counter[str] = Counter()
        self._pauses: dict[str, _Pause] = {}

    @property
    def in_flight(self) -> int:
        """Attempts in flight to all hosts together."""
        return self._in_flight.total()

    @property
    def room(self) -> int:
        """How many more attempts there may be now, to all hosts together."""
        return self._limits.in_flight - self.in_flight

    def rooms(self, now_ms: int) -> Rooms:
        """How many more attempts each host may have now."""
        hosts = {host: self._limits.per_host - count for host, count in self._in_flight.items()}
        for host, pause in self._pauses.items():
            hosts[host] = 0 if pause.probing or now_ms < pause.until_ms else 1
        return Rooms(self._limits.per_host, hosts)

    def start(self, host: str) -> None:
        """Count an attempt. At a paused host it is the probe."""
        self._in_flight[host] += 1
        if (pause := self._pauses.get(host)) is not None:
            pause.probing = True

    def end(self, host: str) -> None:
        """An attempt has an outcome. After a probe, the caller also calls `pause` or `resume`."""
        self._in_flight[host] -= 1
        if not self._in_flight[host]:
            del self._in_flight[host]

    def pause(self, host: str, until_ms: int) -> None:
        """Give `host` no room until `until_ms` (wall time), then room for one attempt: the probe."""
        self._pauses[host] = _Pause(until_ms)

    def resume(self, host: str) -> None:
        """End the pause of `host`, if there is one."""
        self._pauses.pop(host, None)

    def next_probe_ms(self, now_ms: int) -> int | None:
        """When the next pause ends (wall time, Unix ms); None if none ends later than `now_ms`."""
        return min((pause.until_ms for pause in self._pauses.values() if pause.until_ms > now_ms), default=None)
