"""How many attempts each host may have in flight, and what it has shown of itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from qtasks.broker.core import lots
from qtasks.broker.core.values import Rooms, Trust
from qtasks.broker.ports import Failure
from qtasks.broker.settings import DeliveryLimits
from qtasks.clock import Clock
from qtasks.protocol.messages import Response

RECENT_S: Final = 60.0 * 60.0
"""For this long after an answer a host is trusted with more slots. A host with long tasks is not dead."""
PATIENCE_S: Final = 1.0
"""A host that answers nothing for this long, with attempts in flight, is no longer lively."""
RESERVE: Final = 1 / 4
"""The part of all slots that is kept for lively hosts, and half of it for first attempts."""
RESERVE_FROM: Final = 16
"""With fewer slots than this there is no reserve: each slot is worth more than a share of it."""
FOR_SILENT: Final = 1 / 4
"""The part of all slots that silent hosts may have together."""
MAX_HOSTS: Final = 1024
"""Hosts without an attempt in flight that are remembered."""

_SHORTEST_PAUSE_MS: Final = 100
_LONGEST_PAUSE_MS: Final = 5_000


@dataclass(slots=True)
class _Host:
    """What is remembered of a host."""

    in_flight: int = 0
    waiting_since_s: float = 0.0
    """Since when, in monotonic seconds, it has answered nothing while it had attempts in flight."""
    answered_s: float | None = None
    """When it answered last."""
    silences: int = 0
    """Attempts without any answer since then."""
    pauses: int = 0
    """Attempts in a row that failed because no name server answered."""
    paused_until_ms: int = 0

    def trust(self, now_s: float) -> Trust:
        if self.silences or self.pauses:
            return Trust.SILENT
        if self.answered_s is None or now_s - self.answered_s > RECENT_S:
            return Trust.UNPROVEN
        is_waiting = self.in_flight > 0 and now_s - self.waiting_since_s > PATIENCE_S
        return Trust.PROVEN if is_waiting else Trust.LIVELY


class HostLimits:
    """The attempts in flight, by host and by lot, and the rooms for more."""

    def __init__(self, limits: DeliveryLimits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._hosts: dict[str, _Host] = {}
        """In the order of their last starts."""
        self._running: Counter[str] = Counter()
        """Attempts in flight, by lot."""

    @property
    def in_flight(self) -> int:
        """Attempts in flight to all hosts together."""
        return self._running.total()

    @property
    def room(self) -> int:
        """How many more attempts there may be now, to all hosts together."""
        return self._limits.in_flight - self.in_flight

    def rooms(self) -> Rooms:
        """How many more attempts each host may have now."""
        now_s, now_ms = self._clock.monotonic(), self._clock.now_ms()
        slots = self._limits.in_flight
        rooms: dict[str, int] = {}
        in_flight: dict[str, int] = {}
        trust: dict[str, Trust] = {}
        silent = 0
        for name, host in self._hosts.items():
            rooms[name] = self._limit(host, now_ms) - host.in_flight
            in_flight[name] = host.in_flight
            shown = trust[name] = host.trust(now_s)
            if shown is Trust.SILENT:
                silent += host.in_flight
        return Rooms(
            self._limits.per_host,
            rooms,
            dict(self._running),
            in_flight=in_flight,
            trust=trust,
            free=self.room,
            # What one host alone may have is not in the reserve.
            reserve=max(0, min(int(slots * RESERVE), slots - self._limits.per_host)) if slots >= RESERVE_FROM else 0,
            free_for_silent=max(1, int(slots * FOR_SILENT)) - silent,
        )

    def next_probe_ms(self) -> int | None:
        """When the next pause ends (Unix ms); None if no host is paused."""
        now_ms = self._clock.now_ms()
        pauses = (host.paused_until_ms for host in self._hosts.values())
        return min((until_ms for until_ms in pauses if until_ms > now_ms), default=None)

    def start(self, lot: str) -> None:
        """Count an attempt of a message of `lot`."""
        name = lots.parse(lot).host
        host = self._hosts[name] = self._hosts.pop(name, _Host())
        if not host.in_flight:
            host.waiting_since_s = self._clock.monotonic()
        host.in_flight += 1
        self._running[lot] += 1
        self._forget_oldest()

    def end(self, lot: str, outcome: Response | Failure | None, *, started_s: float) -> None:
        """An attempt that started at `started_s` (monotonic) has an outcome; None if the broker gave it up."""
        host = self._hosts[lots.parse(lot).host]
        host.in_flight -= 1
        self._running[lot] -= 1
        if not self._running[lot]:
            del self._running[lot]
        match outcome:
            case Response():
                host.answered_s = host.waiting_since_s = self._clock.monotonic()
                host.silences = host.pauses = host.paused_until_ms = 0
            case Failure(code="dns", attempted=False):
                pause_ms = min(_SHORTEST_PAUSE_MS << host.pauses, _LONGEST_PAUSE_MS)
                host.pauses = min(host.pauses + 1, 10)
                host.paused_until_ms = self._clock.now_ms() + pause_ms
            case Failure(code="timeout"):
                host.pauses = host.paused_until_ms = 0
                if host.answered_s is None or host.answered_s <= started_s:
                    host.silences += 1
            case Failure(attempted=True):
                host.silences = host.pauses = host.paused_until_ms = 0

    def _limit(self, host: _Host, now_ms: int) -> int:
        """How many attempts a host may have: one after a pause; with each silence half of them."""
        if host.pauses:
            return int(now_ms >= host.paused_until_ms)
        return max(1, self._limits.per_host >> host.silences)

    def _forget_oldest(self) -> None:
        if len(self._hosts) > MAX_HOSTS:
            idle = next((name for name, host in self._hosts.items() if not host.in_flight), None)
            if idle is not None:
                del self._hosts[idle]
