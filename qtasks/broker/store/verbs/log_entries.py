"""Rows that many verbs write: a message's stage, its log entries, and its dead letter."""

from __future__ import annotations

import apsw

from qtasks.broker.core.rules import TRANSITIONS, Stage, Trigger
from qtasks.broker.ports import Failure
from qtasks.broker.store.verbs import rows
from qtasks.protocol.messages import Response, State


def change_stage(db: apsw.Connection, seq: int, stage: Stage, trigger: Trigger) -> None:
    """Apply a transition that writes no log entry and does not finish the message."""
    db.execute("UPDATE messages SET stage = ? WHERE seq = ?", (TRANSITIONS[stage, trigger].to.value, seq))


def append_log(
    db: apsw.Connection,
    seq: int,
    account: int,
    now_ms: int,
    state: State,
    *,
    error: str | None = None,
    next_ms: int | None = None,
    response: Response | None = None,
) -> None:
    """Append a log entry to the history of message `seq`."""
    if response is None:
        db.execute(
            "INSERT INTO log (seq, account, time_ms, state, error, next_ms) VALUES (?, ?, ?, ?, ?, ?)",
            (seq, account, now_ms, state.value, error, next_ms),
        )
        return
    db.execute(
        "INSERT INTO log (seq, account, time_ms, state, error, next_ms, response_status, response_head, response_body)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            seq,
            account,
            now_ms,
            state.value,
            error,
            next_ms,
            response.status,
            rows.pack_headers(response.headers),
            response.body,
        ),
    )


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
            None if response is None else rows.pack_headers(response.headers),
            None if response is None else response.body,
        ),
    )
    return f"{now_ms}-{n}"
