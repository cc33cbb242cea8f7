"""An operation of the API as a value, and the parts that every operation uses.

The modules of the resources (`message`, `queue`, ...) have one function for each operation; it returns an `Operation`.
They are pure; `exchange` runs an operation and returns its value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote, urlencode

from qtasks.errors import InvalidCallError
from qtasks.protocol.messages import Headers
from qtasks.qstash.conversation.transport import Reply

T = TypeVar("T")

HttpMethod = Literal["GET", "POST", "PUT", "DELETE", "PATCH"]

JSON_TYPE: Headers = (("Content-Type", "application/json"),)

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PATH_SAFE = "!$%&'()*+,;=:@/[]~-._|^\\"
_QUERY_SAFE = _PATH_SAFE + "?`{}"
"""Characters that httpx, and so the official SDK, sends unencoded. All others are percent-encoded."""


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    """One operation: what to send, how to read the reply, and whether it may be repeated after a lost reply."""

    method: HttpMethod
    path: str
    """The percent-encoded path with the query; it is appended to the base URL."""
    read: Callable[[Reply], T] = field(repr=False)
    headers: Headers = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)
    repeatable: bool = True
    """True if two executions have the effect of one."""
    absent_is_done: bool = False
    """True for a deletion by id: a 404 after a lost reply means success, because the lost attempt deleted it."""
    long: bool = False
    """True if the reply may take minutes. Such a request must not block others."""
    base_url: str | None = None
    """URL of another service: that of a provider of language models. None: the client's own service."""
    token: str | None = field(default=None, repr=False)
    timeout_s: float | None = None
    """Seconds for one attempt; None: the client's default."""


def answer(reply: Reply) -> Any:
    """The JSON value in the body of a reply."""
    return json.loads(reply.body)


def nothing(_: Reply) -> None:
    """The reader of replies whose body has no meaning."""


def segment(value: str, what: str) -> str:
    """`value` as one percent-encoded path segment. `what` names it in the error text.

    Raises InvalidCallError for an empty text, ``.`` and ``..``: they would turn "delete this" into "delete everything".
    """
    if not value or value.strip() in {"", ".", ".."}:
        raise InvalidCallError(f"{what} must name something, not be {value!r}")
    return quote(value, safe="$&'()*+,;=:@~-._!")


def destination(text: str) -> str:
    """A destination as it is sent in the path. Only characters that a URL must not contain are percent-encoded.

    Dot segments are refused, because every HTTP client resolves them over the whole path, our own prefix included:
    `https://example.com/../up` would reach the host `up` (docs/protocol.md 2.1).
    """
    ready = url_text(text)
    path = ready.partition("?")[0].replace("%2e", ".").replace("%2E", ".")
    if not {".", ".."}.isdisjoint(path.split("/")):
        raise InvalidCallError(
            f"the destination {text!r} contains a dot segment", fix="resolve `.` and `..` before publishing"
        )
    return ready


def url_text(text: str) -> str:
    """A destination without its fragment, its characters that a URL must not contain percent-encoded."""
    if not text or not text.strip():
        raise InvalidCallError(f"a destination must be a URL or the name of a URL group, not {text!r}")
    if _CONTROL.search(text):
        raise InvalidCallError(f"the destination {text!r} contains a control character")
    path, mark, parameters = text.partition("#")[0].partition("?")
    return quote(path, safe=_PATH_SAFE) + mark + quote(parameters, safe=_QUERY_SAFE)


def query(pairs: Iterable[tuple[str, str]]) -> str:
    """A query string with its question mark; empty without `pairs`."""
    encoded = urlencode(list(pairs))
    return f"?{encoded}" if encoded else ""


def to_json(value: object) -> bytes:
    """JSON exactly as the official SDK writes it, spaces included, because hashes of bodies depend on it."""
    return json.dumps(value).encode("ascii")
