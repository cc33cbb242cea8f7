"""The store of a test: the broker's SQLite store in memory, on a connection that the next test reuses.

Most of the time of a test would be the SQL that SQLite compiles again for each connection. Therefore connections stay
open, and their tables are emptied.
"""

from __future__ import annotations

import functools

import apsw

from qtasks.broker.store.sqlite import MEMORY, SqliteStore, connect, inside


class ReusedStore(SqliteStore):
    """A store that begins empty. `shelf` keeps the connections between tests; all belong to one event loop."""

    def __init__(self, shelf: list[apsw.Connection]) -> None:
        db = shelf.pop() if shelf else connect(MEMORY)
        inside(db, _empty)
        super().__init__(MEMORY, db, None)
        self._shelf = shelf

    async def close(self) -> None:
        """See `SqliteStore.close`."""
        if not self._closed:
            self._closed = True
            await self._idle.wait()
            self._shelf.append(self._db)


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
