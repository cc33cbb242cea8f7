"""Removes what is old: finished messages, and keys, queues and prefixes that are not used. Also tests the storage.

Each batch takes a few milliseconds.
"""

from __future__ import annotations

from typing import Final, cast

import apsw

from qtasks.broker.core.rules import Stage
from qtasks.broker.core.values import DAY_MS, Retention
from qtasks.broker.store.verbs import admission, audit
from qtasks.broker.store.verbs.broker_time import retention_cutoff_ms
from qtasks.broker.store.verbs.insight import index
from qtasks.broker.store.verbs.log_entries import KEPT_WHOLE, cut_answer
from qtasks.broker.store.verbs.rows import fetch

BATCH: Final = 100
"""Rows that one transaction removes of each kind at most."""
_FOREVER_MS: Final = 2**62
_REMOVAL_ORDER: Final = (Stage.DELIVERED, Stage.CANCELED, Stage.FAILED)


def prune(db: apsw.Connection, retention: Retention, *, now_ms: int) -> int:
    """Remove one batch of everything that is old; return how many. 0: nothing is left to remove."""
    unused_since_ms = retention_cutoff_ms(db, now_ms=now_ms, age_ms=max(retention.delivered_ms, DAY_MS))
    return (
        prune_messages(db, retention, now_ms=now_ms)
        + prune_deduplication_keys(db, now_ms=now_ms)
        + prune_flow_keys(db, before_ms=unused_since_ms, now_ms=now_ms)
        + prune_queues(db, before_ms=unused_since_ms, now_ms=now_ms)
        + prune_prefixes(db, before_ms=unused_since_ms, now_ms=now_ms)
        + audit.prune(db, before_ms=_kept_from_ms(db, retention, now_ms=now_ms), limit=BATCH)
    )


def _kept_from_ms(db: apsw.Connection, retention: Retention, *, now_ms: int) -> int:
    """Since when everything is kept: the audit says what was done with it."""
    return retention_cutoff_ms(db, now_ms=now_ms, age_ms=max(retention.delivered_ms, retention.failed_ms))


def prune_messages(db: apsw.Connection, retention: Retention, *, now_ms: int, limit: int = BATCH) -> int:
    """Remove up to `limit` finished messages, too old or (if the database is too large) the oldest; return how many.

    If it is too large with nothing but dead letters and unfinished messages, long answers in the log are cut first.
    """
    seqs: list[int] = []
    for stage in _REMOVAL_ORDER:
        age_ms = retention.failed_ms if stage is Stage.FAILED else retention.delivered_ms
        before_ms = retention_cutoff_ms(db, now_ms=now_ms, age_ms=age_ms)
        seqs += _oldest(db, stage, limit - len(seqs), before_ms=before_ms)
    if not seqs and retention.max_bytes is not None and used_bytes(db) > retention.max_bytes:
        for stage in _REMOVAL_ORDER:
            if stage is Stage.FAILED and (cut := _cut_answers(db, limit)):
                return cut
            if seqs := _oldest(db, stage, limit):
                break
    return _remove(db, seqs)


_REMOVED_FROM: Final = (
    "log",
    "stored_bodies",
    "labels",
    "dead_letters",
    "insight_failure_messages",
    "insight_messages",
    "messages",
)


def _remove(db: apsw.Connection, seqs: list[int]) -> int:
    for seq in seqs:
        for table in _REMOVED_FROM:
            db.execute(f"DELETE FROM {table} WHERE seq = ?", (seq,))
    if seqs:
        index.note_removal(db)
    return len(seqs)


def prune_deduplication_keys(db: apsw.Connection, *, now_ms: int, limit: int = BATCH) -> int:
    """Remove up to `limit` deduplication keys whose window has ended; return how many."""
    removed = db.execute(
        "DELETE FROM deduplication WHERE (account, key) IN"
        " (SELECT account, key FROM deduplication WHERE expires_ms <= ? ORDER BY expires_ms LIMIT ?) RETURNING 1",
        (now_ms, limit),
    )
    return len(removed.fetchall())


def _cut_answers(db: apsw.Connection, limit: int) -> int:
    answers = fetch(
        db,
        f"SELECT n FROM log WHERE length(response_body) + length(response_head) > {KEPT_WHOLE} ORDER BY n LIMIT ?",
        (limit,),
    )
    for (n,) in answers:
        cut_answer(db, n)
    return len(answers)


