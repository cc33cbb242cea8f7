"""URL groups: endpoints that a publish goes to together (protocol reference 2.8, 5.7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import apsw

from qtasks.broker.store import rows
from qtasks.broker.store.base import Endpoint, UrlGroup
from qtasks.broker.store.journal import fetch
from qtasks.protocol.messages import Headers

_SELECT: Final = "SELECT name, headers, created_ms, updated_ms FROM url_groups"


def upsert_endpoints(
    db: apsw.Connection, account: int, name: str, endpoints: Sequence[Endpoint], *, now_ms: int
) -> None:
    """Add endpoints, or change those known by their name (by their URL where they have none). Makes the group."""
    db.execute(
        "INSERT INTO url_groups (account, name, headers, created_ms, updated_ms) VALUES (?, ?, '[]', ?, ?)"
        " ON CONFLICT (account, name) DO UPDATE SET updated_ms = excluded.updated_ms",
        (account, name, now_ms, now_ms),
    )
    known = _endpoints(db, account, name)
    for new in endpoints:
        place = next((number for number, old in enumerate(known) if _same(old, new)), None)
        if place is None:
            known.append(new)
        else:
            known[place] = new
    _write(db, account, name, known)


def remove_endpoints(
    db: apsw.Connection, account: int, name: str, endpoints: Sequence[Endpoint], *, now_ms: int
) -> bool:
    """Remove endpoints by name or URL; the last one takes the group along. False when there is no such group."""
    changed = db.execute(
        "UPDATE url_groups SET updated_ms = ? WHERE account = ? AND name = ? RETURNING 1", (now_ms, account, name)
    ).get
    if changed is None:
        return False
    left = [
        old
        for old in _endpoints(db, account, name)
        if not any(old.name == gone.name if gone.name is not None else old.url == gone.url for gone in endpoints)
    ]
    if left:
        _write(db, account, name, left)
    else:
        delete_group(db, account, name)
    return True


def set_group_headers(db: apsw.Connection, account: int, name: str, headers: Headers, *, now_ms: int) -> bool:
    """Replace the default headers of every publish to the group; False when there is no such group."""
    found = db.execute(
        "UPDATE url_groups SET headers = ?, updated_ms = ? WHERE account = ? AND name = ? RETURNING 1",
        (rows.pack_headers(headers), now_ms, account, name),
    ).get
    return found is not None


def delete_group(db: apsw.Connection, account: int, name: str) -> None:
    """Delete a group with its endpoints; messages on their way stay."""
    db.execute("DELETE FROM url_groups WHERE account = ? AND name = ?", (account, name))


def group(db: apsw.Connection, account: int, name: str) -> UrlGroup | None:
    """A group with its endpoints, in order."""
    row = db.execute(f"{_SELECT} WHERE account = ? AND name = ?", (account, name)).get
    return None if row is None else _group(db, account, row)


def groups(db: apsw.Connection, account: int) -> list[UrlGroup]:
    """All groups by name."""
    return [_group(db, account, row) for row in fetch(db, f"{_SELECT} WHERE account = ? ORDER BY name", (account,))]


def _same(old: Endpoint, new: Endpoint) -> bool:
    """An endpoint is known by its name, one without by its URL; naming one that had no name changes it."""
    if new.name is not None and old.name is not None:
        return old.name == new.name
    return old.url == new.url


def _endpoints(db: apsw.Connection, account: int, name: str) -> list[Endpoint]:
    found = fetch(
        db, "SELECT url, name FROM endpoints WHERE account = ? AND url_group = ? ORDER BY place", (account, name)
    )
    return [Endpoint(*row) for row in found]


def _write(db: apsw.Connection, account: int, name: str, endpoints: Sequence[Endpoint]) -> None:
    db.execute("DELETE FROM endpoints WHERE account = ? AND url_group = ?", (account, name))
    db.executemany(
        "INSERT INTO endpoints (account, url_group, place, name, url) VALUES (?, ?, ?, ?, ?)",
        [(account, name, place, one.name, one.url) for place, one in enumerate(endpoints)],
    )


def _group(db: apsw.Connection, account: int, row: tuple[Any, ...]) -> UrlGroup:
    name, headers, created_ms, updated_ms = row
    return UrlGroup(name, tuple(_endpoints(db, account, name)), rows.unpack_headers(headers), created_ms, updated_ms)
