"""Claims due messages that may start, each with a new claim token."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, cast

import apsw

from qtasks.broker.core import lots, message_rows
from qtasks.broker.core.interruptions import (
    NOTED_EVERY_MS,
    UNTROUBLED,
    WITH_DISPATCHER,
    Situation,
    max_open_claims,
)
from qtasks.broker.core.parked_lots import ParkedLots
from qtasks.broker.core.rules import STARTABLE, TRANSITIONS, Stage, Transition, Trigger
from qtasks.broker.core.values import Claim, ClaimBatch, Rooms
from qtasks.broker.store.verbs import admission, stored, sums
from qtasks.broker.store.verbs.damage import quarantine
from qtasks.broker.store.verbs.end_callbacks import report_end_of
from qtasks.broker.store.verbs.log_entries import add_dead_letter, append_each, append_log, change_stage
from qtasks.broker.store.verbs.parking import parked
from qtasks.broker.store.verbs.parking.lot_rooms import LotRooms
from qtasks.broker.store.verbs.rows import fetch, write_each
from qtasks.broker.store.verbs.stored import Fault, StoredMessage
from qtasks.protocol.messages import State

SCAN_LIMIT: Final = 512
"""Messages that one claim reads at most. It moves those that may not start out of the way of later claims."""
READ_BYTES: Final = 2 * 1024 * 1024
"""Bytes of bodies after which one claim reads no further message: it keeps the event loop busy."""
CRASH_LOOP: Final = (
    "crash_loop: the broker ended {} times in a row during an attempt of this message, the last time"
    " with no other such message in flight; it is not sent any more"
)

_LOTS_OF_DUE: Final = (
    "SELECT DISTINCT lot FROM ("
    f"SELECT lot FROM messages WHERE stage = {Stage.DUE} AND due_ms <= ? ORDER BY due_ms, seq LIMIT ?)"
)
_DUE: Final = f"WHERE m.stage = {Stage.DUE} AND m.due_ms <= ? ORDER BY m.due_ms, m.seq LIMIT ?"
"""Reads the index ``messages_claimable`` from its left end."""
_PARKED_IN_LOT: Final = f"WHERE m.stage = {Stage.PARKED} AND m.lot = ? ORDER BY m.due_ms, m.seq LIMIT ?"
_BY_SEQ: Final = "WHERE m.seq = ?"
_CHANGES: Final = sums.changes(
    stage=str(Stage.ACTIVE.value),
    claim_token="claim_token + 1",  # noqa: S106
    open_claims="open_claims + 1",
    quiet="?1",
)
_CLAIM: Final = f"UPDATE messages SET {_CHANGES} WHERE seq = ?2"
_FAIL_UNSENT: Final = (
    f"UPDATE messages SET {sums.changes(stage='?1', finished_ms='?2')} WHERE seq = ?3 RETURNING parent"
)
_READY_KEYS: Final = "SELECT ready_ms, account, key FROM flow_keys WHERE ready_ms <= ? ORDER BY ready_ms LIMIT ?"
_NEXT_DUE: Final = (
    "SELECT min(due_ms) FROM ("
    f"SELECT min(due_ms) AS due_ms FROM messages WHERE stage = {Stage.DUE} AND due_ms > ?"
    " UNION ALL SELECT min(ready_ms) FROM flow_keys WHERE ready_ms > ?"
    " UNION ALL SELECT min(probe_ms) FROM prefixes WHERE down_since_ms IS NOT NULL AND probe_ms > ?)"
)


def claim(db: apsw.Connection, *, now_ms: int, limit: int, rooms: Rooms) -> ClaimBatch:
    """Claim up to `limit` messages that may start; no two callers get the same one.

    Parked messages of lots with room come first, then due messages by due time and order of acceptance. A lot without
    room gets no more: its due messages are parked, so that later claims do not scan past them.
    """
    lots_of_parked = parked.of(db)
    parked.read_more(db, lots_of_parked)
    lot_rooms = LotRooms(db, rooms, parked=lots_of_parked, now_ms=now_ms)
    claims = _Claims(db, now_ms, limit, lot_rooms)
    claims.take_parked(lots_of_parked)
    claims.take_due()
    claims.close()
    lot_rooms.close()
    has_more = claims.has_more or lots_of_parked.read_until is not None
    return ClaimBatch(
        claims=tuple(claims.claims),
        next_due_ms=cast("int | None", db.execute(_NEXT_DUE, (now_ms, now_ms, now_ms)).get),
        has_more=has_more,
        waits_for_room=has_more or claims.left_due or len(lots_of_parked) > 0,
    )


class _Claims:
    """One call of `claim`: the claims so far, and the room that is left."""

    def __init__(self, db: apsw.Connection, now_ms: int, limit: int, rooms: LotRooms) -> None:
        self._db = db
        self._now_ms = now_ms
        self._limit = limit
        self._rooms = rooms
        self._read_bytes = 0
        self.claims: list[Claim] = []
        self.has_more = False
        """Something that is due now was not claimed."""
        self.left_due = False
        """Due messages stay where they are until their lot has room."""
        self._damaged: list[StoredMessage] = []
        """Messages that were set aside."""
        self._written = 0
        """How many of the claims are in the database."""

    def close(self) -> None:
        """Write the claims, and release what the damaged messages occupied."""
        self._write()
        if self._damaged:
            quarantine.release(self._db, self._damaged, now_ms=self._now_ms)

    def _write(self) -> None:
        """Write the claims that are not in the database yet: before statements that read or log what this changes."""
        if fresh := self.claims[self._written :]:
            write_each(self._db, _CLAIM, [(claim.quiet, claim.seq) for claim in fresh])
            logged = ((claim.seq, claim.row.account, State.ACTIVE, None) for claim in fresh if not claim.quiet)
            append_each(self._db, logged, self._now_ms)
            self._written = len(self.claims)

    def _is_full(self) -> bool:
        return len(self.claims) >= self._limit

    def _has_read_enough(self) -> bool:
        return self._read_bytes >= READ_BYTES

    def take_parked(self, parked_lots: ParkedLots) -> None:
        """Claim parked messages of lots with room, in turns: no backlog of one lot blocks another."""
        line = deque(self._rooms.line(self._limit - len(self.claims)))
        turn = max(1, self._limit // max(1, len(line)))
        while line and not self._is_full():
            lot = line.popleft()
            count = min(turn, self._rooms.of(lot), self._limit - len(self.claims))
            if count <= 0:
                continue
            candidates = self._candidates(_PARKED_IN_LOT, lot, count)
            for candidate in candidates:
                self._consider(candidate)
            self._write()
            if len(candidates) == count:
                line.append(lot)
            elif not parked.has_parked(self._db, lot):
                parked_lots.discard(lot)
        self.has_more = self.has_more or bool(line) or self._rooms.passes_over()

    def take_due(self) -> None:
        """Claim due messages and the first messages of flow-control keys that are ready, by time."""
        if self._is_full():
            self.has_more = True
            return
        scan = min(SCAN_LIMIT, self._limit - len(self.claims) + 1)
        self.left_due = self._is_about_to_have_room(scan)
        due = [] if self.left_due else self._candidates(_DUE, self._now_ms, scan)
        keys = fetch(self._db, _READY_KEYS, (self._now_ms, scan))
        self.has_more = self.has_more or scan in (len(due), len(keys))
        for count, candidate in enumerate(self._by_time(due, keys) if keys else due):
            if count >= SCAN_LIMIT:
                self.has_more = True
                return
            if self._is_full() and self._rooms.of(candidate.lot) > 0:
                self.has_more = True
            else:  # a message whose lot has no room is parked even if the claim is full: so later scans skip it
                self._consider(candidate)

    def _is_about_to_have_room(self, scan: int) -> bool:
        """True if all lots of the next `scan` due messages are: to park these would cost more than to wait."""
        answering = self._rooms.answering
        return bool(answering) and all(
            lot in answering for (lot,) in fetch(self._db, _LOTS_OF_DUE, (self._now_ms, scan))
        )

    def _by_time(self, due: list[StoredMessage], keys: list[tuple[Any, ...]]) -> Iterator[StoredMessage]:
        """Due messages and first messages of keys, earliest first. A key appears again while it admits a start."""
        order = itertools.count()
        heap: list[tuple[int, int, StoredMessage | None, tuple[int, str]]] = [
            *((ready_ms, next(order), None, (account, key)) for ready_ms, account, key in keys),
            *((candidate.due_ms, next(order), candidate, (0, "")) for candidate in due),
        ]
        heapq.heapify(heap)
        while heap:
            _, _, candidate, (account, key) = heapq.heappop(heap)
            if candidate is not None:
                yield candidate
            elif self._is_full() or self._has_read_enough():
                self.has_more = True
            elif (ready_ms := admission.refresh_key(self._db, account, key, self._now_ms)) is not None and (
                ready_ms <= self._now_ms
            ):
                yield from self._candidates(_BY_SEQ, admission.first_held(self._db, account, key))
                heapq.heappush(heap, (self._now_ms, next(order), None, (account, key)))

    def _candidates(self, condition: str, *values: object) -> list[StoredMessage]:
        """The messages that meet a condition, as far as this claim may read their bodies.

        Those whose state is damaged are left out: they are set aside.
        """
        if self._has_read_enough():
            self.has_more = True
            return []
        candidates = stored.several(self._db, condition, *values, size=READ_BYTES - self._read_bytes)
        self._read_bytes += sum(len(candidate.body or b"") for candidate in candidates)
        self.has_more = self.has_more or self._has_read_enough()
        if all(candidate.has_sound_state for candidate in candidates):
            return candidates
        return [candidate for candidate in candidates if candidate.has_sound_state or not self._set_aside(candidate)]

    def _set_aside(self, candidate: StoredMessage, fault: Fault | None = None) -> bool:
        """Make a damaged message a dead letter; False if it is sound."""
        self._write()
        if not quarantine.set_aside(self._db, candidate, self._now_ms, fault):
            return False
        self._damaged.append(candidate)
        self.has_more = True
        return True

    def _consider(self, candidate: StoredMessage) -> None:
        """Claim a message, or move it to where it waits, or set it aside."""
        if candidate.stage not in STARTABLE:
            raise apsw.CorruptError("an index of table messages does not match the table")
        if self._rooms.of(candidate.lot) <= 0:
            self._park(candidate)
        elif (fault := candidate.fault()) is not None:
            self._set_aside(candidate, fault)
        elif self._is_admitted(candidate):
            self._claim(candidate)
        elif candidate.stage == Stage.PARKED:
            self.has_more = True  # it has left the lot, which may still have room for the next one

    def _park(self, candidate: StoredMessage) -> None:
        try:
            change_stage(self._db, candidate.seq, Stage(candidate.stage), Trigger.PARK)
        except apsw.ConstraintError:  # a value that no constraint allows: its content is damaged
            if not self._set_aside(candidate):
                raise
        else:
            self._rooms.park(candidate.lot)

    def _is_admitted(self, candidate: StoredMessage) -> bool:
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

    def _claim(self, candidate: StoredMessage) -> None:
        seq, stage, row = candidate.seq, Stage(candidate.stage), candidate.message
        account = row.account
        if candidate.open_claims >= max_open_claims(row.max_retries) and lots.parse(candidate.lot).is_crashed:
            error = CRASH_LOOP.format(candidate.open_claims)
            self._fail_unsent(seq, account, TRANSITIONS[stage, Trigger.CRASH_LOOP], error)
            return
        if not message_rows.is_readable(row):  # its checksum is right, but this release cannot read it
            self._set_aside(candidate, Fault.CONTENT)
            return
        if candidate.checksum < sums.FIRST_OF_VERSION_2:
            self._db.execute(sums.RENEW, (seq,))
        token = candidate.claim_token + 1
        quiet = candidate.noted_ms is not None and 0 <= self._now_ms - candidate.noted_ms < NOTED_EVERY_MS
        self._rooms.start(candidate.lot)
        prefix = lots.prefix_of(candidate.lot, row.url, may_wait=row.interrupted_for_ms is not None)
        self.claims.append(
            Claim(
                seq,
                token,
                candidate.lot,
                row,
                candidate.body,
                candidate.flow_key,
                candidate.parent,
                prefix,
                self._situation(candidate, prefix),
                quiet,
            )
        )
        if candidate.flow_key is not None:  # the next message of the key is admitted by what is stored of this one
            self._write()
            admission.count_start(self._db, account, candidate.flow_key, self._now_ms)

    def _situation(self, candidate: StoredMessage, prefix: str | None) -> Situation:
        since_ms = candidate.interrupted_since_ms
        if prefix is None:
            return UNTROUBLED if since_ms is None else Situation(since_ms=since_ms)
        state = self._rooms.prefix(prefix)
        if since_ms is None and state.down_since_ms is None:
            return WITH_DISPATCHER if state.dispatcher else UNTROUBLED
        if since_ms is None and state.down_since_ms is not None:
            since_ms = max(candidate.due_ms, state.down_since_ms)
        return Situation(
            since_ms=since_ms,
            cuts=candidate.cuts,
            is_alone=lots.parse(candidate.lot).is_alone,
            is_probe=state.down_since_ms is not None,
            has_dispatcher=bool(state.dispatcher),
        )

    def _fail_unsent(self, seq: int, account: int, transition: Transition, error: str) -> None:
        """Make a message a dead letter that must not be sent."""
        self._write()
        parent = self._db.execute(_FAIL_UNSENT, (transition.to.value, self._now_ms, seq)).get
        for state in transition.log:
            append_log(self._db, seq, account, self._now_ms, state, error=error)
        letter_id = add_dead_letter(self._db, seq, account, self._now_ms, error, None)
        report_end_of(self._db, seq, State.FAILED, error=error, dead_letter_id=letter_id, now_ms=self._now_ms)
        admission.release_slot(self._db, seq)
        if parent is not None:
            admission.callback_ended(self._db, parent)
        self.has_more = True
