"""The audit: who changed what. A row is written in the transaction of the change itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Concatenate, Final, ParamSpec, TypeVar, cast

import apsw

from qtasks.broker.core.operator_changes import AuditEntry, OperatorChange
from qtasks.broker.core.values import Cancelled, Deleted
from qtasks.broker.store.verbs.rows import fetch

P = ParamSpec("P")
T = TypeVar("T")

KEPT: Final = 100_000
"""Rows of all accounts at most; the oldest go first."""
_COLUMNS: Final = ", ".join(AuditEntry._fields)
_TEXT: Final = "who || char(10) || origin || char(10) || what || char(10) || coalesce(note, '')"


def audited(
    change: OperatorChange, verb: Callable[Concatenate[apsw.Connection, P], T]
) -> Callable[Concatenate[apsw.Connection, P], tuple[T, int | None]]:
    """`verb`, which also writes the row of `change`; it returns the number of the row as well.

    There is no row if the verb has changed nothing.
    """

    @functools.wraps(verb)
    def audited_verb(db: apsw.Connection, /, *args: P.args, **kwargs: P.kwargs) -> tuple[T, int | None]:
        result = verb(db, *args, **kwargs)
        return result, record(db, change, _touched(result))

    return audited_verb


def _touched(result: object) -> int:
    """How many things a verb has changed, by what it returned."""
    match result:
        case bool():
            return int(result)
        case Cancelled(count=count) | Deleted(count=count):
            return count
        case list():
            return len(result)
    return 1


def record(db: apsw.Connection, change: OperatorChange, count: int) -> int | None:
    """Store the row of `change`, or add `count` to the one that it has; the number of the row, None without one."""
    if change.row is not None:
        db.execute("UPDATE audit SET how_many = how_many + ? WHERE n = ?", (count, change.row))
        return change.row
    if not count and not change.is_certain:
        return None
    n = db.execute(
        "INSERT INTO audit (account, time_ms, who, origin, what, subject, is_payload, how_many, note)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING n",
        (
            change.account,
            change.now_ms,
            change.actor.name,
            change.actor.origin,
            change.what,
            change.subject,
            int(change.is_payload),
            count,
            change.note,
        ),
    ).get
    return cast("int", n)


def entries(
    db: apsw.Connection, account: int, *, words: Sequence[str], sees_payloads: bool, before: int | None, count: int
) -> list[AuditEntry]:
    """Up to `count` rows, the newest first, those before row `before`. Each contains all `words`, in any case."""
    subject = "subject" if sees_payloads else "iif(is_payload, '', subject)"
    matching = "".join(f" AND instr(lower({_TEXT} || char(10) || {subject}), ?) > 0" for _ in words)
    rows = fetch(
        db,
        f"SELECT {_COLUMNS} FROM audit WHERE account = ? AND n < ?{matching} ORDER BY n DESC LIMIT ?",
        (account, 2**62 if before is None else before, *(word.lower() for word in words), count),
    )
    return [AuditEntry._make(row) for row in rows]


def prune(db: apsw.Connection, *, before_ms: int, limit: int) -> int:
    """Remove up to `limit` of the oldest rows, those from before `before_ms` and those beyond `KEPT`; how many."""
    removed = db.execute(
        "DELETE FROM audit WHERE n IN (SELECT n FROM audit WHERE n > 0 ORDER BY n LIMIT ?)"
        " AND (time_ms < ? OR n <= (SELECT max(n) FROM audit) - ?) RETURNING 1",
        (limit, before_ms, KEPT),
    )
    return len(removed.fetchall())
