"""Signing keys: get and rotate (docs/protocol.md 2.12)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qtasks.qstash.conversation.operation import Operation, answer
from qtasks.qstash.conversation.transport import Reply

if TYPE_CHECKING:
    from qtasks.qstash.conversation.sync_driver import HttpClient


@dataclass
class SigningKey:
    """The signing keys of the account. `current` signs deliveries; receivers accept both."""

    current: str = field(repr=False)
    """The key that signs."""
    next: str = field(repr=False)
    """The key that will sign after the next rotation."""


def get() -> Operation[SigningKey]:
    """Get the keys."""
    return Operation("GET", "/v2/keys", _read)


def rotate() -> Operation[SigningKey]:
    """Make the next key the current one. Not repeated after a lost reply: two rotations make all receivers fail."""
    return Operation("POST", "/v2/keys/rotate", _read, repeatable=False)


def _read(reply: Reply) -> SigningKey:
    content = answer(reply)
    return SigningKey(current=content["current"], next=content["next"])


class SigningKeyApi:
    """The account's signing keys."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    def get(self) -> SigningKey:
        """The current and the next key."""
        return self._http.run(get())

    def rotate(self) -> SigningKey:
        """Make the next key the current one and get a new next key.

        Receivers with both old keys continue to work. Configure the new pair there before the next rotation.
        """
        return self._http.run(rotate())
