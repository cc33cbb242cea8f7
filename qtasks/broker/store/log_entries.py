"""What every verb writes besides its own rows: log entries and dead letters."""

from __future__ import annotations

from typing import Any

import apsw

from qtasks.broker.core.rules import TRANSITIONS, Stage, Trigger
from qtasks.broker.ports import Failure
from qtasks.broker.store import rows
from qtasks.protocol.messages import Response, State


def fetch(db: apsw.Connection, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All rows of a query."""
    return db.execute(sql, values).fetchall()


def move(db: apsw.Connection, seq: int, stage: Stage, trigger: Trigger) -> Stage:
    """Take a message that is not finished from one stage to another that leaves no log entry."""
    to = TRANSITIONS[stage, trigger].to
    db.execute("UPDATE messages SET stage = ? WHERE seq = ?", (to.value, seq))
    return to


def note(
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
    """Append a log entry."""
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


def bury(
    db: apsw.Connection, seq: int, account: int, now_ms: int, error: str, outcome: Response | Failure | None
) -> str:
    """Make a dead letter; its id, ``<failed_ms>-<n>``."""
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
