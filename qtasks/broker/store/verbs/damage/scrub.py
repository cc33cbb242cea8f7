"""Looks at all messages in small pieces: finds damage in those that no claim would ever look at."""

from __future__ import annotations

from typing import Final, NamedTuple

import apsw

from qtasks.broker.store.verbs import stored
from qtasks.broker.store.verbs.rows import fetch
from qtasks.broker.store.verbs.stored import Fault, StoredMessage

ROWS: Final = 200
"""Messages of one piece at most."""
BYTES: Final = 1024 * 1024
"""A piece ends with the message whose body makes it this large, in bytes."""

# In the order of the table, not of an index: what is damaged may be missing from every index that a claim reads.
_SIZES: Final = (
    "SELECT m.seq, coalesce(length(s.body), length(b.body), 0), m.finished_ms IS NOT NULL FROM messages m NOT INDEXED"
    " LEFT JOIN stored_bodies b USING (seq) LEFT JOIN shared_bodies s ON s.first = b.shared"
    " WHERE m.seq > ? ORDER BY m.seq LIMIT ?"
)


class Finding(NamedTuple):
    """A damaged message."""

    seq: int
    message_id: str
    account: int
    fault: Fault
    has_ended: bool
    """It waits for nothing any more: only its place in the lists is damaged."""


class Piece(NamedTuple):
    """Some messages that were looked at."""

    looked_at: int
    last: int | None
    """`seq` of the last one; None if no more follow: the walk is over."""
    findings: tuple[Finding, ...]


def look_at(db: apsw.Connection, *, after: int, rows: int = ROWS, size: int = BYTES, all_bodies: bool = False) -> Piece:
    """Look at the next messages in order of acceptance, from the first with a `seq` above `after`.

    Changes nothing, and raises no error for a damaged row. Messages that were set aside are left out. The
    bodies of messages that have ended are looked at only with `all_bodies`: nothing is sent of them.
    """
    sizes = fetch(db, _SIZES, (after, rows))
    findings: list[Finding] = []
    read = 0
    for looked_at, (seq, body_size, has_ended) in enumerate(sizes, 1):
        is_whole = all_bodies or not has_ended
        message = stored.one(db, seq) if is_whole else stored.without_body(db, seq)
        fault = None if message is None else _fault(message, is_whole=is_whole)
        if message is not None and fault is not None:
            findings.append(Finding(seq, str(message.message.id), message.message.account, fault, bool(has_ended)))
        read += body_size if is_whole else 0
        if read >= size:
            return Piece(looked_at, seq, tuple(findings))
    return Piece(len(sizes), sizes[-1][0] if len(sizes) == rows else None, tuple(findings))


def _fault(message: StoredMessage, *, is_whole: bool) -> Fault | None:
    return message.fault() if is_whole and not message.is_set_aside() else message.state_fault()
