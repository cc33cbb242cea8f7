"""Accounts with their signing keys, and API tokens: stored as digests, never as the tokens themselves."""

from __future__ import annotations

import hashlib
from typing import cast

import apsw

from qtasks.broker.core.values import AccountCredentials, StoredToken
from qtasks.protocol.messages import SigningKeys


def ensure_account(db: apsw.Connection, credentials: AccountCredentials, new_keys: SigningKeys) -> int:
    """The id of an account. Creates it if it is new, with its configured keys or else `new_keys`.

    Keys that are stored already stay as they are.
    """
    db.execute("INSERT OR IGNORE INTO accounts (name) VALUES (?)", (credentials.name,))
    account = cast("int", db.execute("SELECT id FROM accounts WHERE name = ?", (credentials.name,)).get)
    keys = credentials.keys or new_keys
    db.execute(
        "INSERT OR IGNORE INTO signing_keys (account, current, next) VALUES (?, ?, ?)",
        (account, keys.current, keys.next),
    )
    return account


# -- signing keys


def signing_keys(db: apsw.Connection, account: int) -> SigningKeys:
    """The account's signing keys."""
    current, following = db.execute("SELECT current, next FROM signing_keys WHERE account = ?", (account,)).get
    return SigningKeys(current, following)


def rotate_keys(db: apsw.Connection, account: int, new_key: str, *, now_ms: int) -> SigningKeys:
    """Make the next key current and `new_key` the next. Receivers that accept both keys notice no change."""
    current, following = db.execute(
        "UPDATE signing_keys SET current = next, next = ?, rotated_ms = ? WHERE account = ? RETURNING current, next",
        (new_key, now_ms, account),
    ).get
    return SigningKeys(current, following)


def rotated_ms(db: apsw.Connection, account: int) -> int | None:
    """When the account's signing keys were last rotated; None: never, as far as is stored."""
    return cast("int | None", db.execute("SELECT rotated_ms FROM signing_keys WHERE account = ?", (account,)).get)


# -- tokens


def token_digest(token: str) -> bytes:
    """The digest that is stored and compared in place of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def add_token(
    db: apsw.Connection,
    token: str,
    account: int,
    name: str,
    *,
    read_only: bool,
    without_payloads: bool = False,
    now_ms: int,
) -> bool:
    """Store a token under a name that is unique in its account; False if the name is taken."""
    row = db.execute(
        "INSERT INTO tokens (digest, account, name, read_only, without_payloads, created_ms) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (account, name) DO NOTHING RETURNING 1",
        (token_digest(token), account, name, int(read_only), int(without_payloads), now_ms),
    ).get
    return row is not None


def remove_token(db: apsw.Connection, account: int, name: str) -> bool:
    """Revoke a token; False if the account has no token of that name."""
    return db.execute("DELETE FROM tokens WHERE account = ? AND name = ? RETURNING 1", (account, name)).get is not None


def note_token_use(db: apsw.Connection, digest: bytes, *, now_ms: int) -> None:
    """Note when a token was last used."""
    db.execute("UPDATE tokens SET used_ms = ? WHERE digest = ?", (now_ms, digest))


def tokens(db: apsw.Connection) -> list[StoredToken]:
    """All tokens of all accounts, oldest first."""
    rows = db.execute(
        "SELECT digest, account, name, read_only, created_ms, without_payloads, used_ms FROM tokens"
        " ORDER BY created_ms, name"
    )
    return [
        StoredToken(bytes(digest), account, name, bool(read_only), created_ms, bool(without_payloads), used_ms)
        for digest, account, name, read_only, created_ms, without_payloads, used_ms in rows
    ]
