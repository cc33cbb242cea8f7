"""Refuse to listen beyond loopback with the public development credentials."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from qtasks.errors import ConfigurationError
from qtasks.protocol import development
from qtasks.protocol.loopback import is_loopback

_PUBLIC: Final = frozenset(
    secret for user in development.USERS for secret in (user.token, user.keys.current, user.keys.next)
)


def refuse_public_credentials(secrets: Iterable[str | None], host: str, *, fix: str) -> None:
    """Raise ConfigurationError if a server on `host`, which other machines can reach, would trust a published secret.

    `fix` says what to do instead.
    """
    if not is_loopback(host) and not _PUBLIC.isdisjoint(secrets):
        raise ConfigurationError(
            f"the public development credentials must not be used on {host}: other machines can reach it",
            fix=fix,
        )
