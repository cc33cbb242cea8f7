"""Handing out attempts: what is due and may start, each with a fresh token."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, cast

import apsw

from qtasks.broker.core.rules import TRANSITIONS, Stage, Trigger
from qtasks.broker.core.values import Claim, ClaimBatch
from qtasks.broker.store import admission, rows
from qtasks.broker.store.log_entries import bury, fetch, move, note
from qtasks.protocol.messages import State

SCAN_LIMIT: Final = 512
"""Messages a claim looks at before it answers; moving what is blocked out of the way keeps later scans short."""

SELECT: Final = (
    "SELECT m.seq, m.stage, m.host, m.claim_token, m.checksum, m.slot, m.place, m.flow_key, m.due_ms, b.body, "
    f"{rows.columns('m')} FROM messages m JOIN bodies b USING (seq)"
)


class _Candidate(NamedTuple):
    """A row of `SELECT`."""

    seq: int
    stage: Stage
    host: str
    token: int
    checksum: int
    slot: int
    place: int | None
    key: str | None
    due_ms: int
    body: bytes
    columns: tuple[Any, ...]
    """`rows.MESSAGE_COLUMNS`."""

    @property
    def account(self) -> int:
        return cast("int", self.columns[_ACCOUNT])

    @property
    def queue(self) -> str | None:
        return cast("str | None", self.columns[_QUEUE])


_NAMES: Final = [name.strip() for name in rows.MESSAGE_COLUMNS.split(",")]
_ACCOUNT: Final = _NAMES.index("account")
_QUEUE: Final = _NAMES.index("queue")
_OPTIONS: Final = _NAMES.index("options")

CORRUPT: Final = "corrupt: the stored message no longer matches its checksum; it was not sent"


def claim(db: apsw.Connection, *, now_ms: int, limit: int, host_limit: int, in_flight: Mapping[str, int]) -> ClaimBatch:
    """Hand out what may start: parked messages of hosts with room first, then by due time and order of acceptance."""
    turn = _Turn(db, now_ms, limit, host_limit, {host: host_limit - running for host, running in in_flight.items()})
    turn.unpark()
    turn.take_due()
    parked = frozenset(row[0] for row in db.execute(_PARKED_HOSTS))
    return ClaimBatch(tuple(turn.claims), _next_due(db, now_ms), turn.more, parked)


class _Turn:
    """One call of `claim`: what was picked so far, and the room that is left."""

    def __init__(self, db: apsw.Connection, now_ms: int, limit: int, host_limit: int, room: dict[str, int]) -> None:
        self._db = db
        self._now_ms = now_ms
        self._limit = limit
        self._host_limit = host_limit
        self._room = room
        self.claims: list[Claim] = []
        self.more = False
        """Something that is due now was left."""

    def _full(self) -> bool:
        return len(self.claims) >= self._limit

    def unpark(self) -> None:
        """Parked messages of hosts with room, in turns of one a host: no host's backlog shuts out another's."""
        hosts = [row[0] for row in self._db.execute(_PARKED_HOSTS)]
        queues = [
            self._candidates(
                "m.stage = 2 AND m.host = ? ORDER BY m.due_ms, m.seq LIMIT ?", host, min(left, self._limit)
            )
            for host in hosts
            if (left := self._left(host)) > 0
        ]
        for candidate in (one for turn in itertools.zip_longest(*queues) for one in turn if one is not None):
            if self._full():
                self.more = True
                return
            self._offer(candidate)

    def take_due(self) -> None:
        """What is due, and the heads of the flow-control keys that let something start, by time."""
        if self._full():
            self.more = True
            return
        scan = min(SCAN_LIMIT, 2 * (self._limit - len(self.claims)))
        due = self._candidates("m.stage = 1 AND m.due_ms <= ? ORDER BY m.due_ms, m.seq LIMIT ?", self._now_ms, scan)
        keys = fetch(
            self._db,
            "SELECT ready_ms, account, key FROM flow_keys WHERE ready_ms <= ? ORDER BY ready_ms LIMIT ?",
            (self._now_ms, scan),
        )
        self.more = self.more or scan in (len(due), len(keys))
        for looked_at, candidate in enumerate(self._by_time(due, keys) if keys else due):
            if looked_at >= SCAN_LIMIT:
                self.more = True
                return
            if self._full() and self._left(candidate.host) > 0:
                self.more = True
            else:  # one whose host has no room is parked even so, to be out of the way
                self._offer(candidate)

    def _by_time(self, due: list[_Candidate], keys: list[tuple[Any, ...]]) -> Iterator[_Candidate]:
        """Due messages and heads of keys, earliest first; a key comes again as long as it lets something start."""
        order = itertools.count()
        heap: list[tuple[int, int, _Candidate | None, tuple[int, str]]] = [
            *((ready_ms, next(order), None, (account, key)) for ready_ms, account, key in keys),
            *((one.due_ms, next(order), one, (0, "")) for one in due),
        ]
        heapq.heapify(heap)
        while heap:
            _, _, candidate, (account, key) = heapq.heappop(heap)
            if candidate is not None:
                yield candidate
            elif self._full():
                self.more = True
            elif (ready_ms := admission.refresh(self._db, account, key, self._now_ms)) is not None and (
                ready_ms <= self._now_ms
            ):
                yield from self._candidates("m.seq = ?", admission.head(self._db, account, key))
                heapq.heappush(heap, (self._now_ms, next(order), None, (account, key)))

    def _candidates(self, where: str, *values: object) -> list[_Candidate]:
        found = fetch(self._db, f"{SELECT} WHERE {where}", values)
        return [_Candidate._make((row[0], Stage(row[1]), *row[2:10], row[10:])) for row in found]

    def _left(self, host: str) -> int:
        return self._room.get(host, self._host_limit)

    def _offer(self, one: _Candidate) -> None:
        """Claim a message, or move it to where it waits."""
        if self._left(one.host) <= 0:
            move(self._db, one.seq, one.stage, Trigger.PARK)
        elif self._may_start(one) and (lease := self._lease(one)) is not None:
            self._room[one.host] = self._left(one.host) - 1
            self.claims.append(lease)

    def _may_start(self, one: _Candidate) -> bool:
        """Whether queue and flow-control key let it; if not, it has joined their line."""
        if one.queue is not None and not one.slot:  # its delay is over
            admission.ensure_queue(self._db, one.account, one.queue, self._now_ms)  # it may have been deleted meanwhile
            admission.join(self._db, one.seq, one.stage, Trigger.QUEUE, one.place)
            if admission.admit(self._db, one.account, one.queue):
                self.more = True
            return False
        if one.key is None:
            return True
        held = one.stage is Stage.HELD
        if (held or admission.head(self._db, one.account, one.key) is None) and (
            admission.permit(self._db, one.account, one.key, self._now_ms).allowed
        ):
            return True
        if not held:
            admission.join(self._db, one.seq, one.stage, Trigger.HOLD, one.place)
        ready_ms = admission.refresh(self._db, one.account, one.key, self._now_ms)
        self.more = self.more or (ready_ms is not None and ready_ms <= self._now_ms)
        return False

    def _lease(self, one: _Candidate) -> Claim | None:
        message_id, account, url, _, headers, *_ = one.columns
        if one.checksum != rows.checksum(message_id, url, headers, one.columns[_OPTIONS], one.body):
            self._bury_corrupt(one.seq, account, one.stage)
            return None
        message = rows.message(one.columns, one.body)
        self._db.execute(
            "UPDATE messages SET stage = ?, claim_token = ? WHERE seq = ?",
            (TRANSITIONS[one.stage, Trigger.CLAIM].to.value, one.token + 1, one.seq),
        )
        if one.key is not None:
            admission.start(self._db, account, one.key, self._now_ms)
        note(self._db, one.seq, account, self._now_ms, State.ACTIVE)
        return Claim(one.seq, one.token + 1, one.host, message)

    def _bury_corrupt(self, seq: int, account: int, stage: Stage) -> None:
        end = TRANSITIONS[stage, Trigger.CORRUPT]
        parent = self._db.execute(
            "UPDATE messages SET stage = ?, finished_ms = ? WHERE seq = ? RETURNING parent",
            (end.to.value, self._now_ms, seq),
        ).get
        for state in end.log:
            note(self._db, seq, account, self._now_ms, state, error=CORRUPT)
        bury(self._db, seq, account, self._now_ms, CORRUPT, None)
        admission.release(self._db, seq)
        if parent is not None:
            admission.callback_ended(self._db, parent)
        self.more = True


# One seek a host that has parked messages, however many messages that are.
_PARKED_HOSTS: Final = """
    WITH RECURSIVE parked (host) AS (
        SELECT min(host) FROM messages WHERE stage = 2
        UNION ALL
        SELECT (SELECT min(host) FROM messages WHERE stage = 2 AND host > parked.host) FROM parked
        WHERE parked.host IS NOT NULL
    )
    SELECT host FROM parked WHERE host IS NOT NULL
"""


def _next_due(db: apsw.Connection, now_ms: int) -> int | None:
    found = db.execute(
        "SELECT min(due_ms) FROM ("
        "SELECT min(due_ms) AS due_ms FROM messages WHERE stage = 1 AND due_ms > ?"
        " UNION ALL SELECT min(ready_ms) FROM flow_keys WHERE ready_ms > ?)",
        (now_ms, now_ms),
    ).get
    return cast("int | None", found)
