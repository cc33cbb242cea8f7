"""Claims due messages that may start, each with a new claim token."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, cast

import apsw

from qtasks.broker.core.rules import TRANSITIONS, Stage, Trigger
from qtasks.broker.core.values import Claim, ClaimBatch, Rooms
from qtasks.broker.store.verbs import admission, rows
from qtasks.broker.store.verbs.end_callbacks import report_end_of
from qtasks.broker.store.verbs.log_entries import add_dead_letter, append_log, change_stage
from qtasks.broker.store.verbs.rows import MessageRow, fetch
from qtasks.protocol.messages import State

SCAN_LIMIT: Final = 512
"""Messages that one claim reads at most. It moves those that may not start out of the way of later claims."""
CORRUPT: Final = "corrupt: the stored message no longer matches its checksum; it was not sent"


class _Candidate(NamedTuple):
    """A message that may be claimed: a row of `SELECT`. The fields are the names of the columns."""

    seq: int
    stage: int
    host: str
    claim_token: int
    checksum: int
    slot: int
    place: int | None
    flow_key: str | None
    due_ms: int
    body: bytes
    message: MessageRow

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> _Candidate:
        """The candidate in a row of `SELECT`."""
        return cls._make((*row[:_OWN], MessageRow._make(row[_OWN:])))


_OWN: Final = len(_Candidate._fields) - 1
"""Columns of a candidate apart from its `MessageRow`."""
SELECT: Final = (
    f"SELECT {', '.join(_Candidate._fields[:_OWN])}, {rows.MESSAGE_COLUMNS} FROM messages m JOIN bodies b USING (seq)"
)
_DUE: Final = f"{SELECT} WHERE m.stage = {Stage.DUE} AND m.due_ms <= ? ORDER BY m.due_ms, m.seq LIMIT ?"
"""Reads the index ``messages_claimable`` from its left end."""
_PARKED_FOR_HOST: Final = f"{SELECT} WHERE m.stage = {Stage.PARKED} AND m.host = ? ORDER BY m.due_ms, m.seq LIMIT ?"
_BY_SEQ: Final = f"{SELECT} WHERE m.seq = ?"
_READY_KEYS: Final = "SELECT ready_ms, account, key FROM flow_keys WHERE ready_ms <= ? ORDER BY ready_ms LIMIT ?"
# One index lookup for each host that has parked messages, however many messages those are.
_PARKED_HOSTS: Final = f"""
    WITH RECURSIVE parked (host) AS (
        SELECT min(host) FROM messages WHERE stage = {Stage.PARKED}
        UNION ALL
        SELECT (SELECT min(host) FROM messages WHERE stage = {Stage.PARKED} AND host > parked.host) FROM parked
        WHERE parked.host IS NOT NULL
    )
    SELECT host FROM parked WHERE host IS NOT NULL
