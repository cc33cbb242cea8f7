"""The headers of a delivery that the dispatcher reads, of a request and of an item of a bundle."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from qtasks.protocol.messages import Headers
from qtasks.tasks.run.decision import DispatchResponse

HeaderBytes = Iterable[tuple[bytes, bytes]]
"""Header lines as ASGI has them: names in lower case, of which a request may have several."""

_READ: Final = frozenset(
    (
        "content-encoding",
        "content-length",
        "origin",
        "qtasks-call",
        "sec-fetch-site",
        "upstash-message-id",
        "upstash-retried",
        "upstash-schedule-id",
        "upstash-signature",
    )
)
_READ_BYTES: Final = {name.encode(): name for name in _READ}
_ENCODED: Final = "the body has a Content-Encoding; the signature is over plain bytes"
_PUBLISHED: Final = "this name is for requests of the broker itself: the publisher of a message would get the answer"
_OF_PAGE: Final = "with public signing keys, no web page may deliver: only a broker"


class DeliveryHeaders:
    """The headers of one delivery, from those of `lines` that are read; names are in lower case."""

    __slots__ = ("call", "encoding", "is_of_page", "length", "message_id", "retried", "schedule_id", "signature")

    def __init__(self, lines: Iterable[tuple[str, str]]) -> None:
        self.signature = self.message_id = self.encoding = self.call = ""
        self.schedule_id: str | None = None
        self.retried = self.length = 0
        self.is_of_page = False
        for name, value in lines:
            if name == "upstash-message-id":
                self.message_id = value[:256]
            elif name == "upstash-retried":
                self.retried = _number(value)
            elif name == "upstash-signature":
                # Of two signatures it would be unclear which one counts. Joined, they are not a valid token.
                self.signature = f"{self.signature},{value}" if self.signature else value
            elif name == "qtasks-call":
                self.call += value
            elif name == "upstash-schedule-id":
                self.schedule_id = value[:256]
            elif name == "content-encoding":
                self.encoding = value.strip().lower()
            elif name == "content-length":
                self.length = _number(value)
            else:  # a browser sends one of the two with every POST of a page
                self.is_of_page = True

    def refusal(self, *, has_public_keys: bool, is_of_broker: bool = False) -> DispatchResponse | None:
        """The response to a request that is refused because of its headers; None for one that is not.

        `is_of_broker`: only the broker itself sends such a request. A message that was published has an id, and a
        signature of the broker, too.
        With public keys every page could sign a delivery, and send it after it has rebound its name to this machine.
        """
        if self.encoding not in ("", "identity"):
            return DispatchResponse.refusal(415, _ENCODED)
        if self.is_of_page and has_public_keys:
            return DispatchResponse.refusal(403, _OF_PAGE)
        if is_of_broker and self.message_id:
            return DispatchResponse.refusal(403, _PUBLISHED)
        return None


def of_request(lines: HeaderBytes) -> DeliveryHeaders:
    """The headers of a request."""
    return DeliveryHeaders(
        [(read, value.decode("latin-1")) for name, value in lines if (read := _READ_BYTES.get(name)) is not None]
    )


def of_item(lines: Headers) -> DeliveryHeaders:
    """The headers of an item of a bundle."""
    return DeliveryHeaders(
        [
            (lower, value if value.isascii() else as_sent(value).decode("latin-1"))
            for name, value in lines
            if (lower := name.lower()) in _READ
        ]
    )


def as_sent(text: str) -> bytes:
    """A header name or value of an item, as it would arrive in a request of its own."""
    return text.encode("utf-8", "replace")


def _number(value: str) -> int:
    """The number in a header; 0 if it is not a number."""
    return int(value) if value.isascii() and value.isdigit() and len(value) <= 18 else 0
