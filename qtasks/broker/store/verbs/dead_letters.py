"""Takes messages out of the dead letters: deletes them, or publishes them again (docs/protocol.md 2.9, 5.9)."""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from qtasks.broker.core.values import DeadLetterCriteria, Deleted, Publication
from qtasks.broker.store.verbs.accept import insert
from qtasks.broker.store.verbs.reads import queries
from qtasks.broker.store.verbs.rows import fetch


def delete_dead_letters(
    db: apsw.Connection, account: int, criteria: DeadLetterCriteria, *, cursor: str | None, limit: int
) -> Deleted:
    """Delete up to `limit` dead letters that match, oldest first."""
    where = queries.dead_letters_where(account, criteria, cursor=cursor)
    keys = fetch(
        db,
        "SELECT d.failed_ms, d.n FROM dead_letters d JOIN messages m USING (seq)"
        f"{where} ORDER BY d.failed_ms, d.n LIMIT ?",
        (*where.values, limit + 1),
    )
    for failed_ms, n in keys[:limit]:
        _remove(db, account, failed_ms, n)
    last = keys[limit - 1] if len(keys) > limit else None
    return Deleted(min(len(keys), limit), None if last is None else f"{last[0]}-{last[1]}")


def retry_dead_letters(
    db: apsw.Connection, account: int, retries: Sequence[tuple[str, Publication]], *, now_ms: int
) -> list[Publication]:
    """Replace dead letters, by id, with new messages; return these. Ids that do not exist any more are skipped."""
    stored = [
        publication
        for dead_letter_id, publication in retries
        if _remove(db, account, *queries.split_id(dead_letter_id))
    ]
    insert(db, stored, now_ms=now_ms)
    return stored


def _remove(db: apsw.Connection, account: int, failed_ms: int, n: int) -> bool:
    row = db.execute(
        "DELETE FROM dead_letters WHERE account = ? AND failed_ms = ? AND n = ? RETURNING 1", (account, failed_ms, n)
    ).get
    return row is not None
