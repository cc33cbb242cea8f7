"""One API request and its response, independent of any server: a socket and the embedded broker use the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote

import orjson

from qtasks.broker.core.operator_changes import LONGEST_NOTE, UNKNOWN, Actor
from qtasks.protocol import strict_json, wire
from qtasks.protocol.headers import NOTE_HEADER
from qtasks.protocol.messages import Headers
from qtasks.threads import DaemonThreadPool

T = TypeVar("T")

MAX_VALUES: Final = 1000
"""Limit for the values of one filter."""
_MAX_OBJECT: Final = 1024 * 1024
"""Limit for a body that is a JSON object, bytes."""
_SHORT_JSON: Final = 64 * 1024
"""Bytes of JSON that are read on the loop's thread: a millisecond or two."""
_LARGE_JSON: Final = DaemonThreadPool(1, "qtasks-json")
_MAX_JSON_VALUES: Final = 250_000
"""Values in a body. A batch of 1,000 items with 100 headers each has half as many."""
_JSON: Final = ("Content-Type", "application/json")


class HttpError(Exception):
    """Ends a request with an error status and the body ``{"error": text}``."""

    def __init__(self, status: int, text: str, headers: Headers = ()) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = headers


class ApiResponse(NamedTuple):
    """The response to an API request."""

    status: int
    body: bytes = b"{}"
    headers: Headers = (_JSON,)
    stream: AsyncIterator[bytes] | None = None
    """The body in pieces, in place of `body`. The receiver of the response must read it to its end."""

    async def whole(self) -> ApiResponse:
        """The same response with its body in one piece."""
        if self.stream is None:
            return self
        return self._replace(body=b"".join([piece async for piece in self.stream]), stream=None)


def json_response(value: Any, status: int = 200, headers: Headers = ()) -> ApiResponse:
    """A response with `value` as JSON."""
    return ApiResponse(status, orjson.dumps(value), (_JSON, *headers))


def error_response(error: HttpError) -> ApiResponse:
    """The response to a refused request."""
    return json_response({"error": error.text}, error.status, error.headers)


class ApiRequest(NamedTuple):
    """An API request. `path` and `query` are the raw request target, never decoded."""

    method: str
    path: str
    query: str
    headers: Headers
    client_ip: str
    read_body: Callable[[int], Awaitable[bytes]]
    """Read the body up to a limit in bytes; raises HttpError 413 beyond it."""
    actor: Actor = UNKNOWN
    """Who asks, once that is known, for what may change something."""

    def header(self, name: str) -> str | None:
        """The first header line of that (lower-case) name."""
        return next((value for line, value in self.headers if line.lower() == name), None)

    def note(self) -> str | None:
        """The operator's note on what the request does (docs/protocol.md 5.19). HttpError 400 for one too long."""
        text = unquote(self.header(NOTE_HEADER.lower()) or "", errors="replace").strip()
        if len(text) > LONGEST_NOTE:
            raise HttpError(400, f"{NOTE_HEADER}: a note has at most {LONGEST_NOTE} characters, not {len(text)}")
        return text.replace("\x00", "\ufffd") or None


