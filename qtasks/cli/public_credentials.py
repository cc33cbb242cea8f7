"""What may be reached from other machines: nothing that the published development credentials open."""

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
    """Raise ConfigurationError where a server on `host` would trust a secret that everybody knows."""
    if not is_loopback(host) and not _PUBLIC.isdisjoint(secrets):
        raise ConfigurationError(
            f"the public development credentials may not be used on {host}: everybody knows them", fix=fix
        )
