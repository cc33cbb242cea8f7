"""What the API reads, as plain functions over one SQLite connection; they change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final, TypeVar

import apsw

from qtasks.broker.core.values import DeadLetterCriteria, LogCriteria, MessageCriteria, Page
from qtasks.broker.store import filters, rows
from qtasks.broker.store.log_entries import fetch
from qtasks.protocol.messages import DeadLetter, LogEntry, Message

Shown = TypeVar("Shown", LogEntry, DeadLetter)

PAGE_BYTES: Final = 8 * 1024 * 1024
"""Bodies and responses of one page: a page ends early rather than fill the memory with a thousand large messages."""

_FROM_LOG: Final = "FROM log l JOIN messages m USING (seq)"
_LOG_ENTRY: Final = (
    "SELECT l.n, l.time_ms, l.state, l.error, l.next_ms, l.response_status, l.response_head, l.response_body, b.body, "
    f"{rows.columns('m')} {_FROM_LOG} JOIN bodies b USING (seq) WHERE l.n = ?"
)
_FROM_DEAD_LETTERS: Final = "FROM dead_letters d JOIN messages m USING (seq)"
_DEAD_LETTER: Final = (
    "SELECT d.failed_ms, d.n, d.error, d.response_status, d.response_head, d.response_body, b.body, "
    f"{rows.columns('m')} {_FROM_DEAD_LETTERS} JOIN bodies b USING (seq)"
    " WHERE d.account = ? AND d.failed_ms = ? AND d.n = ?"
)


class BadCursorError(ValueError):
    """A cursor that no list of this store has handed out."""


def message(db: apsw.Connection, account: int, message_id: str) -> Message | None:
    """The message with that id, finished or not."""
    row = db.execute(
        f"SELECT b.body, {rows.columns('m')} FROM messages m JOIN bodies b USING (seq)"
        " WHERE m.account = ? AND m.id = ?",
        (account, message_id),
    ).get
    return None if row is None else rows.message(row[1:], row[0])


def log(db: apsw.Connection, account: int, which: LogCriteria, *, cursor: str | None, count: int) -> Page[LogEntry]:
    """One page of the log, latest first unless `oldest_first`: `count` entries, or fewer where those are large."""
    where = _where("l", account, which, time="l.time_ms")
    if cursor is not None:
        where.add("l.n > ?" if which.oldest_first else "l.n < ?", split_id(cursor)[1])
    where.any_of("l.state", tuple(state.value for state in which.states))
    order = "ASC" if which.oldest_first else "DESC"
    found = fetch(db, f"SELECT l.n {_FROM_LOG}{where} ORDER BY l.n {order} LIMIT ?", (*where.values, count + 1))
    entries = (rows.log_entry(row) for key in found[:count] for row in fetch(db, _LOG_ENTRY, key))
    items = tuple(_fitting(entries))
    return Page(items, items[-1].cursor if items and len(items) < len(found) else None)


def dead_letters(
    db: apsw.Connection, account: int, which: DeadLetterCriteria, *, cursor: str | None, count: int
) -> Page[DeadLetter]:
    """One page of the dead letters, oldest first unless `newest_first`; as large as a page of the log."""
    where = dead_letters_where(account, which, cursor=cursor)
    order = "d.failed_ms DESC, d.n DESC" if which.newest_first else "d.failed_ms, d.n"
    found = fetch(
        db,
        f"SELECT d.account, d.failed_ms, d.n {_FROM_DEAD_LETTERS}{where} ORDER BY {order} LIMIT ?",
        (*where.values, count + 1),
    )
    letters = (rows.dead_letter(row) for key in found[:count] for row in fetch(db, _DEAD_LETTER, key))
    items = tuple(_fitting(letters))
    return Page(items, items[-1].id if items and len(items) < len(found) else None)


def dead_letters_where(account: int, which: DeadLetterCriteria, *, cursor: str | None) -> filters.Where:
    """The conditions on ``dead_letters d JOIN messages m``."""
    where = _where("d", account, which, time="d.failed_ms")
    if cursor is not None:
        where.add(f"(d.failed_ms, d.n) {'<' if which.newest_first else '>'} (?, ?)", *split_id(cursor))
    if which.ids:
        keys = [split_id(one) for one in which.ids]
        where.add(
            f"(d.failed_ms, d.n) IN (VALUES {', '.join('(?, ?)' for _ in keys)})",
            *(part for key in keys for part in key),
        )
    where.any_of("d.response_status", which.statuses)
    return where


def _where(alias: str, account: int, which: MessageCriteria, *, time: str) -> filters.Where:
    """The conditions of `which` on a table of what has happened to messages."""
    if not which.message_ids:
        return filters.messages(f"{alias}.account = ?", account, which, time=time)
    # What has happened to a message is a handful of rows among millions, which its own index finds. The plus keeps
    # SQLite from walking through everything of the account instead, in the order that is asked for.
    where = filters.messages(f"+{alias}.account = ?", account, replace(which, message_ids=()), time=time)
    marks = ", ".join("?" * len(which.message_ids))
    where.add(
        f"{alias}.seq IN (SELECT seq FROM messages WHERE account = ? AND id IN ({marks}))", account, *which.message_ids
    )
    return where


def _fitting(items: Iterable[Shown]) -> Iterator[Shown]:
    """The first of `items` that fill a page, at least one; the rest is not even read."""
    size = 0
    for item in items:
        yield item
        size += len(item.message.body) + (len(item.response.body) if item.response else 0)
        if size > PAGE_BYTES:
            return


def split_id(cursor: str) -> tuple[int, int]:
    """``<ms>-<n>`` as two integers; both fit into SQLite's 64 bits."""
    first, dash, second = cursor.partition("-")
    parts = (first, second)
    if not dash or not all(part.isascii() and part.isdigit() and len(part) <= 18 for part in parts):
        raise BadCursorError(f"not a cursor of this list: {cursor[:80]!r}; pass back the one that the last page gave")
    return int(first), int(second)
