"""A cache of the accounts' signing keys."""

from __future__ import annotations

from qtasks.broker.store.interface import Store
from qtasks.broker.store.verbs import accounts
from qtasks.protocol.messages import SigningKeys


class KeyRing:
    """The signing keys of each account, read from the store once. Call `forget` after a rotation."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys: dict[int, SigningKeys] = {}
        self._changes = 0

    def known(self, account: int) -> SigningKeys | None:
        """The current keys of `account`, if they have been read."""
        return self._keys.get(account)

    async def of(self, account: int) -> SigningKeys:
        """The current keys of `account`."""
        if (cached := self.known(account)) is not None:
            return cached
        changes = self._changes
        keys = await self._store.read(accounts.signing_keys, account)
        if changes == self._changes:  # otherwise the keys may have been read before the rotation
            self._keys[account] = keys
        return keys

    def forget(self, account: int) -> None:
        """Drop the keys of `account`, because they have changed; the next `of` reads them again."""
        self._changes += 1
        self._keys.pop(account, None)
