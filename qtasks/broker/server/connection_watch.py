"""Looks at all connections of a server a few times a second: which of them is too slow, and what they hold together.

A connection keeps counters and no timers, so that an ordinary request costs nothing here. Each look compares the
counters with those of the look before: a limit is late by one look at most.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
from dataclasses import dataclass
from typing import Final, Protocol

from qtasks.broker.server.parse_turns import ParseTurns
from qtasks.clock import Clock, SystemClock

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits on time and memory of the connections of one server. Times are seconds, sizes are bytes."""

    head_s: float = 10.0
    """From the start of the connection, or the first byte of a later request, to the end of the header."""
    body_idle_s: float = 30.0
    """Longest pause in a body while the application reads it."""
    body_s: float = 30.0
    """Time for any body, in addition to what its size allows at `body_rate`."""
    body_rate: int = 500
    """Bytes a second that a body brings at least. A slow telephone line brings more; Apache has the same default."""
    discard_s: float = 30.0
    """How long the rest of a body is read and discarded after the response was sent: most clients read the response
    only when they have sent the whole body."""
    write_idle_s: float = 30.0
    """Longest time in which a client takes nothing of a response that waits for it."""
    write_s: float = 30.0
    """Time for any response, in addition to what its size allows at `write_rate`."""
    write_rate: int = 500
    """Bytes a second that a client takes at least while a response waits for it."""
    goodbye_s: float = 2.0
    """How long a refused client may continue to send: closed at once, its system could drop the error unread."""
    stop_s: float = 0.1
    """Time for the rest of a request whose first part had arrived when the server began to stop."""
    pressed_s: float = 5.0
    """As `body_idle_s` and `write_idle_s`, while the connections hold more than `held`; largest first. If that is not
    enough, those follow that have taken less than 64 KiB a second for so long."""
    stopping_s: float = 1.0
    """As `write_idle_s`, while the server stops."""
    held: int = 128 * MIB
    """Bytes that all connections may hold together: bodies that are not read yet and responses that are not taken yet.
    Beyond it each new request is answered 503."""
    connections: int | None = None
    """Connections at the same time; None: half of the file descriptors that this process may open, at most 4096."""
    look_s: float = 0.5
    """Time between two looks."""


API_LIMITS: Final = ConnectionLimits(body_rate=8 * 1024, write_rate=8 * 1024)
"""Limits of the broker's API, whose clients are servers and whose bodies are small: 1 MiB has 158 s."""


class Phase(enum.Enum):
    """What a connection waits for."""

    HEAD = "the header of a request, which a new connection sends at once"
    BODY = "the body of a request"
    DISCARD = "the rest of a body whose response was sent"
    RESPONSE = "the application, or the client to take the response"
    IDLE = "another request"
    GOODBYE = "the client of a refused request to close"


_OVERDUE_S: Final = 1.0
"""Age of a request that is not complete from which it makes room for a new connection before idle ones do."""
_CANDIDATES: Final = 32
"""Connections that are looked at to make room for one, so that a flood of new ones costs little."""
_HONEST_RATE: Final = 64 * 1024
"""Bytes a second: a body that arrives faster, or a response that is taken faster, makes no room. To keep others out
would take a fast line."""


class WatchedConnection(Protocol):
    """A connection as `ConnectionWatch` sees it."""

    number: int
    """Number of requests begun so far."""
    body_received: int
    """Bytes of the body of the latest request."""

    def phase(self) -> Phase:
        """What it waits for."""

    def is_paused(self) -> bool:
        """True if the application, not the client, keeps the body from arriving."""

    def held(self) -> int:
        """Bytes in memory: received and not read yet, written and not sent yet."""

    def unsent(self) -> int:
        """Bytes of responses that the client has not taken."""

    def sent(self) -> int:
        """Bytes of responses that the client's system has taken, in all."""

    def time_out(self, reason: str) -> None:
        """Answer 408 with `reason` if a request has begun and has no response yet; close."""

    def abort(self) -> None:
        """Close at once and drop what was not sent."""


@dataclass(slots=True)
class _Seen:
    """What the looks so far have seen of one connection. Times are those of the clock."""

    phase: Phase
    number: int
    since_s: float
    body_received: int
    body_moved_s: float
    unsent_since_s: float | None = None
    """When the response began to wait for the client; None if nothing waits."""
    sent: int = 0
    sent_before: int = 0
    """Bytes sent when the response began to wait."""
    write_moved_s: float = 0.0

    def hardly_reads(self, sent: int, now: float, after_s: float) -> bool:
        """True if a response has waited for `after_s`, and the client has taken little of it: `sent` bytes by now."""
        if self.unsent_since_s is None:
            return False
        waited_s = now - self.unsent_since_s
        return waited_s >= after_s and sent - self.sent_before < _HONEST_RATE * waited_s


