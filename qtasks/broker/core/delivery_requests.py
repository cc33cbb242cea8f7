"""The requests of attempts: of a single delivery, and of a bundle of several (docs/protocol.md 4.1, 5.16). Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from qtasks.broker.core.bundle_items import USER_AGENT
from qtasks.broker.ports import UNREAD, DeliveryRequest, Stopwatch
from qtasks.protocol import bundles, signing
from qtasks.protocol.messages import Headers, Message, SigningKeys

_SIGNATURE: Final = "Upstash-Signature"
_NOT_BUNDLED: Final = frozenset({"", bundles.NAME})


class DeliveryAddress(NamedTuple):
    """A URL in the two parts that matter to a bundle, both verbatim."""

    folder: str
    """All of the URL before its last path segment, with the slash at its end."""
    target: str
    """The last path segment, and the query if there is one."""


def address_of(url: str) -> DeliveryAddress | None:
    """The address of a delivery that a bundle may have; None for a URL without a last path segment."""
    path, mark, query = url.partition("?")
    folder, _, name = path.rpartition("/")
    if name in _NOT_BUNDLED or "#" in url or folder.count("/") < 2:
        return None
    return DeliveryAddress(f"{folder}/", f"{name}{mark}{query}")


def signed_request(
    message: Message, keys: SigningKeys, *, now_s: int, jti: str, region: str, stopwatch: Stopwatch = UNREAD
) -> DeliveryRequest:
    """The signed request of the message's current attempt.

    The broker's own headers come last, each once: publish has dropped forwarded headers of the same names.
    """
    signature = signing.sign(keys.current, url=message.url, body=message.body, now_s=now_s, jti=jti)
    headers: Headers = (
        *(() if _has_header(message.headers, "user-agent") else (("User-Agent", USER_AGENT),)),
        *message.headers,
        ("Upstash-Caller-Ip", message.caller_ip),
        ("Upstash-Message-Id", message.id),
        ("Upstash-Region", region),
        ("Upstash-Retried", str(message.retried)),
        (_SIGNATURE, signature),
    )
    if message.url_group is not None:
        headers += (("Upstash-Topic-Name", message.url_group),)
    if message.schedule_id is not None:
        headers += (("Upstash-Schedule-Id", message.schedule_id),)
    return DeliveryRequest(message.url, message.method, headers, message.body, message.timeout_ms, stopwatch)


def signed_bundle(
    folder: str,
    lines: Iterable[bytes],
    keys: SigningKeys,
    *,
    now_s: int,
    jti: str,
    timeout_ms: int,
    stopwatch: Stopwatch = UNREAD,
) -> DeliveryRequest:
    """The signed request of a bundle to the dispatcher at `folder`, with a limit for the head of its response."""
    url, body = folder + bundles.NAME, b"".join(lines)
    signature = signing.sign(keys.current, url=url, body=body, now_s=now_s, jti=jti)
    headers: Headers = (
        ("User-Agent", USER_AGENT),
        ("Content-Type", bundles.CONTENT_TYPE),
        (_SIGNATURE, signature),
    )
    return DeliveryRequest(url, "POST", headers, body, timeout_ms, stopwatch)


def _has_header(headers: Headers, name: str) -> bool:
    return any(line[0].lower() == name for line in headers)
