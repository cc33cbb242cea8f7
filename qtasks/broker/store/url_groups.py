"""URL groups: endpoints that a publish goes to together (docs/protocol.md 2.8, 5.7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import apsw

from qtasks.broker.core.values import DeliveryEndpoint, UrlGroupState
from qtasks.broker.store import rows
from qtasks.broker.store.log_entries import fetch
from qtasks.protocol.messages import Headers

_SELECT: Final = "SELECT name, headers, created_ms, updated_ms FROM url_groups"


def upsert_endpoints(
    db: apsw.Connection, account: int, name: str, endpoints: Sequence[DeliveryEndpoint], *, now_ms: int
) -> None:
    """Add endpoints, or change those known by their name (by their URL where they have none). Makes the group."""
    db.execute(
        "INSERT INTO url_groups (account, name, headers, created_ms, updated_ms) VALUES (?, ?, '[]', ?, ?)"
        " ON CONFLICT (account, name) DO UPDATE SET updated_ms = excluded.updated_ms",
        (account, name, now_ms, now_ms),
    )
    _write(db, account, name, _merged(_endpoints(db, account, name), endpoints))


def remove_endpoints(
    db: apsw.Connection, account: int, name: str, endpoints: Sequence[DeliveryEndpoint], *, now_ms: int
) -> bool:
    """Remove endpoints by name or URL; the last one takes the group along. False when there is no such group."""
    changed = db.execute(
        "UPDATE url_groups SET updated_ms = ? WHERE account = ? AND name = ? RETURNING 1", (now_ms, account, name)
    ).get
    if changed is None:
        return False
    names = {gone.name for gone in endpoints if gone.name is not None}
    urls = {gone.url for gone in endpoints if gone.name is None}
    left = [old for old in _endpoints(db, account, name) if old.name not in names and old.url not in urls]
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


def group(db: apsw.Connection, account: int, name: str) -> UrlGroupState | None:
    """A group with its endpoints, in order."""
    row = db.execute(f"{_SELECT} WHERE account = ? AND name = ?", (account, name)).get
    return None if row is None else _group(db, account, row)


def groups(db: apsw.Connection, account: int) -> list[UrlGroupState]:
    """All groups by name."""
    return [_group(db, account, row) for row in fetch(db, f"{_SELECT} WHERE account = ? ORDER BY name", (account,))]


def _merged(known: Sequence[DeliveryEndpoint], new: Sequence[DeliveryEndpoint]) -> list[DeliveryEndpoint]:
    """`known` with each of `new` in the place of the one it changes, or at the end; a group may have ten thousand.

    An endpoint is known by its name, one without by its URL; naming one that had no name changes it.
    """
    merged = list(known)
    named = {one.name: place for place, one in enumerate(merged) if one.name is not None}
    at = {one.url: place for place, one in reversed([*enumerate(merged)])}
    for one in new:
        place = at.get(one.url)
        if place is not None and (merged[place].url != one.url or (one.name and merged[place].name)):
            place = None  # it has moved meanwhile, or both have names, and not the same
        if one.name is not None:
            place = named.get(one.name, place)
        if place is None:
            place = len(merged)
            merged.append(one)
        named.pop(merged[place].name or "", None)
        merged[place] = one
        if one.name is not None:
            named[one.name] = place
        if merged[at.setdefault(one.url, place)].url != one.url:
            at[one.url] = place
    return merged


def _endpoints(db: apsw.Connection, account: int, name: str) -> list[DeliveryEndpoint]:
    found = fetch(
        db, "SELECT url, name FROM endpoints WHERE account = ? AND url_group = ? ORDER BY place", (account, name)
    )
    return [DeliveryEndpoint(*row) for row in found]


def _write(db: apsw.Connection, account: int, name: str, endpoints: Sequence[DeliveryEndpoint]) -> None:
    db.execute("DELETE FROM endpoints WHERE account = ? AND url_group = ?", (account, name))
    db.executemany(
        "INSERT INTO endpoints (account, url_group, place, name, url) VALUES (?, ?, ?, ?, ?)",
        [(account, name, place, one.name, one.url) for place, one in enumerate(endpoints)],
    )


def _group(db: apsw.Connection, account: int, row: tuple[Any, ...]) -> UrlGroupState:
    name, headers, created_ms, updated_ms = row
    return UrlGroupState(
        name, tuple(_endpoints(db, account, name)), rows.unpack_headers(headers), created_ms, updated_ms
    )
