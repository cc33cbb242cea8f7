"""The store of a test: the broker's SQLite store in memory, on a connection that the next test reuses.

SQLite compiles its SQL again for each new connection, which would take most of the time of a test. So connections stay
open, and their tables are emptied, without a PRAGMA: that would make SQLite compile all of it again, too.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import apsw

from qtasks.broker.store.connection import MEMORY, connect, run_in_transaction
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.broker.store.verbs import broker_time
from qtasks.clock import Clock


def empty_store(connections: list[apsw.Connection], clock: Clock) -> SqliteStore:
    """An empty store in memory. `connections` are kept for later tests; all of them belong to one event loop."""
    db = connections.pop() if connections else connect(MEMORY)
    run_in_transaction(db, _empty)
    steady = run_in_transaction(db, broker_time.resume, clock)
    return SqliteStore(MEMORY, db, steady, release=lambda: connections.append(db))


def _empty(db: apsw.Connection) -> None:
    """Make the database what a new one is, with the few rows that the schema itself writes."""
    tables = _tables()
    for table in tables:
        db.execute(f'DELETE FROM "{table}"')  # noqa: S608 - the schema's own names
    for table, rows in tables.items():
        for row in rows:
            places = ", ".join("?" * len(row))
            db.execute(f'INSERT INTO "{table}" VALUES ({places})', row)  # noqa: S608 - as above


@functools.cache
def _tables() -> Mapping[str, Sequence[tuple[apsw.SQLiteValue, ...]]]:
    """The tables, those that refer to another one first, each with its rows in a new database."""
    db = connect(MEMORY)
    names = db.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' "
        "ORDER BY EXISTS (SELECT 1 FROM pragma_foreign_key_list(name)) DESC, name"
    ).fetchall()
    tables = {str(name): db.execute(f'SELECT * FROM "{name}"').fetchall() for (name,) in names}  # noqa: S608
    db.close()
    return tables
