"""Bundles: several deliveries in one signed request, and their outcomes as they end (docs/protocol.md 5.16). Pure.

An extension of the protocol between this broker and the framework's dispatcher. A bundle is a POST to the name `NAME`
beside the tasks. Request and response are lines of JSON. The request has one line for each delivery. The response
begins with a line that says how many deliveries run; then each delivery has one line as it ends, and while nothing
ends, a line that says how many still run.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeGuard

from qtasks.protocol import quick_json
from qtasks.protocol.messages import Headers

NAME: Final = "_bundle"
"""The last path segment of a bundle's URL, where a single delivery has the name of its task."""
SLOTS_HEADER: Final = "Qtasks-Slots"
"""On an answer of a dispatcher that takes bundles: how many deliveries it can begin now, a decimal number."""
CONTENT_TYPE: Final = "application/x-ndjson"
"""The content type of request and response."""
MAX_ITEMS: Final = 64
"""Deliveries in one bundle at most."""
MAX_BYTES: Final = 1024 * 1024
"""Bytes of one bundle at most."""
HEARTBEAT_S: Final = 5.0
"""Seconds after which a dispatcher that has nothing to report says how many deliveries run."""


class BundleItem(NamedTuple):
    """One delivery of a bundle."""

    target: str
    """The rest of its URL behind the common folder, verbatim: the name of the task, and the query if there is one."""
    headers: Headers
    """All header lines of the single delivery, save the signature."""
    body: bytes
    """UTF-8."""


class ItemOutcome(NamedTuple):
    """The response to one delivery of a bundle."""

    place: int
    """The place of the delivery in the bundle; the first one has 0."""
    status: int
    headers: Headers
    body: bytes
    after_ms: int
    """Milliseconds from the arrival of the bundle to this line. A proxy that holds the lines back shows in it."""


class StillRunning(NamedTuple):
    """A line that reports no outcome."""

    deliveries: int
    """How many deliveries of the bundle run."""


def item_line(item: BundleItem) -> bytes | None:
    """The line of a delivery, with its end; None if its body is not UTF-8: it must be delivered singly."""
    try:
        body = item.body.decode()
    except UnicodeDecodeError:
        return None
    return quick_json.dumps({"to": item.target, "headers": item.headers, "body": body}) + b"\n"


def read_items(body: bytes) -> list[BundleItem]:
    """The deliveries of a bundle whose signature is verified. Raises ValueError for anything that is not a bundle."""
    lines = body.split(b"\n")
    if lines.pop():
        raise ValueError("the last line of the bundle has no end")
    if not 0 < len(lines) <= MAX_ITEMS:
        raise ValueError(f"a bundle has 1 to {MAX_ITEMS} deliveries, not {len(lines)}")
    return [_item(_object(line)) for line in lines]


def outcome_line(outcome: ItemOutcome) -> bytes:
    """The line of an outcome, with its end. Its body must be UTF-8."""
    return (
        quick_json.dumps(
            {
                "at": outcome.place,
                "status": outcome.status,
                "headers": outcome.headers,
                "body": outcome.body.decode(),
                "ms": outcome.after_ms,
            }
        )
        + b"\n"
    )


def running_line(count: int) -> bytes:
    """The line that says that `count` deliveries run, with its end."""
    return b'{"running":%d}\n' % count


def read_line(line: bytes) -> ItemOutcome | StillRunning:
    """A line of the response to a bundle, without its end. Raises ValueError for any other text."""
    value = _object(line)
    if _is_count(running := value.get("running")):
        return StillRunning(running)
    place, status, body, after_ms = value.get("at"), value.get("status"), value.get("body"), value.get("ms")
    if not (_is_count(place) and _is_count(status) and 200 <= status <= 599 and _is_count(after_ms)):
        raise ValueError("a line of the response is neither an outcome nor a number of deliveries that run")
    return ItemOutcome(place, status, _headers(value.get("headers")), _body(body), after_ms)


def _item(value: dict[str, Any]) -> BundleItem:
    target = value.get("to")
    if not isinstance(target, str) or not target or "/" in target.partition("?")[0]:
        raise ValueError("a delivery of the bundle has no target")
    return BundleItem(target, _headers(value.get("headers")), _body(value.get("body")))


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = quick_json.loads(line)
    except ValueError as error:
        raise ValueError(f"a line is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("a line is not a JSON object")
    return value


def _headers(value: object) -> Headers:
    if type(value) is not list:
        raise ValueError("headers are not a list")
    for line in value:
        if not (type(line) is list and len(line) == 2 and type(line[0]) is str and type(line[1]) is str):
            raise ValueError("headers are not pairs of texts")
    return tuple(map(tuple, value))


def _body(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("a body is not a text")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise ValueError("a body has half of a surrogate pair") from None


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0  # a bool is an int to isinstance