class Query:
    """The decoded query parameters of a list or a bulk action."""

    def __init__(self, raw: str) -> None:
        try:
            pairs = parse_qsl(raw, keep_blank_values=True, errors="strict", max_num_fields=1000)
        except ValueError as error:
            raise HttpError(400, f"malformed query string: {error}") from None
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            if "\x00" in value:
                raise HttpError(400, f"{name}: a NUL character is not allowed")
            self._values.setdefault(name, []).append(value)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def shown(self) -> str:
        """The parameters as a text for people; ``all`` without any."""
        return " ".join(f"{name}={value}" for name, values in self._values.items() for value in values) or "all"

    def names(self) -> frozenset[str]:
        """The names of all parameters."""
        return frozenset(self._values)

    def is_blank(self, name: str) -> bool:
        """True if every value of `name` is blank. False for an absent name and for an empty array of a body."""
        values = self._values.get(name, [])
        return bool(values) and not any(value.replace(",", "").strip() for value in values)

    def add(self, fields: Mapping[str, list[str]]) -> None:
        """Add parameters from a JSON body. If the query has the same name, the query's values win."""
        for name, values in fields.items():
            if any("\x00" in value for value in values):
                raise HttpError(400, f"{name[:64]}: a NUL character is not allowed")
            self._values.setdefault(name, values)

    def flag(self, name: str) -> bool:
        """``true`` or ``false``; absent is false."""
        text = (self.last(name) or "false").lower()
        if text not in ("true", "false"):
            raise HttpError(400, f"{name}: expected true or false, got {text[:40]!r}")
        return text == "true"

    def last(self, name: str) -> str | None:
        """The last value of `name`, or None."""
        values = self._values.get(name)
        return values[-1] if values else None

    def several(self, *names: str, split: bool = True, most: int | None = MAX_VALUES) -> tuple[str, ...]:
        """All values of the parameters `names`, without blank values and duplicates.

        A parameter may be repeated and, with `split`, its values may be separated by commas. HttpError 400 for more
        than `most` values.
        """
        texts = [value for name in names for value in self._values.get(name, ())]
        parts: Iterable[str] = (part for value in texts for part in value.split(",")) if split else texts
        values = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
        if most is not None and len(values) > most:
            raise HttpError(400, f"{names[0]}: too many values: {len(values)} > {most}")
        return values

    def integer(self, name: str, *, low: int = 0, high: int = 2**53) -> int | None:
        """A whole number in ASCII digits, or None if absent. HttpError 400 outside `low` to `high`."""
        text = self.last(name)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and len(text) <= 16 and low <= int(text) <= high):
            raise HttpError(400, f"{name}: expected a whole number from {low} to {high}, got {text[:40]!r}")
        return int(text)

    def count(self, *, default: int, most: int) -> int:
        """The page size: parameter `count`, else `default`; at most `most`."""
        return min(self.integer("count", low=1) or default, most)


async def read_json(
    data: bytes, *, then: Callable[[Any], Any] = lambda value: value, big_integers: bool = False
) -> Any:
    """What `then` makes of the value of a JSON body; a large one is read on a thread, where `then` runs as well.

    `big_integers` permits integers beyond 2^53. HttpError 400 if it is not valid JSON.
    """
    return await read_large(len(data), lambda: _read_json(data, then, big_integers))


async def read_large(size: int, read: Callable[[], T]) -> T:
    """What `read` returns, which reads `size` bytes of JSON: on a thread if they are many, so that others go on."""
    if size <= _SHORT_JSON:
        return read()
    return await asyncio.get_running_loop().run_in_executor(_LARGE_JSON, read)


def _read_json(data: bytes, then: Callable[[Any], Any], big_integers: bool) -> Any:
    try:
        return then(strict_json.loads(data, max_values=_MAX_JSON_VALUES, big_integers=big_integers))
    except ValueError as error:
        raise HttpError(400, str(error)) from None


async def read_object(request: ApiRequest) -> dict[str, Any]:
    """The JSON object in the body of `request`. HttpError 400 for any other body."""
    value = await read_json(await request.read_body(_MAX_OBJECT))
    if not isinstance(value, dict):
        raise HttpError(400, "expected a JSON object")
    return value


def read_name(value: object, what: str) -> str:
    """`value`, if it is a valid name of a queue, URL group or schedule. HttpError 400 otherwise."""
    if not isinstance(value, str):
        raise HttpError(400, f"invalid {what}: expected a text")
    try:
        return wire.check_name(value, what)
    except wire.WireError as error:
        raise HttpError(error.status, str(error)) from None


def decoded_segment(segment: str) -> str:
    """One segment of a path, decoded. HttpError 400 if it is not UTF-8 or contains a NUL character."""
    try:
        text = unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise HttpError(400, f"the path is not UTF-8: {segment[:80]!r}") from None
    if "\x00" in text:
        raise HttpError(400, "a NUL character is not allowed in the path")
    return text
