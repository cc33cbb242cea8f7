"""Rows that many verbs write: a message's stage, its log entries, and its dead letter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import apsw

from qtasks.broker.core import message_rows
from qtasks.broker.core.rules import TRANSITIONS, Stage, Trigger
from qtasks.broker.ports import Failure, Timing
from qtasks.broker.store.verbs import sums
from qtasks.broker.store.verbs.rows import write_each
from qtasks.protocol.messages import Response, State

KEPT_WHOLE: Final = 1024
"""An answer in the log of at most this size, body and headers in bytes, is never cut."""
CUT_TO: Final = 256
"""Bytes of its body that stay of an answer that is cut."""
_SIZE: Final = "length(response_body) + length(response_head)"
_ANSWERS: Final = "FROM log WHERE seq = ? AND response_status IS NOT NULL ORDER BY n"
"""Uses the index ``log_by_message``."""


CHANGE_STAGE: Final = f"UPDATE messages SET {sums.changes(stage='?1')} WHERE seq = ?2"
_APPEND: Final = "INSERT INTO log (seq, account, time_ms, state, error, next_ms) VALUES (?, ?, ?, ?, ?, ?)"
_TIMING: Final = ", ".join(Timing._fields)
"""The columns have the names of the fields."""
_APPEND_DELIVERED: Final = (
    f"INSERT INTO log (seq, account, time_ms, state, {_TIMING}) VALUES (?, ?, ?, '{State.DELIVERED}', ?, ?, ?, ?)"
)
_APPEND_END: Final = (
    f"INSERT INTO log (seq, account, time_ms, state, error, {_TIMING}, response_status, response_head, response_body)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def change_stage(db: apsw.Connection, seq: int, stage: Stage, trigger: Trigger) -> None:
    """Apply a transition that writes no log entry and does not finish the message."""
    db.execute(CHANGE_STAGE, (TRANSITIONS[stage, trigger].to.value, seq))


def append_log(
    db: apsw.Connection,
    seq: int,
    account: int,
    now_ms: int,
    state: State,
    *,
    error: str | None = None,
    next_ms: int | None = None,
) -> None:
    """Append a log entry to the history of message `seq`."""
    db.execute(_APPEND, (seq, account, now_ms, state.value, error, next_ms))


def append_end(
    db: apsw.Connection,
    seq: int,
    account: int,
    now_ms: int,
    state: State,
    *,
    error: str | None,
    timing: Timing,
    response: Response | None,
) -> None:
    """Append the log entry that ends an attempt.

    Of the answers to its attempts the first and the last stay whole; those between are cut.
    """
    answer: tuple[int | None, str | None, bytes | None] = (None, None, None)
    if response is not None:
        last = db.execute(f"SELECT n, {_SIZE} {_ANSWERS} DESC LIMIT 1", (seq,)).get
        if last and last[1] > KEPT_WHOLE and last[0] != db.execute(f"SELECT n {_ANSWERS} LIMIT 1", (seq,)).get:
            cut_answer(db, last[0])
        answer = (response.status, message_rows.pack_headers(response.headers), response.body)
    db.execute(_APPEND_END, (seq, account, now_ms, state.value, error, *timing, *answer))


def append_delivered(db: apsw.Connection, ends: Iterable[tuple[int, int, Timing]], now_ms: int) -> None:
    """Append the log entries of attempts that delivered: `seq`, account, and how long each part took."""
    write_each(db, _APPEND_DELIVERED, [(seq, account, now_ms, *timing) for seq, account, timing in ends])


def append_each(db: apsw.Connection, entries: Iterable[tuple[int, int, State, int | None]], now_ms: int) -> None:
    """Append log entries without errors and responses: `seq`, account, state, and when the next attempt is due."""
    write_each(
        db,
        _APPEND,
        [(seq, account, now_ms, state.value, None, next_ms) for seq, account, state, next_ms in entries],
    )


def cut_answer(db: apsw.Connection, n: int) -> None:
    """Cut the answer in log entry `n`, longer than `KEPT_WHOLE`, to its status and the beginning of its body."""
    size, beginning = db.execute(f"SELECT {_SIZE}, substr(response_body, 1, ?) FROM log WHERE n = ?", (CUT_TO, n)).get
    db.execute(
        "UPDATE log SET response_body = ?, response_head = '[]' WHERE n = ?",
        (_cut(beginning, size), n),
    )


def shortened(response: Response) -> Response:
    """`response` as `cut_answer` leaves it in the log; the same if it is not longer than `KEPT_WHOLE`."""
    size = len(response.body) + len(message_rows.pack_headers(response.headers))
    if size <= KEPT_WHOLE:
        return response
    return replace(response, headers=(), body=_cut(response.body, size))


def _cut(body: bytes, size: int) -> bytes:
    return body[:CUT_TO] + f"... (cut: this is the beginning of an answer of {size} bytes)".encode()


def add_dead_letter(
    db: apsw.Connection, seq: int, account: int, now_ms: int, error: str, outcome: Response | Failure | None
) -> str:
    """Make message `seq` a dead letter; return the dead letter's id, ``<failed_ms>-<n>``."""
    response = outcome if isinstance(outcome, Response) else None
    n = db.execute(
        "SELECT coalesce(max(n) + 1, 0) FROM dead_letters WHERE account = ? AND failed_ms = ?", (account, now_ms)
    ).get
    db.execute(
        "INSERT INTO dead_letters (failed_ms, n, account, seq, error, response_status, response_head, response_body)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            now_ms,
            n,
            account,
            seq,
            error,
            0 if response is None else response.status,
            None if response is None else message_rows.pack_headers(response.headers),
            None if response is None else response.body,
        ),
    )
    return f"{now_ms}-{n}"
