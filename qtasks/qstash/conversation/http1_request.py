"""A request as the bytes of HTTP/1.1, for a service over plain HTTP. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from qtasks.errors import InvalidCallError
from qtasks.qstash.conversation.transport import Request

_URL = re.compile(r"(http://([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?)(/[!$-;=?-\[\]_a-z|~]*)")
"""The URLs whose text goes into a request as it is. httpx encodes others, and knows users and Unicode hosts."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_VALUES = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_FRAMING = frozenset(
    {"connection", "content-length", "expect", "host", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Headers that say how the message itself is transferred."""

_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
"""Methods whose requests give the length of their body even if it is empty."""


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """Where a service listens."""

    origin: str
    """Scheme, host and port as the URL has them."""
    host: str
    """The name or the address, without brackets."""
    port: int

    @property
    def authority(self) -> str:
        """The value of the header `Host`."""
        return self.origin.removeprefix("http://")


def split(request: Request) -> tuple[ServiceAddress, str] | None:
    """The service and the target of a request; None for a request that must be sent over httpx."""
    parts = _URL.fullmatch(request.url)
    if parts is None or not all(_is_plain(name) for name, _ in request.headers):
        return None
    service = _service_address(parts[1], parts[2], parts[3])
    return None if service is None else (service, parts[4])


def to_bytes(request: Request, service: ServiceAddress, target: str) -> bytes:
    """The whole request. Raises InvalidCallError for a header that HTTP cannot carry."""
    lines = [f"{request.method} {target} HTTP/1.1\r\nHost: {service.authority}\r\nAccept-Encoding: identity\r\n"]
    for name, value in request.headers:
        if _NOT_IN_VALUES.search(value) or value != value.strip():
            raise InvalidCallError(f"this request cannot be sent: the header {name} has a value that HTTP cannot carry")
        lines.append(f"{name}: {value}\r\n")
    if request.body or request.method in _WITH_BODY:
        lines.append(f"Content-Length: {len(request.body)}\r\n")
    lines.append("\r\n")
    try:
        return "".join(lines).encode() + request.body
    except UnicodeEncodeError as error:
        raise InvalidCallError(f"this request cannot be sent: {error}") from None


@lru_cache(maxsize=1024)
def _is_plain(name: str) -> bool:
    """True for a header that neither is invalid nor changes how the message is transferred."""
    return _NAME.fullmatch(name) is not None and name.lower() not in _FRAMING


@lru_cache(maxsize=64)
def _service_address(origin: str, host: str, port: str | None) -> ServiceAddress | None:
    number = 80 if port is None else int(port)
    return ServiceAddress(origin, host.strip("[]"), number) if 0 < number < 65536 else None
