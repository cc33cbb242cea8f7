"""API tokens in the store: names, scopes and digests, never the tokens themselves."""

from __future__ import annotations

import hashlib

import apsw

from qtasks.broker.core.values import StoredToken


def digest(token: str) -> bytes:
    """What is kept of a token and compared instead of it."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def add(db: apsw.Connection, token: str, account: int, name: str, *, read_only: bool, now_ms: int) -> bool:
    """Keep a token under a name of its own; False when the name is taken."""
    return (
        db.execute(
            "INSERT INTO tokens (digest, account, name, read_only, created_ms) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (account, name) DO NOTHING RETURNING 1",
            (digest(token), account, name, int(read_only), now_ms),
        ).get
        is not None
    )


def remove(db: apsw.Connection, account: int, name: str) -> bool:
    """Revoke a token; False when there is none of that name."""
    return db.execute("DELETE FROM tokens WHERE account = ? AND name = ? RETURNING 1", (account, name)).get is not None


def every(db: apsw.Connection) -> list[StoredToken]:
    """All tokens, oldest first."""
    found = db.execute("SELECT digest, account, name, read_only, created_ms FROM tokens ORDER BY created_ms, name")
    return [
        StoredToken(bytes(key), account, name, bool(read_only), created_ms)
        for key, account, name, read_only, created_ms in found
    ]