"""
_NEXT_DUE: Final = (
    "SELECT min(due_ms) FROM ("
    f"SELECT min(due_ms) AS due_ms FROM messages WHERE stage = {Stage.DUE} AND due_ms > ?"
    " UNION ALL SELECT min(ready_ms) FROM flow_keys WHERE ready_ms > ?)"
)


def claim(db: apsw.Connection, *, now_ms: int, limit: int, rooms: Rooms) -> ClaimBatch:
    """Claim up to `limit` messages that may start; no two callers get the same one.

    Parked messages of hosts with room come first, then due messages by due time and order of acceptance.
    A host gets at most as many claims as `rooms` has for it. Its other due messages are parked, so that later claims
    do not scan past them.
    """
    claims = _Claims(db, now_ms, limit, rooms)
    claims.take_parked()
    claims.take_due()
    return ClaimBatch(
        claims=tuple(claims.claims),
        next_due_ms=cast("int | None", db.execute(_NEXT_DUE, (now_ms, now_ms)).get),
        has_more=claims.has_more,
        parked_hosts=frozenset(_parked_hosts(db)),
    )


def _parked_hosts(db: apsw.Connection) -> list[str]:
    return [host for (host,) in fetch(db, _PARKED_HOSTS)]


class _Claims:
    """One call of `claim`: the claims so far, and the room that is left."""

    def __init__(self, db: apsw.Connection, now_ms: int, limit: int, rooms: Rooms) -> None:
        self._db = db
        self._now_ms = now_ms
        self._limit = limit
        self._default_room = rooms.default
        self._room = dict(rooms.hosts)
        self.claims: list[Claim] = []
        self.has_more = False
        """Something that is due now was not claimed."""

    def _is_full(self) -> bool:
        return len(self.claims) >= self._limit

    def take_parked(self) -> None:
        """Claim parked messages of hosts with room, one per host in turn: no backlog of one host blocks another."""
        by_host = [
            self._candidates(_PARKED_FOR_HOST, host, min(room, self._limit))
            for host in _parked_hosts(self._db)
            if (room := self._room_for(host)) > 0
        ]
        for candidate in itertools.chain.from_iterable(itertools.zip_longest(*by_host)):
            if candidate is None:
                continue
            if self._is_full():
                self.has_more = True
                return
            self._consider(candidate)

    def take_due(self) -> None:
        """Claim due messages and the first messages of flow-control keys that are ready, by time."""
        if self._is_full():
            self.has_more = True
            return
        scan = min(SCAN_LIMIT, 2 * (self._limit - len(self.claims)))
        due = self._candidates(_DUE, self._now_ms, scan)
        keys = fetch(self._db, _READY_KEYS, (self._now_ms, scan))
        self.has_more = self.has_more or scan in (len(due), len(keys))
        for count, candidate in enumerate(self._by_time(due, keys) if keys else due):
            if count >= SCAN_LIMIT:
                self.has_more = True
                return
            if self._is_full() and self._room_for(candidate.host) > 0:
                self.has_more = True
            else:  # a message whose host has no room is parked even if the claim is full: so later scans skip it
                self._consider(candidate)

    def _by_time(self, due: list[_Candidate], keys: list[tuple[Any, ...]]) -> Iterator[_Candidate]:
        """Due messages and first messages of keys, earliest first. A key appears again while it admits a start."""
        order = itertools.count()
        heap: list[tuple[int, int, _Candidate | None, tuple[int, str]]] = [
            *((ready_ms, next(order), None, (account, key)) for ready_ms, account, key in keys),
            *((candidate.due_ms, next(order), candidate, (0, "")) for candidate in due),
        ]
        heapq.heapify(heap)
        while heap:
            _, _, candidate, (account, key) = heapq.heappop(heap)
            if candidate is not None:
                yield candidate
            elif self._is_full():
                self.has_more = True
            elif (ready_ms := admission.refresh_key(self._db, account, key, self._now_ms)) is not None and (
                ready_ms <= self._now_ms
            ):
                yield from self._candidates(_BY_SEQ, admission.first_held(self._db, account, key))
                heapq.heappush(heap, (self._now_ms, next(order), None, (account, key)))

    def _candidates(self, select: str, *values: object) -> list[_Candidate]:
        return [_Candidate.of(row) for row in fetch(self._db, select, values)]

    def _room_for(self, host: str) -> int:
        return self._room.get(host, self._default_room)

    def _consider(self, candidate: _Candidate) -> None:
        """Claim a message, or move it to where it waits."""
        if self._room_for(candidate.host) <= 0:
            change_stage(self._db, candidate.seq, Stage(candidate.stage), Trigger.PARK)
        elif self._is_admitted(candidate):
            self._claim(candidate)

    def _is_admitted(self, candidate: _Candidate) -> bool:
        """True if its queue and its flow-control key admit it; otherwise it has joined their line."""
        account, queue, key = candidate.message.account, candidate.message.queue, candidate.flow_key
        if queue is not None and not candidate.slot:  # its delay is over
            admission.ensure_queue(self._db, account, queue, self._now_ms)  # it may have been deleted meanwhile
            admission.join_line(self._db, candidate.seq, Stage(candidate.stage), Trigger.QUEUE, candidate.place)
            if admission.fill_slots(self._db, account, queue):
                self.has_more = True
            return False
        if key is None:
            return True
        held = candidate.stage == Stage.HELD
        if (held or admission.first_held(self._db, account, key) is None) and (
            admission.check_key(self._db, account, key, self._now_ms).allowed
        ):
            return True
        if not held:
            admission.join_line(self._db, candidate.seq, Stage(candidate.stage), Trigger.HOLD, candidate.place)
        ready_ms = admission.refresh_key(self._db, account, key, self._now_ms)
        self.has_more = self.has_more or (ready_ms is not None and ready_ms <= self._now_ms)
        return False

    def _claim(self, candidate: _Candidate) -> None:
        seq, stage, row = candidate.seq, Stage(candidate.stage), candidate.message
        account = row.account
        if candidate.checksum != rows.checksum(row, candidate.body):
            self._fail_corrupt(seq, account, stage)
            return
        message = rows.unpack_message(row, candidate.body)
        token = candidate.claim_token + 1
        self._db.execute(
            "UPDATE messages SET stage = ?, claim_token = ? WHERE seq = ?",
            (TRANSITIONS[stage, Trigger.CLAIM].to.value, token, seq),
        )
        if candidate.flow_key is not None:
            admission.count_start(self._db, account, candidate.flow_key, self._now_ms)
        append_log(self._db, seq, account, self._now_ms, State.ACTIVE)
        self._room[candidate.host] = self._room_for(candidate.host) - 1
        self.claims.append(Claim(seq, token, candidate.host, message))

    def _fail_corrupt(self, seq: int, account: int, stage: Stage) -> None:
        """Make a message that does not match its checksum a dead letter."""
        transition = TRANSITIONS[stage, Trigger.CORRUPT]
        parent = self._db.execute(
            "UPDATE messages SET stage = ?, finished_ms = ? WHERE seq = ? RETURNING parent",
            (transition.to.value, self._now_ms, seq),
        ).get
        for state in transition.log:
            append_log(self._db, seq, account, self._now_ms, state, error=CORRUPT)
        letter_id = add_dead_letter(self._db, seq, account, self._now_ms, CORRUPT, None)
        report_end_of(self._db, seq, State.FAILED, error=CORRUPT, dead_letter_id=letter_id, now_ms=self._now_ms)
        admission.release_slot(self._db, seq)
        if parent is not None:
            admission.callback_ended(self._db, parent)
        self.has_more = True
