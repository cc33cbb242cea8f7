"""Values of the protocol <-> columns of the store; shared by every SQL backend."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any, Final

import orjson

from qtasks.protocol import wire
from qtasks.protocol.messages import DeadLetter, Headers, LogEntry, Message, PublishOptions, Response, State

MESSAGE_COLUMNS: Final = (
    "id, account, url, method, headers, created_ms, not_before_ms, max_retries, timeout_ms, caller_ip, retried,"
    " options, queue, url_group, endpoint, schedule_id"
)
"""In the order `message` reads them; qualify with a table alias through `columns`."""

_PLAIN: Final = PublishOptions()
_ELSEWHERE: Final[Mapping[str, Any]] = {
    name: getattr(_PLAIN, name)
    for name in (
        "method",
        "content_type",
        "forward",
        "forward_all",
        "delay_ms",
        "not_before_s",
        "retries",
        "timeout_ms",
        "deduplication_id",
        "content_based_deduplication",
    )
}
"""Options that a message has columns for, or that are done with when it is accepted; here nothing is said of them."""
_rest: Final = attrgetter(*(name for name in wire.OPTION_NAMES if name not in _ELSEWHERE))
_NO_REST: Final = _rest(_PLAIN)


def columns(alias: str) -> str:
    """`MESSAGE_COLUMNS` of the table known as `alias`."""
    return ", ".join(f"{alias}.{name.strip()}" for name in MESSAGE_COLUMNS.split(","))


def message(row: tuple[Any, ...], body: bytes) -> Message:
    """The message in a row of `MESSAGE_COLUMNS` and its body."""
    return Message(
        id=row[0],
        account=row[1],
        url=row[2],
        method=row[3],
        headers=unpack_headers(row[4]),
        body=body,
        created_ms=row[5],
        not_before_ms=row[6],
        max_retries=row[7],
        timeout_ms=row[8],
        caller_ip=row[9],
        retried=row[10],
        options=_PLAIN if row[11] is None else unpack_options(row[11]),
        queue=row[12],
        url_group=row[13],
        endpoint=row[14],
        schedule_id=row[15],
    )


def pack_headers(headers: Headers) -> str:
    """Header lines as JSON text."""
    return orjson.dumps(headers).decode()


def unpack_headers(text: str) -> Headers:
    """The inverse of `pack_headers`."""
    return tuple((name, value) for name, value in orjson.loads(text))


def pack_options(options: PublishOptions) -> str | None:
    """What of `options` has no column of its own, as header lines in JSON; None when that is nothing."""
    if _rest(options) == _NO_REST:
        return None
    return pack_headers(wire.write(replace(options, **_ELSEWHERE)))


def unpack_options(text: str) -> PublishOptions:
    """The inverse of `pack_options`."""
    return wire.read(unpack_headers(text))


def checksum(message_id: str, url: str, headers: str, options: str | None, body: bytes) -> int:
    """CRC-32 over everything that is sent and how: what does not match it any more is never delivered."""
    return zlib.crc32(body, zlib.crc32(f"{message_id}\n{url}\n{headers}\n{options or ''}\n".encode()))


def response(status: int | None, head: str | None, body: bytes | None) -> Response | None:
    """The response in the columns that every table with one has; None when there was no HTTP answer."""
    if not status:
        return None
    return Response(status=status, headers=unpack_headers(head or "[]"), body=body or b"")


def log_entry(row: tuple[Any, ...]) -> LogEntry:
    """A log entry from ``n, time_ms, state, error, next_ms, status, head, body, message body`` and the message."""
    n, time_ms, state, error, next_ms, status, head, body, message_body, *rest = row
    return LogEntry(
        cursor=f"{time_ms}-{n}",
        time_ms=time_ms,
        state=State(state),
        message=message(tuple(rest), message_body),
        error=error,
        next_delivery_ms=next_ms,
        response=response(status, head, body),
    )


def dead_letter(row: tuple[Any, ...]) -> DeadLetter:
    """A dead letter from ``failed_ms, n, error, status, head, body, message body`` and the message."""
    failed_ms, n, error, status, head, body, message_body, *rest = row
    return DeadLetter(
        id=f"{failed_ms}-{n}",
        message=message(tuple(rest), message_body),
        failed_ms=failed_ms,
        error=error,
        response=response(status, head, body),
    )