def prune_flow_keys(db: apsw.Connection, *, before_ms: int, now_ms: int, limit: int = BATCH) -> int:
    """Look at up to `limit` flow-control keys that were not used since `before_ms`; return how many there were.

    Those without unfinished messages, and without a pause or pin of an operator, are removed. The next message of a key
    brings all that a removed one knew. The others count as used now, so that they are not looked at again.
    """
    keys = fetch(
        db,
        "SELECT account, key, window_start_ms, period_s FROM flow_keys WHERE paused = 0 AND pinned_parallelism = 0"
        " AND pinned_rate = 0 AND used_ms < ? ORDER BY used_ms LIMIT ?",
        (before_ms, limit),
    )
    for account, key, start_ms, period_s in keys:
        is_used = admission.window_end(start_ms, period_s, now_ms) > now_ms or _exists(
            db, "FROM messages WHERE account = ? AND flow_key = ? AND finished_ms IS NULL", account, key
        )
        if is_used:
            admission.note_key_use(db, account, key, now_ms)
        else:
            db.execute("DELETE FROM flow_keys WHERE account = ? AND key = ?", (account, key))
    return len(keys)


def prune_queues(db: apsw.Connection, *, before_ms: int, now_ms: int, limit: int = BATCH) -> int:
    """As `prune_flow_keys`, for queues that enqueue has made and that were never changed.

    A message that waits for its time needs no queue: it makes it again when it joins the line.
    """
    queues = fetch(
        db,
        "SELECT account, name FROM queues WHERE by_enqueue = 1 AND used_ms < ? ORDER BY used_ms LIMIT ?",
        (before_ms, limit),
    )
    for account, name in queues:
        line = f"FROM messages WHERE account = ? AND queue = ? AND stage = {Stage.QUEUED} AND slot = 0"
        slots = "FROM messages WHERE account = ? AND queue = ? AND slot = 1"
        if _exists(db, line, account, name) or _exists(db, slots, account, name):
            db.execute("UPDATE queues SET used_ms = ? WHERE account = ? AND name = ?", (now_ms, account, name))
        else:
            db.execute("DELETE FROM queues WHERE account = ? AND name = ?", (account, name))
    return len(queues)


def prune_prefixes(db: apsw.Connection, *, before_ms: int, now_ms: int, limit: int = BATCH) -> int:
    """As `prune_flow_keys`, for URL prefixes at which no message waits."""
    prefixes = fetch(db, "SELECT lot FROM prefixes WHERE used_ms < ? ORDER BY used_ms LIMIT ?", (before_ms, limit))
    for (lot,) in prefixes:
        if _exists(db, f"FROM messages WHERE lot = ? AND stage = {Stage.PARKED}", lot):
            db.execute("UPDATE prefixes SET used_ms = ? WHERE lot = ?", (now_ms, lot))
        else:
            db.execute("DELETE FROM prefixes WHERE lot = ?", (lot,))
    return len(prefixes)


def _exists(db: apsw.Connection, rows: str, *values: object) -> bool:
    return db.execute(f"SELECT 1 {rows} LIMIT 1", values).get is not None


def used_bytes(db: apsw.Connection) -> int:
    """Bytes in use. The file may be larger: SQLite uses freed pages again before the file grows."""
    pages = db.pragma("page_count") - db.pragma("freelist_count")
    return cast("int", pages * db.pragma("page_size"))


def free_bytes(db: apsw.Connection) -> int:
    """Bytes inside the file that are not in use: SQLite uses them before the file grows."""
    return cast("int", db.pragma("freelist_count") * db.pragma("page_size"))


def make_spare(db: apsw.Connection, spare_bytes: int) -> int:
    """On a full disk: remove a batch of the oldest delivered and cancelled messages, even before their time.

    0, and nothing removed, if `spare_bytes` are free inside the file, or if there is no such message.
    """
    if free_bytes(db) >= spare_bytes:
        return 0
    return _remove(db, _oldest(db, Stage.DELIVERED, BATCH) or _oldest(db, Stage.CANCELED, BATCH))


def probe(db: apsw.Connection, *, now_ms: int) -> None:
    """Write the time: storage that accepts this accepts a message."""
    db.execute("INSERT OR REPLACE INTO probes (only_row, time_ms) VALUES (1, ?)", (now_ms,))


def _oldest(db: apsw.Connection, stage: Stage, limit: int, *, before_ms: int = _FOREVER_MS) -> list[int]:
    rows = db.execute(
        # A message that keeps a slot of its queue waits for its callbacks.
        "SELECT seq FROM messages WHERE stage = ? AND finished_ms IS NOT NULL AND finished_ms < ? AND slot = 0"
        " ORDER BY finished_ms LIMIT ?",
        (stage.value, before_ms, limit),
    )
    return [seq for (seq,) in rows]
