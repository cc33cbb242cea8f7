"""How many attempts each host may have in flight, and what it has shown of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from qtasks.broker.core import lots
from qtasks.broker.core.slot_offers import SlotOffer, SlotOffers
from qtasks.broker.core.values import Rooms, Trust
from qtasks.broker.ports import Failure
from qtasks.broker.settings import DeliveryLimits
from qtasks.clock import Clock
from qtasks.protocol.bundles import MAX_ITEMS
from qtasks.protocol.messages import Response

T = TypeVar("T")

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
ROUND_TRIP_MS: Final = 20
"""Longest wait for the head of the response to a bundle before further messages leave, when it has no full bundle."""
SOON_MS: Final = 10
"""So long after a bundle has left its response is expected at any moment."""
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
    capacity: int = 0
    """How many attempts its dispatcher can take at once, as far as it states that."""

    def trust(self, now_s: float) -> Trust:
        if self.silences or self.pauses:
            return Trust.SILENT
        if self.answered_s is None or now_s - self.answered_s > RECENT_S:
            return Trust.UNPROVEN
        is_waiting = self.in_flight > 0 and now_s - self.waiting_since_s > PATIENCE_S
        return Trust.PROVEN if is_waiting else Trust.LIVELY


@dataclass(slots=True)
class _Unanswered:
    """Bundles whose responses have not begun."""

    number: int
    is_full: bool
    """The last one had as many messages as a bundle may have."""
    sent_ms: int
    """When the last one left."""

    @property
    def soon_until_ms(self) -> int:
        """Until when the first response is expected at any moment."""
        return self.sent_ms + SOON_MS

    @property
    def until_ms(self) -> int:
        """Until when further messages wait for the responses."""
        return self.sent_ms + ROUND_TRIP_MS


class _Shown(Mapping[str, T]):
    """What `value` says of each host. It is asked only for the hosts that are looked up."""

    def __init__(self, hosts: Mapping[str, _Host], value: Callable[[_Host], T]) -> None:
        self._hosts = hosts
        self._value = value

    def __getitem__(self, name: str) -> T:
        return self._value(self._hosts[name])

    def __contains__(self, name: object) -> bool:
        return name in self._hosts

    def __iter__(self) -> Iterator[str]:
        return iter(self._hosts)

    def __len__(self) -> int:
        return len(self._hosts)


class HostLimits:
    """The attempts in flight, by host and by lot, and the rooms for more."""

    def __init__(self, limits: DeliveryLimits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._hosts: dict[str, _Host] = {}
        """In the order of their last starts."""
        self._paused: dict[str, _Host] = {}
        """Those with a pause."""
        self._running: dict[str, int] = {}
        """Attempts in flight, by lot."""
        self._offers = SlotOffers()
        self._unanswered: dict[str, _Unanswered] = {}
        """Bundles on their way, by lot."""
        self.in_flight = 0
        """Attempts in flight to all hosts together."""

    @property
    def room(self) -> int:
        """How many more attempts there may be now, to all hosts together."""
        return self._limits.in_flight - self.in_flight

    def running(self, lot: str) -> int:
        """Attempts in flight of messages of `lot`."""
        return self._running.get(lot, 0)

    def rooms(self) -> Rooms:
        """How many more attempts each host may have now. Good until the next start or end of an attempt."""
        now_s, now_ms = self._clock.monotonic(), self._clock.now_ms()
        slots = self._limits.in_flight
        names = {lots.parse(lot).host for lot in self._running}
        in_flight = {name: self._hosts[name].in_flight for name in names}
        silent = sum(self._hosts[name].in_flight for name in names if self._hosts[name].trust(now_s) is Trust.SILENT)
        return Rooms(
            self._limits.plain_host,
            _Shown(self._hosts, lambda host: self._limit(host, now_ms) - host.in_flight),
            dict(self._running),
            in_flight=in_flight,
            trust=_Shown(self._hosts, lambda host: host.trust(now_s)),
            free=self.room,
            # What one host alone may have is not in the reserve.
            reserve=max(0, min(int(slots * RESERVE), slots - self._limits.largest_host))
            if slots >= RESERVE_FROM
            else 0,
            free_for_silent=max(1, int(slots * FOR_SILENT)) - silent,
            waits_for_answer=lambda prefix: self._waits_for_answer(prefix, now_s, now_ms),
            answering=[
                lot
                for lot, bundles in self._unanswered.items()
                if now_ms < bundles.soon_until_ms and self._waits_for_answer(lot, now_s, now_ms)
            ],
        )

    def next_probe_ms(self, since_ms: int) -> int | None:
        """When the first pause, or wait for an answer to a bundle, ends after `since_ms` (Unix ms); None if none does.

        `since_ms` is the time before `rooms` was called: what ends during a claim holds back what the claim has parked.
        """
        if not self._paused and not self._unanswered:
            return None
        ends = [host.paused_until_ms for host in self._paused.values()]
        for bundles in self._unanswered.values():
            ends += (bundles.soon_until_ms, bundles.until_ms)
        return min((until_ms for until_ms in ends if until_ms > since_ms), default=None)

    def free_slots(self, lot: str, folder: str) -> int:
        """How many messages of `lot` a bundle to `folder` may have now; 0 if there is to be no bundle."""
        return self._offers.free(lot, folder, in_flight=self.running(lot), now_s=self._clock.monotonic())

    def note_slots(self, lot: str, folder: str, slots: int | None, *, begun: int) -> None:
        """The dispatcher at `folder` says how many messages of `lot` it can begin; None: it takes no bundles.

        `begun` is what `start` returned for the attempt that it has answered.
        """
        self._offers.note_answer(lot, folder, slots, begun=begun, in_flight=self.running(lot))
        if (host := self._hosts.get(lots.parse(lot).host)) is not None:
            host.capacity = self._offers.capacity(lot, self._clock.monotonic()) or 0

    def last_offer(self, prefix: str) -> SlotOffer | None:
        """What the latest answer of the dispatcher at a URL prefix states; None if it has not answered this process."""
        return self._offers.last(prefix)

    def send_bundle(self, lot: str, count: int) -> None:
        """A bundle of `count` messages of `lot` leaves. Until `answer_bundle` further ones leave only in full bundles.

        So what becomes due meanwhile leaves together. Without this, bundles would stay as small as the first answers
        are: each would make room for as many messages as it had.
        """
        earlier = self._unanswered.get(lot)
        number = 1 if earlier is None else earlier.number + 1
        self._unanswered[lot] = _Unanswered(number, count == MAX_ITEMS, self._clock.now_ms())

    def answer_bundle(self, lot: str) -> None:
        """The head of the response to a bundle has arrived, or its exchange has ended."""
        unanswered = self._unanswered[lot]
        unanswered.number -= 1
        if not unanswered.number:
            del self._unanswered[lot]

    def _waits_for_answer(self, prefix: str, now_s: float, now_ms: int) -> bool:
        """True while further messages of a prefix wait for the round trip of a bundle."""
        if (bundles := self._unanswered.get(prefix)) is None or bundles.until_ms <= now_ms:
            return False
        capacity = self._offers.capacity(prefix, now_s)
        return not (bundles.is_full and capacity is not None and capacity - self.running(prefix) >= MAX_ITEMS)

    def refuse_bundles(self, lot: str) -> None:
        """Messages of `lot` go singly for an hour."""
        self._offers.refuse(lot, self._clock.monotonic())

    def start(self, lot: str, count: int = 1) -> int:
        """Count attempts of messages of `lot` that start. Return the number of the last, for `note_slots`."""
        name = lots.parse(lot).host
        host = self._hosts.pop(name) if name in self._hosts else _Host()
        self._hosts[name] = host
        if not host.in_flight:
            host.waiting_since_s = self._clock.monotonic()
        host.in_flight += count
        self.in_flight += count
        self._running[lot] = self._running.get(lot, 0) + count
        self._forget_oldest()
        return self._offers.start(lot, count) if lots.parse(lot).is_plain_prefix else 0

    def end(self, lot: str, outcome: Response | Failure | None, *, started_s: float, count: int = 1) -> None:
        """Attempts that started at `started_s` (monotonic) have an outcome; None if the broker gave them up."""
        name = lots.parse(lot).host
        host = self._hosts[name]
        host.in_flight -= count
        self.in_flight -= count
        self._running[lot] -= count
        if not self._running[lot]:
            del self._running[lot]
        match outcome:
            case Response():
                host.answered_s = host.waiting_since_s = self._clock.monotonic()
                host.silences = 0
                self._end_pause(name, host)
            case Failure(code="dns", attempted=False):
                pause_ms = min(_SHORTEST_PAUSE_MS << host.pauses, _LONGEST_PAUSE_MS)
                host.pauses = min(host.pauses + 1, 10)
                host.paused_until_ms = self._clock.now_ms() + pause_ms
                self._paused[name] = host
            case Failure(code="timeout"):
                self._end_pause(name, host)
                if host.answered_s is None or host.answered_s <= started_s:
                    host.silences += count
            case Failure(attempted=True):
                host.silences = 0
                self._end_pause(name, host)

    def _end_pause(self, name: str, host: _Host) -> None:
        if host.pauses:
            host.pauses = host.paused_until_ms = 0
            del self._paused[name]

    def _limit(self, host: _Host, now_ms: int) -> int:
        """How many attempts a host may have: one after a pause; with each silence half of them."""
        if host.pauses:
            return int(now_ms >= host.paused_until_ms)
        limits = self._limits
        return max(1, max(limits.plain_host, min(host.capacity, limits.largest_host)) >> host.silences)

    def _forget_oldest(self) -> None:
        if len(self._hosts) > MAX_HOSTS:
            idle = next((name for name, host in self._hosts.items() if not host.in_flight), None)
            if idle is not None:
                del self._hosts[idle]
                self._paused.pop(idle, None)
