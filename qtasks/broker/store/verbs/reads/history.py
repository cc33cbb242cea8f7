"""The log of one message, its callbacks, and the schedule run that it belongs to."""

from __future__ import annotations

from typing import Final, cast

import apsw

from qtasks.broker.core.interruptions import NOT_COUNTED, STOPPED
from qtasks.broker.core.past_attempts import HistoryEntry
from qtasks.broker.ports import Timing
from qtasks.broker.store.verbs.rows import fetch, read_state, response
from qtasks.protocol.messages import State

MOST: Final = 1000
"""Log entries of a message that are read: the latest. 999 retries have three times as many."""
_ENTRIES: Final = (
    f"SELECT n, time_ms, state, error, next_ms, {', '.join(Timing._fields)},"
    " response_status, response_head, response_body FROM log WHERE seq = ? ORDER BY n DESC LIMIT ?"
)
_FAILED_BEFORE: Final = (
    f"SELECT count(*) FROM log WHERE seq = ? AND n < ? AND state = '{State.ERROR}'"
    f" AND error NOT LIKE '{NOT_COUNTED}%' AND error NOT LIKE '{STOPPED}%'"
)
_CHILDREN: Final = "SELECT seq FROM messages WHERE parent = ? ORDER BY seq LIMIT ?"
"""Uses the index ``messages_by_parent``."""
_TICK: Final = "SELECT tick_ms FROM ticks WHERE account = ? AND schedule = ? AND stored_ms = ? AND outcome = 'FIRED'"


def entries(db: apsw.Connection, seq: int) -> list[HistoryEntry]:
    """The latest `MOST` log entries of a message, oldest first."""
    rows = fetch(db, _ENTRIES, (seq, MOST))
    return [
        HistoryEntry(n, time_ms, read_state(state), error, next_ms, response(status, head, body), Timing(*timing))
        for n, time_ms, state, error, next_ms, *timing, status, head, body in reversed(rows)
    ]


def failed_before(db: apsw.Connection, seq: int, n: int) -> int:
    """How many failed attempts of a message the log has before entry `n`."""
    return cast("int", db.execute(_FAILED_BEFORE, (seq, n)).get)


def callbacks(db: apsw.Connection, seq: int, limit: int) -> list[int]:
    """The callbacks of a message, each a message: their `seq`, oldest first."""
    return [child for (child,) in fetch(db, _CHILDREN, (seq, limit))]


def parent_of(db: apsw.Connection, seq: int) -> int | None:
    """`seq` of the message whose callback this is, if that is still stored."""
    query = "SELECT p.seq FROM messages m JOIN messages p ON p.seq = m.parent WHERE m.seq = ?"
    return cast("int | None", db.execute(query, (seq,)).get)


def tick_of(db: apsw.Connection, account: int, schedule_id: str, created_ms: int) -> int | None:
    """The tick at which a schedule published the message that it created at `created_ms`, while that is stored."""
    return cast("int | None", db.execute(_TICK, (account, schedule_id, created_ms)).get)
