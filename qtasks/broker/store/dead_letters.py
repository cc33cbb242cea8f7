"""Dead letters taken out: deleted, or published anew (docs/protocol.md 2.9, 5.9)."""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from qtasks.broker.core.values import DeadLetterCriteria, Deleted, Publication
from qtasks.broker.store import queries
from qtasks.broker.store.accept import insert
from qtasks.broker.store.log_entries import fetch


def delete_dead_letters(
    db: apsw.Connection, account: int, which: DeadLetterCriteria, *, cursor: str | None, limit: int
) -> Deleted:
    """Delete up to `limit` that match, oldest first; those that are gone already are not counted."""
    where = queries.dead_letters_where(account, which, cursor=cursor)
    found = fetch(
        db,
        "SELECT d.failed_ms, d.n FROM dead_letters d JOIN messages m USING (seq)"
        f"{where} ORDER BY d.failed_ms, d.n LIMIT ?",
        (*where.values, limit + 1),
    )
    for failed_ms, n in found[:limit]:
        _remove(db, account, failed_ms, n)
    last = found[limit - 1] if len(found) > limit else None
    return Deleted(min(len(found), limit), None if last is None else f"{last[0]}-{last[1]}")


def retry_dead_letters(
    db: apsw.Connection, account: int, retries: Sequence[tuple[str, Publication]], *, now_ms: int
) -> list[Publication]:
    """Replace dead letters by the messages given for them; what was taken out meanwhile is left alone."""
    taken = [publication for letter_id, publication in retries if _remove(db, account, *queries.split_id(letter_id))]
    insert(db, taken, now_ms=now_ms)
    return taken


def _remove(db: apsw.Connection, account: int, failed_ms: int, n: int) -> bool:
    found = db.execute(
        "DELETE FROM dead_letters WHERE account = ? AND failed_ms = ? AND n = ? RETURNING 1", (account, failed_ms, n)
    ).get
    return found is not None
