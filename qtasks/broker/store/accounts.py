"""Accounts and their signing keys."""

from __future__ import annotations

from typing import cast

import apsw

from qtasks.broker.core.values import AccountCredentials
from qtasks.protocol.messages import SigningKeys


def ensure_account(db: apsw.Connection, credentials: AccountCredentials, fresh: SigningKeys) -> int:
    """The account's id, made if new with the keys configured or else `fresh`; keys that exist are left alone."""
    db.execute("INSERT OR IGNORE INTO accounts (name) VALUES (?)", (credentials.name,))
    account = cast("int", db.execute("SELECT id FROM accounts WHERE name = ?", (credentials.name,)).get)
    keys = credentials.keys or fresh
    db.execute(
        "INSERT OR IGNORE INTO signing_keys (account, current, next) VALUES (?, ?, ?)",
        (account, keys.current, keys.next),
    )
    return account


def keys(db: apsw.Connection, account: int) -> SigningKeys:
    """The account's signing keys."""
    current, following = db.execute("SELECT current, next FROM signing_keys WHERE account = ?", (account,)).get
    return SigningKeys(current, following)


def rotate_keys(db: apsw.Connection, account: int, fresh: str) -> SigningKeys:
    """The next key becomes the current one and `fresh` the next: who accepts both notices nothing."""
    current, following = db.execute(
        "UPDATE signing_keys SET current = next, next = ? WHERE account = ? RETURNING current, next", (fresh, account)
    ).get
    return SigningKeys(current, following)
