"""The database row of a message, and the message in a row. Pure. Every SQL store has these columns.

A claim keeps the row as it is: a delivery needs few of its values, and to make a `Message` takes longer than to read
the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final, NamedTuple, get_args, get_type_hints

import orjson

from qtasks.protocol import wire
from qtasks.protocol.labels import argument_labels
from qtasks.protocol.messages import Headers, Message, PublishOptions, Redaction, changed


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
    """The message in a row, whose checksum is right, and its body. Raises ValueError if it cannot be read."""
    return _message(row, body, headers=unpack_headers(row.headers), options=_options(row))


def is_readable(row: MessageRow) -> bool:
    """True if `unpack_message` can read the row. A newer release may have stored what this one does not know."""
    try:
        unpack_headers(row.headers)
        if row.options is not None:
            _stored(row.options)
    except (ValueError, TypeError):
        return False
    return True


def shown_message(row: MessageRow, body: bytes | None) -> Message:
    """The message in a row and its body, both maybe damaged. Never raises: a message that is damaged says so.

    It has what can be read. All else has placeholders; without its options everything is redacted.
    """
    shape = tuple(map(type, row))
    if body is not None and (shape in _sound_shapes or _is_sound_shape(shape)):
        try:
            message = unpack_message(row, body)
        except (ValueError, TypeError, AttributeError):
            pass
        else:
            if all(type(name) is type(value) is str for name, value in message.headers):
                return message
    return _damaged_message(row, body)


def _message(
    row: MessageRow, body: bytes, *, headers: Headers, options: PublishOptions, damaged: bool = False
) -> Message:
    return Message(
        id=row.id,
        account=row.account,
        url=row.url,
        method=row.method,
        headers=headers,
        body=body,
        created_ms=row.created_ms,
        not_before_ms=row.not_before_ms,
        max_retries=row.max_retries,
        timeout_ms=row.timeout_ms,
        caller_ip=row.caller_ip,
        retried=row.retried,
        options=options,
        queue=row.queue,
        url_group=row.url_group,
        endpoint=row.endpoint,
        schedule_id=row.schedule_id,
        damaged=damaged,
    )


_VALUE_TYPES: Final = tuple(get_args(hint) or (hint,) for hint in get_type_hints(MessageRow).values())
"""The types that the value of each column may have."""
_sound_shapes: Final[set[tuple[type, ...]]] = set()
"""Rows with values of these types were seen, and are sound: a few thousand at most, because each column has two."""


def _is_sound_shape(shape: tuple[type, ...]) -> bool:
    if all(kind in kinds for kind, kinds in zip(shape, _VALUE_TYPES, strict=True)):
        _sound_shapes.add(shape)
        return True
    return False


def readable(row: MessageRow) -> MessageRow:
    """The row with a placeholder for each value of a wrong type: empty text, or 0."""
    return MessageRow._make(
        value if type(value) in kinds else None if type(None) in kinds else kinds[0]()
        for value, kinds in zip(row, _VALUE_TYPES, strict=True)
    )


def marked_damaged(message: Message) -> Message:
    """The message, which says that it is damaged."""
    return replace(message, damaged=True)


def _damaged_message(row: MessageRow, body: bytes | None) -> Message:
    row = readable(row)
    headers = shown_headers(row.headers)
    try:
        options = _options(row)
    except (ValueError, TypeError, AttributeError):
        options = _options(row._replace(options=None))
        options = replace(options, redact=Redaction(body=True, all_headers=True))
    return _message(row, body if isinstance(body, bytes) else b"", headers=headers, options=options, damaged=True)


def _options(row: MessageRow) -> PublishOptions:
    """The options of a message: those in column ``options``, and those with a column of their own."""
    call_id, end_callback, interrupted_for_ms, not_before_s = own = row[-4:]
    if row.options is None:
        if own == (None, None, None, None):
            return _DEFAULTS
        stored, failure_callback = _DEFAULTS, None
    else:
        stored, is_reported_at_end = _stored(row.options)
        failure_callback = end_callback if is_reported_at_end else stored.failure_callback
    return changed(
        stored,
        call_id=call_id,
        end_callback=end_callback,
        interrupted_for_ms=interrupted_for_ms,
        not_before_s=not_before_s,
        failure_callback=failure_callback,
    )


def hides_body(options: str | None) -> bool:
    """True if these options, of column ``options``, keep the body of the message from those who look at it.

    Those that cannot be read do.
    """
    if options is None:
        return False
    try:
        redact = _stored(options)[0].redact
    except (ValueError, TypeError):
        return True
    return redact is not None and redact.body


def has_callbacks(row: MessageRow) -> bool:
    """True if the end of an attempt may create a callback or a failure callback. The row must be readable.

    A failure callback to the URL of the end callback does not count: the end callback reports the failure there.
    """
    if row.options is None:
        return False
    stored, _ = _stored(row.options)
    return stored.callback is not None or stored.failure_callback not in (None, row.end_callback)


def pack_headers(headers: Headers) -> str:
    """Header lines as JSON text."""
    return orjson.dumps(headers).decode()


def unpack_headers(text: str) -> Headers:
    """The inverse of `pack_headers`. Raises ValueError for a text that holds no header lines."""
    return _unpack_short(text) if len(text) <= _SHORT else _unpack(text)


def _unpack(text: str) -> Headers:
    return tuple((name, value) for name, value in orjson.loads(text))


_SHORT: Final = 1024
"""Header lines of at most this length, in characters, are remembered: the messages of one task mostly have the same."""
_unpack_short: Final = lru_cache(maxsize=1024)(_unpack)


def shown_headers(text: str) -> Headers:
    """The header lines in a text that may be damaged; none if it cannot be read."""
    try:
        headers = unpack_headers(text)
    except (ValueError, TypeError):
        return ()
    return headers if all(type(name) is type(value) is str for name, value in headers) else ()


_REPORTED_AT_END: Final = ("Upstash-Failure-Callback", "end")
"""In place of a failure callback to the URL of the end callback, so that all messages of a task have equal options."""
_ONLY_REPORTED_AT_END: Final = pack_headers((_REPORTED_AT_END,))


_ARGUMENTS: Final = "Qtasks-Argument-Labels"
"""The line with the labels of arguments, the last one: so all messages of a task have equal lines before it."""
_BEFORE_ARGUMENTS: Final = f'["{_ARGUMENTS}",'


def pack_options(options: PublishOptions) -> str | None:
    """The options without a column of their own, as header lines in JSON; None if there are none."""
    if not any(map(argument_labels.is_argument_label, options.labels)):
        return _pack_shared(options)
    chosen = argument_labels.without(options.labels)
    labels = ",".join(filter(argument_labels.is_argument_label, options.labels))
    shared = _pack_shared(changed(options, labels=chosen))
    return f"{'[' if shared is None else f'{shared[:-1]},'}{pack_headers(((_ARGUMENTS, labels),))[1:]}"


def _pack_shared(options: PublishOptions) -> str | None:
    is_reported_at_end = (
        options.failure_callback is not None
        and options.failure_callback == options.end_callback
        and options.failure_callback_options is None
    )
    own = changed(options, failure_callback=None) if is_reported_at_end else options
    if _other_options(own) == _NO_OTHER_OPTIONS:
        return _ONLY_REPORTED_AT_END if is_reported_at_end else None
    lines = wire.write(changed(own, **_STORED_ELSEWHERE))
    return pack_headers((_REPORTED_AT_END, *lines) if is_reported_at_end else lines)


def unpack_options(text: str) -> PublishOptions:
    """The options in header lines in JSON, those of a schedule or a message. Raises ValueError."""
    return wire.read(unpack_headers(text))


def _read_stored(text: str) -> tuple[PublishOptions, bool]:
    """The options in column ``options``, and whether the end callback is the failure callback as well."""
    lines = unpack_headers(text)
    if lines and lines[0] == _REPORTED_AT_END:
        return wire.read(lines[1:]), True
    return wire.read(lines), False


_read_short_stored: Final = lru_cache(maxsize=1024)(_read_stored)


def _stored(text: str) -> tuple[PublishOptions, bool]:
    """As `_read_stored`; what is read of a short text is remembered, without the labels of arguments."""
    place = text.rfind(_BEFORE_ARGUMENTS)  # no text in JSON contains it: its quotation marks would be escaped
    if place == -1:
        return _read_short_stored(text) if len(text) <= _SHORT else _read_stored(text)
    options, is_reported_at_end = _stored(f"{text[:place].rstrip(',')}]")
    _, labels = orjson.loads(text[place:-1])
    return changed(options, labels=(*options.labels, *str(labels).split(","))), is_reported_at_end
