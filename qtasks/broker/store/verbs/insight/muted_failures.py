"""Failures that an operator has muted: they stay out of the list until a time, and are counted all the same."""

from __future__ import annotations

from typing import Final, NamedTuple

import apsw

from qtasks.broker.store.verbs.rows import fetch

_MUTE: Final = (
    "INSERT INTO muted_failures (account, fingerprint, until_ms, who) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (account, fingerprint) DO UPDATE SET until_ms = excluded.until_ms, who = excluded.who"
)


class Muted(NamedTuple):
    """Until when a failure is muted, in the broker's time, and by whom."""

    until_ms: int
    who: str


def mute(db: apsw.Connection, account: int, fingerprint: str, *, until_ms: int, who: str, now_ms: int) -> bool:
    """Mute a failure until `until_ms`; a time that is not ahead ends that. What has run out is removed."""
    db.execute("DELETE FROM muted_failures WHERE until_ms <= ?", (now_ms,))
    if until_ms > now_ms:
        db.execute(_MUTE, (account, fingerprint, until_ms, who))
        return True
    db.execute("DELETE FROM muted_failures WHERE account = ? AND fingerprint = ?", (account, fingerprint))
    return db.changes() > 0


def muted(db: apsw.Connection, account: int, *, now_ms: int) -> dict[str, Muted]:
    """The failures that are muted now, by fingerprint."""
    query = "SELECT fingerprint, until_ms, who FROM muted_failures WHERE account = ? AND until_ms > ?"
    return {fingerprint: Muted(*row) for fingerprint, *row in fetch(db, query, (account, now_ms))}
