"""URL groups: sets of endpoints; a publish to a group sends to all of them (docs/protocol.md 2.8, 5.7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import apsw

from qtasks.broker.core import message_rows
from qtasks.broker.core.values import DeliveryEndpoint, UrlGroupState
from qtasks.broker.store.verbs.rows import fetch
from qtasks.protocol.messages import Headers

_SELECT: Final = "SELECT name, headers, created_ms, updated_ms FROM url_groups"


def upsert_endpoints(
    db: apsw.Connection, account: int, name: str, endpoints: Sequence[DeliveryEndpoint], *, now_ms: int
) -> None:
    """Add endpoints, or change those with the same name (the same URL for those without a name).

    A group that does not exist yet is created.
    """
    db.execute(
        "INSERT INTO url_groups (account, name, headers, created_ms, updated_ms) VALUES (?, ?, '[]', ?, ?)"
        " ON CONFLICT (account, name) DO UPDATE SET updated_ms = excluded.updated_ms",
        (account, name, now_ms, now_ms),
    )
    _write(db, account, name, _merged(_endpoints(db, account, name), endpoints))


def remove_endpoints(
    db: apsw.Connection, account: int, name: str, endpoints: Sequence[DeliveryEndpoint], *, now_ms: int
) -> bool:
    """Remove endpoints by name, or by URL for those without a name; False if the group does not exist.

    A group without endpoints is deleted.
    """
    changed = db.execute(
        "UPDATE url_groups SET updated_ms = ? WHERE account = ? AND name = ? RETURNING 1", (now_ms, account, name)
    ).get
    if changed is None:
        return False
    names = {endpoint.name for endpoint in endpoints if endpoint.name is not None}
    urls = {endpoint.url for endpoint in endpoints if endpoint.name is None}
    remaining = [
        endpoint
        for endpoint in _endpoints(db, account, name)
        if endpoint.name not in names and endpoint.url not in urls
    ]
    if remaining:
        _write(db, account, name, remaining)
    else:
        delete_group(db, account, name)
    return True


def set_group_headers(db: apsw.Connection, account: int, name: str, headers: Headers, *, now_ms: int) -> bool:
    """Replace the default headers of publishes to the group; False if the group does not exist."""
    row = db.execute(
        "UPDATE url_groups SET headers = ?, updated_ms = ? WHERE account = ? AND name = ? RETURNING 1",
        (message_rows.pack_headers(headers), now_ms, account, name),
    ).get
    return row is not None


def delete_group(db: apsw.Connection, account: int, name: str) -> bool:
    """Delete a group with its endpoints; False if there is none. Messages that were published to it stay."""
    sql = "DELETE FROM url_groups WHERE account = ? AND name = ? RETURNING 1"
    return db.execute(sql, (account, name)).get is not None


def group(db: apsw.Connection, account: int, name: str) -> UrlGroupState | None:
    """A group with its endpoints, in order; or None."""
    row = db.execute(f"{_SELECT} WHERE account = ? AND name = ?", (account, name)).get
    return None if row is None else _group(db, account, row)


def group_names(db: apsw.Connection, account: int) -> list[str]:
    """The names of all groups, in order."""
    return [name for (name,) in fetch(db, "SELECT name FROM url_groups WHERE account = ? ORDER BY name", (account,))]


def _merged(present: Sequence[DeliveryEndpoint], changes: Sequence[DeliveryEndpoint]) -> list[DeliveryEndpoint]:
    """`present` with each of `changes` in the place of the endpoint that it changes, or at the end.

    An endpoint is identified by its name, one without a name by its URL. A name for an endpoint that had none
    changes that endpoint. Linear in both lengths: a group may have ten thousand endpoints.
    """
    merged = list(present)
    place_by_name = {endpoint.name: place for place, endpoint in enumerate(merged) if endpoint.name is not None}
    place_by_url = {endpoint.url: place for place, endpoint in reversed([*enumerate(merged)])}
    for endpoint in changes:
        place = place_by_url.get(endpoint.url)
        if place is not None and (merged[place].url != endpoint.url or (endpoint.name and merged[place].name)):
            place = None  # the entry of the index is out of date, or both endpoints have names and they differ
        if endpoint.name is not None:
            place = place_by_name.get(endpoint.name, place)
        if place is None:
            place = len(merged)
            merged.append(endpoint)
        place_by_name.pop(merged[place].name or "", None)
        merged[place] = endpoint
        if endpoint.name is not None:
            place_by_name[endpoint.name] = place
        if merged[place_by_url.setdefault(endpoint.url, place)].url != endpoint.url:
            place_by_url[endpoint.url] = place
    return merged


def _endpoints(db: apsw.Connection, account: int, name: str) -> list[DeliveryEndpoint]:
    endpoints = fetch(
        db, "SELECT url, name FROM endpoints WHERE account = ? AND url_group = ? ORDER BY place", (account, name)
    )
    return [DeliveryEndpoint(*row) for row in endpoints]


def _write(db: apsw.Connection, account: int, name: str, endpoints: Sequence[DeliveryEndpoint]) -> None:
    db.execute("DELETE FROM endpoints WHERE account = ? AND url_group = ?", (account, name))
    db.executemany(
        "INSERT INTO endpoints (account, url_group, place, name, url) VALUES (?, ?, ?, ?, ?)",
        [(account, name, place, endpoint.name, endpoint.url) for place, endpoint in enumerate(endpoints)],
    )


def _group(db: apsw.Connection, account: int, row: tuple[Any, ...]) -> UrlGroupState:
    name, headers, created_ms, updated_ms = row
    return UrlGroupState(
        name, tuple(_endpoints(db, account, name)), message_rows.unpack_headers(headers), created_ms, updated_ms
    )
