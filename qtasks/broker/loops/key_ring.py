"""The signing keys of all accounts, kept in memory."""

from __future__ import annotations

from qtasks.broker.store.interface import Store
from qtasks.protocol.messages import SigningKeys


class KeyRing:
    """The signing keys by account, read from the store once; a rotation tells it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys: dict[int, SigningKeys] = {}
        self._changes = 0

    async def of(self, account: int) -> SigningKeys:
        """The account's keys as they are now."""
        if (known := self._keys.get(account)) is not None:
            return known
        changes = self._changes
        keys = await self._store.keys(account)
        if changes == self._changes:  # else what was read may be from before the change
            self._keys[account] = keys
        return keys

    def forget(self, account: int) -> None:
        """The keys have changed: read them again."""
        self._changes += 1
        self._keys.pop(account, None)