class ConnectionWatch:
    """The connections of one server, their limits, and their turns at the parser."""

    def __init__(self, limits: ConnectionLimits | None = None, clock: Clock | None = None) -> None:
        self.limits = limits or ConnectionLimits()
        self.turns = ParseTurns()
        self.is_stopping = False
        """True once the server has begun to stop."""
        self._most = self.limits.connections or _most_connections()
        self._clock = clock or SystemClock()
        self._connections: dict[WatchedConnection, _Seen] = {}
        self._held = 0
        self._timer: asyncio.TimerHandle | None = None
        self._looked_s = self._clock.monotonic()

    @property
    def is_full(self) -> bool:
        """True if the connections hold more than they may together."""
        return self._held > self.limits.held

    def admit(self, connection: WatchedConnection, loop: asyncio.AbstractEventLoop) -> bool:
        """Watch a new connection. If there are too many, the least useful one makes room; False if all are useful."""
        now = self._clock.monotonic()
        if len(self._connections) >= self._most:
            if (least_useful := self._least_useful(now)) is None:
                return False
            self.forget(least_useful)
            least_useful.abort()
        self._connections[connection] = _Seen(Phase.HEAD, 0, now, 0, now)
        if self._timer is None:
            self._looked_s = now
            self._timer = loop.call_later(self.limits.look_s, self._look_again, loop)
        return True

    def forget(self, connection: WatchedConnection) -> None:
        """The connection has ended."""
        self._connections.pop(connection, None)
        self.turns.discard(connection)

    def note_held(self, size: int) -> None:
        """Count `size` more bytes until the next look, which counts everything anew."""
        self._held += size

    def look(self) -> None:
        """Close the connections that are too slow, and count what the others hold."""
        now = self._clock.monotonic()
        span, self._looked_s = now - self._looked_s, now
        for connection, seen in list(self._connections.items()):
            self._look_at_request(connection, seen, now, span)
            self._look_at_response(connection, seen, now)
        self._held = sum(connection.held() for connection in self._connections)
        if self.is_full:
            self._make_room(now)

    def _least_useful(self, now: float) -> WatchedConnection | None:
        """Which connection makes room for a new one: it sends or reads nothing or hardly anything, or it is idle.

        It is one of the `_CANDIDATES` that have waited longest. None if all of these are served, and send and read
        quickly; they then count as the youngest.
        """
        idle: WatchedConnection | None = None
        slow: WatchedConnection | None = None
        for connection, seen in list(itertools.islice(self._connections.items(), _CANDIDATES)):
            phase = connection.phase()
            age_s = now - seen.since_s if (phase, connection.number) == (seen.phase, seen.number) else 0.0
            is_quick = phase is Phase.BODY and connection.body_received > _HONEST_RATE * max(age_s, _OVERDUE_S)
            if seen.hardly_reads(connection.sent(), now, _OVERDUE_S):
                return connection
            if seen.hardly_reads(connection.sent(), now, 0.0):
                slow = slow or connection
            elif phase is Phase.IDLE:
                idle = idle or connection
            elif phase is Phase.RESPONSE or is_quick or (phase is Phase.BODY and connection.is_paused()):
                self._connections[connection] = self._connections.pop(connection)
            elif age_s >= _OVERDUE_S:
                return connection
            else:
                slow = slow or connection
        return idle or slow

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self.look()
        self._timer = loop.call_later(self.limits.look_s, self._look_again, loop) if self._connections else None

    def _look_at_request(self, connection: WatchedConnection, seen: _Seen, now: float, span: float) -> None:
        phase, number, received = connection.phase(), connection.number, connection.body_received
        if (phase, number) != (seen.phase, seen.number):
            seen.phase, seen.number, seen.since_s = phase, number, now
            seen.body_received, seen.body_moved_s = received, now
            return
        limits, spent = self.limits, now - seen.since_s
        if phase is Phase.BODY:
            if connection.is_paused():
                seen.since_s += span
                seen.body_moved_s += span
            elif received != seen.body_received:
                seen.body_received, seen.body_moved_s = received, now
            if now - seen.body_moved_s > limits.body_idle_s:
                connection.time_out(f"no data for {limits.body_idle_s:g} s while reading the body")
            elif now - seen.since_s > limits.body_s + received / limits.body_rate:
                connection.time_out(f"the body came too slowly: {received} bytes in {spent:.0f} s")
        elif phase is Phase.HEAD and spent > limits.head_s:
            connection.time_out(f"no complete header within {limits.head_s:g} s")
        elif phase is Phase.DISCARD and spent > limits.discard_s:
            connection.time_out("")
        elif phase is Phase.GOODBYE and spent > limits.goodbye_s:
            connection.abort()

    def _look_at_response(self, connection: WatchedConnection, seen: _Seen, now: float) -> None:
        if not connection.unsent():
            seen.unsent_since_s = None
            return
        sent = connection.sent()
        if seen.unsent_since_s is None:
            seen.unsent_since_s = seen.write_moved_s = now
            seen.sent = seen.sent_before = sent
            return
        if sent != seen.sent:
            seen.sent, seen.write_moved_s = sent, now
        limits = self.limits
        idle_s = limits.stopping_s if self.is_stopping else limits.write_idle_s
        allowed_s = limits.write_s + (sent - seen.sent_before) / limits.write_rate
        if now - seen.write_moved_s > idle_s or now - seen.unsent_since_s > allowed_s:
            connection.abort()

    def _make_room(self, now: float) -> None:
        """Close those that have not moved for a while, then those that hardly read, until the others may stay.

        The largest come first.
        """
        largest_first = sorted(self._connections, key=lambda connection: -connection.held())
        for is_slow in (self._stands_still, self._hardly_reads):
            for connection in largest_first:
                if self.is_full and connection in self._connections and is_slow(connection, now):
                    self._held -= connection.held()
                    self.forget(connection)
                    connection.abort()

    def _stands_still(self, connection: WatchedConnection, now: float) -> bool:
        seen = self._connections[connection]
        moved_s = seen.body_moved_s if seen.unsent_since_s is None else seen.write_moved_s
        return now - moved_s > self.limits.pressed_s and not connection.is_paused()

    def _hardly_reads(self, connection: WatchedConnection, now: float) -> bool:
        return self._connections[connection].hardly_reads(connection.sent(), now, self.limits.pressed_s)


def _most_connections() -> int:
    """Half of the file descriptors of this process; the other half is for deliveries and files."""
    try:
        import resource
    except ImportError:  # Windows
        return 512
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if soft == resource.RLIM_INFINITY else max(16, min(4096, soft // 2))
