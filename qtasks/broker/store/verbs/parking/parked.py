"""The parked lots of a database: those that the process remembers for it, and the rows."""

from __future__ import annotations

from typing import Final
from weakref import WeakKeyDictionary

import apsw

from qtasks.broker.core.parked_lots import ParkedLots
from qtasks.broker.core.rules import Stage

READ_LOTS: Final = 512
"""Lots that one claim reads from the rows at most, after a start or a transaction that was rolled back: 1 ms."""

# One index lookup for each lot that has parked messages, however many messages those are. Damaged text stays in order.
_NEXT: Final = f"SELECT min(lot) FROM messages WHERE stage = {Stage.PARKED} AND lot < x'' AND lot"
_LOTS: Final = f"""
    WITH RECURSIVE parked (lot) AS (
        SELECT ({_NEXT} > CAST(?1 AS TEXT))
        UNION ALL
        SELECT ({_NEXT} > parked.lot) FROM parked WHERE parked.lot IS NOT NULL
    )
    SELECT CAST(lot AS BLOB) FROM parked WHERE lot IS NOT NULL LIMIT ?2
"""
_HAS_PARKED: Final = f"SELECT EXISTS (SELECT 1 FROM messages WHERE stage = {Stage.PARKED} AND lot = ?)"

_remembered: WeakKeyDictionary[apsw.Connection, ParkedLots] = WeakKeyDictionary()


def of(db: apsw.Connection) -> ParkedLots:
    """The parked lots of the database behind `db`, which is its only connection for writes."""
    lots = _remembered.get(db)
    if lots is None:
        lots = _remembered[db] = ParkedLots()
        db.set_rollback_hook(lots.distrust)
    return lots


def read_more(db: apsw.Connection, parked: ParkedLots) -> None:
    """Read further lots from the rows, unless all are known."""
    if parked.read_until is None:
        return
    page = [lot for (lot,) in db.execute(_LOTS, (parked.read_until, READ_LOTS))]
    for lot in page:
        parked.find(lot.decode(errors="replace"))
    parked.read_until = page[-1] if len(page) == READ_LOTS else None


def has_parked(db: apsw.Connection, lot: str) -> bool:
    """True if messages wait in `lot`."""
    return bool(db.execute(_HAS_PARKED, (lot,)).get)
