"""The store of a test: the broker's SQLite store in memory, on a connection that the next test reuses.

SQLite compiles its SQL again for each new connection, which would take most of the time of a test. So connections stay
open, and their tables are emptied.
"""

from __future__ import annotations

import functools

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
    db.execute("PRAGMA defer_foreign_keys = ON")
    for table in _tables():
        db.execute(f'DELETE FROM "{table}"')  # noqa: S608 - the schema's own names


@functools.cache
def _tables() -> tuple[str, ...]:
    db = connect(MEMORY)
    names = tuple(name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"))
    db.close()
    return names
