"""Queries about messages, the log and the dead letters. They change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final, TypeVar, cast

import apsw

from qtasks.broker.core import message_rows
from qtasks.broker.core.values import DeadLetterCriteria, LogCriteria, MessageCriteria, Page
from qtasks.broker.store.verbs import rows, stored
from qtasks.broker.store.verbs.reads import filters
from qtasks.broker.store.verbs.rows import fetch
from qtasks.protocol.messages import DeadLetter, Headers, LogEntry, Message

Item = TypeVar("Item", LogEntry, DeadLetter)

PAGE_BYTES: Final = 8 * 1024 * 1024
"""Bodies and responses of one page, in bytes: a page ends early before a thousand large messages fill the memory."""

_FROM_LOG: Final = "FROM log l JOIN messages m USING (seq)"
_LOG_ENTRY: Final = (
    "SELECT l.n, l.time_ms, l.state, l.error, l.next_ms, l.response_status, l.response_head, l.response_body, b.body, "
    f"{message_rows.MESSAGE_COLUMNS} {_FROM_LOG} LEFT JOIN bodies b USING (seq) WHERE l.n = ?"
)
_FROM_DEAD_LETTERS: Final = "FROM dead_letters d JOIN messages m USING (seq)"
_DEAD_LETTER: Final = (
    "SELECT failed_ms, n, error, response_status, response_head, response_body FROM dead_letters"
    " WHERE account = ? AND failed_ms = ? AND n = ?"
)


class BadCursorError(ValueError):
    """The text is not a cursor of this store."""


def seq_of(db: apsw.Connection, account: int, message_or_call_id: str) -> int | None:
    """`seq` of the message with that id or, if there is none, of the newest message of the call with that id.

    Of the messages of a call those that are not finished come first. None if nothing has that id.
    """
    seq = db.execute("SELECT seq FROM messages WHERE account = ? AND id = ?", (account, message_or_call_id)).get
    if seq is None:
        seq = db.execute(
            "SELECT seq FROM messages WHERE account = ? AND call_id = ?"
            " ORDER BY finished_ms IS NOT NULL, seq DESC LIMIT 1",
            (account, message_or_call_id),
        ).get
    return cast("int | None", seq)


def newest_seq(db: apsw.Connection) -> int:
    """`seq` of the message that was accepted last; 0 if there is none."""
    return cast("int", db.execute("SELECT coalesce(max(seq), 0) FROM messages").get)


def message(db: apsw.Connection, account: int, message_or_call_id: str) -> Message | None:
    """The message that `seq_of` finds, finished or not, or None."""
    seq = seq_of(db, account, message_or_call_id)
    return None if seq is None else message_at(db, seq)


def message_at(db: apsw.Connection, seq: int) -> Message:
    """The message `seq`, which exists."""
    message = stored.one(db, seq)
    assert message is not None, "the message exists"
    return message.unpacked()


def log(
    db: apsw.Connection,
    account: int,
    criteria: LogCriteria,
    *,
    cursor: str | None,
    count: int,
    size: int = PAGE_BYTES,
) -> Page[LogEntry]:
    """One page of the log, latest first unless `oldest_first`: `count` entries, or fewer if they have `size` bytes."""
    where = _where("l", account, criteria, time="l.time_ms")
    if cursor is not None:
        where.add("l.n > ?" if criteria.oldest_first else "l.n < ?", split_id(cursor)[1])
    where.any_of("l.state", tuple(state.value for state in criteria.states))
    order = "ASC" if criteria.oldest_first else "DESC"
    keys = fetch(db, f"SELECT l.n {_FROM_LOG}{where} ORDER BY l.n {order} LIMIT ?", (*where.values, count + 1))
    entries = (rows.log_entry(row) for key in keys[:count] for row in fetch(db, _LOG_ENTRY, key))
    items = tuple(_fitting(entries, size))
    return Page(items, items[-1].cursor if items and len(items) < len(keys) else None)


def dead_letters(
    db: apsw.Connection,
    account: int,
    criteria: DeadLetterCriteria,
    *,
    cursor: str | None,
    count: int,
    size: int = PAGE_BYTES,
) -> Page[DeadLetter]:
    """One page of the dead letters, oldest first unless `newest_first`: `count`, or fewer if they have `size` bytes."""
    keys = _dead_letter_keys(db, account, criteria, cursor=cursor, count=count)
    letters = (
        rows.dead_letter(row, message_at(db, seq))
        for seq, *key in keys[:count]
        for row in fetch(db, _DEAD_LETTER, tuple(key))
    )
    items = tuple(_fitting(letters, size))
    return Page(items, items[-1].id if items and len(items) < len(keys) else None)


def dead_letter_ids(
    db: apsw.Connection, account: int, criteria: DeadLetterCriteria, *, cursor: str | None, count: int
) -> Page[str]:
    """The ids of `count` dead letters, oldest first unless `newest_first`."""
    keys = _dead_letter_keys(db, account, criteria, cursor=cursor, count=count)
    ids = tuple(f"{failed_ms}-{n}" for _, _, failed_ms, n in keys[:count])
    return Page(ids, ids[-1] if len(keys) > count else None)


def _dead_letter_keys(
    db: apsw.Connection, account: int, criteria: DeadLetterCriteria, *, cursor: str | None, count: int
) -> list[tuple[int, int, int, int]]:
    """`seq`, account and id of `count` dead letters and of the one after them."""
    where = dead_letters_where(account, criteria, cursor=cursor)
    order = "d.failed_ms DESC, d.n DESC" if criteria.newest_first else "d.failed_ms, d.n"
    keys = fetch(
        db,
        f"SELECT d.seq, d.account, d.failed_ms, d.n {_FROM_DEAD_LETTERS}{where} ORDER BY {order} LIMIT ?",
        (*where.values, count + 1),
    )
    return [(seq, owner, failed_ms, n) for seq, owner, failed_ms, n in keys]


def dead_letters_where(account: int, criteria: DeadLetterCriteria, *, cursor: str | None) -> filters.Where:
    """The conditions on ``dead_letters d JOIN messages m``."""
    where = _where("d", account, criteria, time="d.failed_ms")
    if cursor is not None:
        where.add(f"(d.failed_ms, d.n) {'<' if criteria.newest_first else '>'} (?, ?)", *split_id(cursor))
    if criteria.ids:
        keys = [split_id(dead_letter_id) for dead_letter_id in criteria.ids]
        where.add(
            f"(d.failed_ms, d.n) IN (VALUES {', '.join('(?, ?)' for _ in keys)})",
            *(part for key in keys for part in key),
        )
    where.any_of("d.response_status", criteria.statuses)
    return where


def _where(alias: str, account: int, criteria: MessageCriteria, *, time: str) -> filters.Where:
    """The conditions on a table of the history of messages, which the query names `alias`."""
    if not criteria.message_ids:
        return filters.messages(f"{alias}.account = ?", account, criteria, time=time)
    # The history of one message is a few rows among millions, which an index on the message finds. The plus sign keeps
    # SQLite from reading the whole history of the account instead, for the sake of the requested order.
    where = filters.messages(f"+{alias}.account = ?", account, replace(criteria, message_ids=()), time=time)
    marks = ", ".join("?" * len(criteria.message_ids))
    where.add(
        f"{alias}.seq IN (SELECT seq FROM messages WHERE account = ? AND id IN ({marks}))",
        account,
        *criteria.message_ids,
    )
    return where


def _fitting(items: Iterable[Item], size: int) -> Iterator[Item]:
    """The first of `items`, at least one, until they have more than `size` bytes. The others are not read."""
    for item in items:
        yield item
        size -= _size(item.message.body, item.message.headers)
        if item.response is not None:
            size -= _size(item.response.body, item.response.headers)
        if size < 0:
            return


def _size(body: bytes, headers: Headers) -> int:
    return len(body) + sum(len(name) + len(value) for name, value in headers)


def split_id(cursor: str) -> tuple[int, int]:
    """``<ms>-<n>`` as two integers that fit into SQLite's 64 bits. Raises BadCursorError for any other text."""
    first, dash, second = cursor.partition("-")
    parts = (first, second)
    if not dash or not all(part.isascii() and part.isdigit() and len(part) <= 18 for part in parts):
        raise BadCursorError(f"not a cursor of this list: {cursor[:80]!r}; pass back the one that the last page gave")
    return int(first), int(second)
