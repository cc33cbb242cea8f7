"""Converts the values of the protocol to database rows and back. Shared by every SQL store."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any, Final, NamedTuple

import apsw
import orjson

from qtasks.protocol import wire
from qtasks.protocol.messages import DeadLetter, Headers, LogEntry, Message, PublishOptions, Response, State


def fetch(db: apsw.Connection, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All rows of a query."""
    return db.execute(sql, values).fetchall()


# -- messages


class MessageRow(NamedTuple):
    """The columns of table ``messages`` that a `Message` is made of; the fields are the names of the columns."""

    id: str
    account: int
    url: str
    method: str
    headers: str
    created_ms: int
    not_before_ms: int
    max_retries: int
    timeout_ms: int
    caller_ip: str
    retried: int
    options: str | None
    queue: str | None
    url_group: str | None
    endpoint: str | None
    schedule_id: str | None
    call_id: str | None
    end_callback: str | None
    interrupted_for_ms: int | None
    not_before_s: int | None


MESSAGE_COLUMNS: Final = ", ".join(f"m.{name}" for name in MessageRow._fields)
"""For queries on ``messages m``; a row of these is a `MessageRow`."""

_DEFAULTS: Final = PublishOptions()
_STORED_ELSEWHERE: Final[Mapping[str, Any]] = {
    name: getattr(_DEFAULTS, name)
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
        "call_id",
        "end_callback",
        "interrupted_for_ms",
    )
}
"""Options that have a column of their own or matter only on acceptance: column ``options`` omits them."""
_other_options: Final = attrgetter(*(name for name in wire.OPTION_NAMES if name not in _STORED_ELSEWHERE))
_NO_OTHER_OPTIONS: Final = _other_options(_DEFAULTS)


def pack_message(message: Message) -> MessageRow:
    """The inverse of `unpack_message`, without the body."""
    return MessageRow(
        message.id,
        message.account,
        message.url,
        message.method,
        pack_headers(message.headers),
        message.created_ms,
        message.not_before_ms,
        message.max_retries,
        message.timeout_ms,
        message.caller_ip,
        message.retried,
        pack_options(message.options),
        message.queue,
        message.url_group,
        message.endpoint,
        message.schedule_id,
        message.options.call_id,
        message.options.end_callback,
        message.options.interrupted_for_ms,
        message.options.not_before_s,
    )


def unpack_message(row: MessageRow, body: bytes) -> Message:
    """The message in a row and its body."""
    return Message(
        id=row.id,
        account=row.account,
        url=row.url,
        method=row.method,
        headers=unpack_headers(row.headers),
        body=body,
        created_ms=row.created_ms,
        not_before_ms=row.not_before_ms,
        max_retries=row.max_retries,
        timeout_ms=row.timeout_ms,
        caller_ip=row.caller_ip,
        retried=row.retried,
        options=_options(row),
        queue=row.queue,
        url_group=row.url_group,
        endpoint=row.endpoint,
        schedule_id=row.schedule_id,
    )


def _options(row: MessageRow) -> PublishOptions:
    """The options of a message: those in column ``options``, and those with a column of their own."""
    call_id, end_callback, interrupted_for_ms, not_before_s = own = row[-4:]
    if own == (None, None, None, None):
        return _DEFAULTS if row.options is None else unpack_options(row.options)
    if row.options is None:
        return PublishOptions(
            call_id=call_id,
            end_callback=end_callback,
            interrupted_for_ms=interrupted_for_ms,
            not_before_s=not_before_s,
        )
    return replace(
        unpack_options(row.options),
        call_id=call_id,
        end_callback=end_callback,
        interrupted_for_ms=interrupted_for_ms,
        not_before_s=not_before_s,
    )


def checksum(message: MessageRow, body: bytes) -> int:
    """CRC-32 over what is sent and how. A stored message that does not match it any more is never delivered."""
    lines = f"{message.id}\n{message.url}\n{message.headers}\n{message.options or ''}\n"
    if message.call_id is not None or message.end_callback is not None:
        lines += f"{message.call_id}\n{message.end_callback}\n"
    return zlib.crc32(body, zlib.crc32(lines.encode()))


def pack_headers(headers: Headers) -> str:
    """Header lines as JSON text."""
    return orjson.dumps(headers).decode()


def unpack_headers(text: str) -> Headers:
    """The inverse of `pack_headers`."""
    return tuple((name, value) for name, value in orjson.loads(text))


def pack_options(options: PublishOptions) -> str | None:
    """The options without a column of their own, as header lines in JSON; None if there are none."""
    if _other_options(options) == _NO_OTHER_OPTIONS:
        return None
    return pack_headers(wire.write(replace(options, **_STORED_ELSEWHERE)))


def unpack_options(text: str) -> PublishOptions:
    """The inverse of `pack_options`."""
    return wire.read(unpack_headers(text))


# -- the history of messages


def response(status: int | None, head: str | None, body: bytes | None) -> Response | None:
    """The response in the three columns of a log entry or dead letter; None if there was no HTTP response."""
    if not status:
        return None
    return Response(status=status, headers=unpack_headers(head or "[]"), body=body or b"")


def log_entry(row: tuple[Any, ...]) -> LogEntry:
    """A log entry from ``n, time_ms, state, error, next_ms, status, head, body, message body`` and a `MessageRow`."""
    n, time_ms, state, error, next_ms, status, head, body, message_body, *message = row
    return LogEntry(
        cursor=f"{time_ms}-{n}",
        time_ms=time_ms,
        state=State(state),
        message=unpack_message(MessageRow._make(message), message_body),
        error=error,
        next_delivery_ms=next_ms,
        response=response(status, head, body),
    )


def dead_letter(row: tuple[Any, ...]) -> DeadLetter:
    """A dead letter from ``failed_ms, n, error, status, head, body, message body`` and a `MessageRow`."""
    failed_ms, n, error, status, head, body, message_body, *message = row
    return DeadLetter(
        id=f"{failed_ms}-{n}",
        message=unpack_message(MessageRow._make(message), message_body),
        failed_ms=failed_ms,
        error=error,
        response=response(status, head, body),
    )
