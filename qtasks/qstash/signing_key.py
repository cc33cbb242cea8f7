"""Signing keys (docs/protocol.md 2.12)."""

from __future__ import annotations

from dataclasses import dataclass, field

from qtasks.qstash.conversation.operation import Operation, answer
from qtasks.qstash.conversation.sync_driver import HttpClient
from qtasks.qstash.conversation.transport import Reply


@dataclass
class SigningKey:
    """The keys of the account: `current` signs deliveries, a receiver accepts both."""

    current: str = field(repr=False)
    """The key that signs."""
    next: str = field(repr=False)
    """The key that will sign after the next rotation."""


def get() -> Operation[SigningKey]:
    """Look at the keys."""
    return Operation("GET", "/v2/keys", _read)


def rotate() -> Operation[SigningKey]:
    """Make the next key the current one. Doing it twice would shut out every receiver, so it is never repeated."""
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

        Receivers that know both old keys go on working; hand them the new pair before rotating again.
        """
        return self._http.run(rotate())
