"""What the secret keys of an application are for, opened on first use."""

from __future__ import annotations

from collections.abc import Callable

from qtasks.tasks.encode.encryption import Encryption
from qtasks.tasks.encode.pickling import Pickles
from qtasks.tasks.settings import Settings


class Keyring:
    """Pickles and encryption with the keys of `settings`. Each is made once, until `forget`."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self.forget()

    def forget(self) -> None:
        """Read the settings again at the next use."""
        self._pickles: Pickles | None = None
        self._encryption: Encryption | None = None

    def pickles(self) -> Pickles:
        """Writes and reads pickles. Raises ConfigurationError that names the missing permission."""
        if (ready := self._pickles) is None:
            ready = self._pickles = Pickles(self._settings().pickling())
        return ready

    def encryption(self) -> Encryption:
        """Encrypts and decrypts. Raises ConfigurationError that says what is wrong with the key."""
        if (ready := self._encryption) is None:
            ready = self._encryption = Encryption(self._settings().encrypting())
        return ready
