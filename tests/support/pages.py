"""Databases with damaged pages."""

from __future__ import annotations

from pathlib import Path

import apsw

from qtasks.broker.store.sqlite import SqliteStore
from tests.support.broker import START_MS, VirtualClock, publication

PAGE = 4096


async def stored(path: Path, count: int) -> Path:
    """A database at rest with `count` waiting messages; every body fills most of a page."""
    store, _ = await SqliteStore.open(str(path), VirtualClock())
    await store.accept([publication(n, body=bytes([n % 251]) * 3000) for n in range(count)], now_ms=START_MS)
    await store.close()
    return path


def pages_of(path: Path, table: str) -> list[int]:
    """The numbers of the pages of a table or index, counted from 1."""
    db = apsw.Connection(str(path))
    numbers = [page for (page,) in db.execute("SELECT pageno FROM dbstat WHERE name = ? ORDER BY pageno", (table,))]
    db.close()
    return numbers


def damage_page(path: Path, page: int) -> None:
    """Fill the page with bytes that mean nothing to SQLite."""
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(b"\xa5" * PAGE)
