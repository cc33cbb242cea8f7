"""An operation of the API as a value, and the parts that every operation uses.

The modules of the resources (`message`, `queue`, ...) have one function per operation, which returns an `Operation`.
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
"""Characters that httpx, and so the official SDK, does not encode; all others are percent-encoded."""


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    """One operation: what to send, how to read the reply, and whether it may be repeated without a reply."""

    method: HttpMethod
    path: str
    """What follows the base URL, ready for the wire; query included."""
    read: Callable[[Reply], T] = field(repr=False)
    headers: Headers = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)
    repeatable: bool = True
    """Whether two executions have the effect of one."""
    absent_is_done: bool = False
    """For a deletion by id: after a lost answer, 404 means that the lost attempt did it."""
    long: bool = False
    """The answer may take minutes: it must not hold up other calls."""
    base_url: str | None = None
    """Another service than the client's own: a provider of language models."""
    token: str | None = field(default=None, repr=False)
    timeout_s: float | None = None
    """Overrides the client's time for one attempt."""


def answer(reply: Reply) -> Any:
    """The JSON of a reply."""
    return json.loads(reply.body)


def nothing(_: Reply) -> None:
    """The reader of operations whose reply has no content beyond its status."""


def segment(value: str, what: str) -> str:
    """One path segment, percent-encoded.

    An empty one is refused, and so are dots: they would turn "delete this" into "delete everything".
    """
    if not value or value.strip() in {"", ".", ".."}:
        raise InvalidCallError(f"{what} must name something, not be {value!r}")
    return quote(value, safe="$&'()*+,;=:@~-._!")


def destination(text: str) -> str:
    """A destination as it goes into the path: a URL raw, with only what no URL may contain percent-encoded.

    Dot segments are refused. Every HTTP client resolves them over the whole path, which would swallow a part of ours:
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
    """A destination with what no URL may contain percent-encoded, as HTTP clients do; a fragment never travels."""
    if not text or not text.strip():
        raise InvalidCallError(f"a destination must be a URL or the name of a URL group, not {text!r}")
    if _CONTROL.search(text):
        raise InvalidCallError(f"the destination {text!r} contains a control character")
    path, mark, parameters = text.partition("#")[0].partition("?")
    return quote(path, safe=_PATH_SAFE) + mark + quote(parameters, safe=_QUERY_SAFE)


def query(pairs: Iterable[tuple[str, str]]) -> str:
    """A query string with its question mark, or nothing."""
    encoded = urlencode(list(pairs))
    return f"?{encoded}" if encoded else ""


def to_json(value: object) -> bytes:
    """JSON as the official SDK writes it, blanks included: hashes of bodies depend on it."""
    return json.dumps(value).encode("ascii")
