"""Reads rows, damaged ones too, and makes log entries and dead letters of them. Shared by every SQL store."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import apsw

from qtasks.broker.core.message_rows import MessageRow, shown_headers, shown_message
from qtasks.protocol.messages import DeadLetter, LogEntry, Message, Response, State

DAMAGED: Final = "corrupt: what is stored of this message no longer matches its checksum"
"""The error that a list shows for a damaged message that no dead letter names."""


def fetch(db: apsw.Connection, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All rows of a query. Text that is damaged so much that it is no UTF-8 has replacement characters there."""
    try:
        return db.execute(sql, values).fetchall()
    except UnicodeDecodeError:
        return _fetch_damaged(db, sql, values)


def first(db: apsw.Connection, sql: str, values: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
    """The first row of a query, as `fetch` returns it; None without one."""
    try:
        return db.execute(sql, values).fetchone()
    except UnicodeDecodeError:
        return next(iter(_fetch_damaged(db, sql, values)), None)


def change(db: apsw.Connection, sql: str, *values: object) -> bool:
    """Change a message that is not the subject of the transaction; False, and nothing written, if it is damaged.

    A row with a value that no constraint allows cannot be changed. It is left for the walk over all messages.
    """
    try:
        db.execute(sql, values)
    except apsw.ConstraintError:
        return False
    return True


def write_each(db: apsw.Connection, sql: str, values: Sequence[tuple[Any, ...]]) -> None:
    """Run a statement that returns no rows once for each of `values`."""
    if len(values) == 1:
        db.execute(sql, values[0])  # quicker for one
    elif values:
        db.executemany(sql, values)


def _fetch_damaged(db: apsw.Connection, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    from apsw import ext  # imported here: it takes 5 MB, and most stores have no damage

    names = [f"c{number}" for number in range(len(ext.query_info(db, sql).description))]
    columns = (f"typeof({name}) = 'text', iif(typeof({name}) = 'text', CAST({name} AS BLOB), {name})" for name in names)
    damaged = db.execute(f"WITH found ({', '.join(names)}) AS ({sql}) SELECT {', '.join(columns)} FROM found", values)
    return [tuple(itertools.starmap(_decoded, zip(row[::2], row[1::2], strict=True))) for row in damaged]


def _decoded(is_text: int, value: Any) -> Any:
    return value.decode(errors="replace") if is_text else value


def response(status: int | None, head: str | None, body: bytes | None) -> Response | None:
    """The response in the three columns of a log entry or dead letter; None if there was no HTTP response.

    Header lines that are damaged are left out.
    """
    if not status:
        return None
    return Response(status=status, headers=shown_headers(head or "[]"), body=body if isinstance(body, bytes) else b"")


def log_entry(row: tuple[Any, ...]) -> LogEntry:
    """A log entry from ``n, time_ms, state, error, next_ms, status, head, body, message body`` and a `MessageRow`."""
    n, time_ms, state, error, next_ms, status, head, body, message_body, *columns = row
    message = shown_message(MessageRow._make(columns), message_body)
    return LogEntry(
        cursor=f"{time_ms}-{n}",
        time_ms=time_ms,
        state=read_state(state),
        message=message,
        error=error or (DAMAGED if message.damaged else None),
        next_delivery_ms=next_ms,
        response=response(status, head, body),
    )


_STATES: Final[Mapping[str, State]] = {state.value: state for state in State}


def read_state(text: str) -> State:
    """The state in a log entry; ERROR for a text that is damaged."""
    return _STATES.get(text, State.ERROR)


def dead_letter(row: tuple[Any, ...], message: Message) -> DeadLetter:
    """A dead letter from ``failed_ms, n, error, status, head, body`` and its message."""
    failed_ms, n, error, status, head, body = row
    if message.damaged and not str(error).startswith("corrupt"):
        error = f"{DAMAGED}; it failed with: {error}"
    return DeadLetter(
        id=f"{failed_ms}-{n}",
        message=message,
        failed_ms=failed_ms,
        error=error,
        response=response(status, head, body),
    )
