"""What may be reached from other machines: nothing that the published development credentials open."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final

from qtasks.errors import ConfigurationError
from qtasks.protocol import development

_PUBLIC: Final = frozenset(
    secret for user in development.USERS for secret in (user.token, user.keys.current, user.keys.next)
)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_public_credentials(secrets: Iterable[str | None], host: str, *, fix: str) -> None:
    """Raise ConfigurationError where a server on `host` would trust a secret that everybody knows."""
    if not is_loopback(host) and not _PUBLIC.isdisjoint(secrets):
        raise ConfigurationError(
            f"the public development credentials may not be used on {host}: everybody knows them", fix=fix
        )
