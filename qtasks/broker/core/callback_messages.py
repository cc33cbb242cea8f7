"""The messages that tell of an attempt: callbacks and failure callbacks (docs/protocol.md 3.6, 4.4). Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import orjson

from qtasks.broker.ports import Failure
from qtasks.protocol import views, wire
from qtasks.protocol.messages import DEFAULT_TIMEOUT_MS, Message, PublishOptions, Redaction, Response

_JSON: Final = "application/json"
_PLAIN: Final = PublishOptions()


def wanted(message: Message) -> bool:
    """Whether an attempt of the message may have to be told of."""
    return message.options.callback is not None or message.options.failure_callback is not None


def of_attempt(
    message: Message,
    outcome: Response | Failure,
    *,
    ids: tuple[str, str],
    dead_letter_id: str | None,
    now_ms: int,
) -> tuple[Message, ...]:
    """The callback of an attempt, and the failure callback if the message has finally failed.

    Every attempt has a callback (docs/compatibility.md A40).

    `dead_letter_id` says that it was the last.
    """
    options = message.options
    response = outcome if isinstance(outcome, Response) else None
    error = None if response else outcome.error if isinstance(outcome, Failure) else None
    created: list[Message] = []
    if options.callback is not None:
        body = orjson.dumps(views.callback_json(message, response, error=error))
        created.append(_compose(message, ids[0], options.callback, options.callback_options, body, now_ms))
    if options.failure_callback is not None and dead_letter_id is not None:
        body = orjson.dumps(views.callback_json(message, response, error=error, dead_letter_id=dead_letter_id))
        created.append(
            _compose(message, ids[1], options.failure_callback, options.failure_callback_options, body, now_ms)
        )
    return tuple(created)


def _compose(
    source: Message, message_id: str, url: str, own: PublishOptions | None, body: bytes, now_ms: int
) -> Message:
    """A callback message: its own options, the retries of its source unless it says otherwise.

    A callback has no callback, only a failure callback, and only where one was asked for: the chain ends.
    """
    own = own or _PLAIN
    options = replace(
        own,
        method=own.method or "POST",
        content_type=_JSON,
        labels=own.labels or source.options.labels,
        redact=own.redact or _inherited(source.options.redact),
        callback=None,
        callback_options=None,
        deduplication_id=None,
        content_based_deduplication=None,
    )
    if options.not_before_s is not None:
        not_before_ms = max(now_ms, options.not_before_s * 1000)
    else:
        not_before_ms = now_ms + (options.delay_ms or 0)
    return Message(
        id=message_id,
        account=source.account,
        url=url,
        method=options.method or "POST",
        headers=wire.delivery_headers(options),
        body=body,
        created_ms=now_ms,
        not_before_ms=not_before_ms,
        max_retries=source.max_retries if options.retries is None else options.retries,
        timeout_ms=options.timeout_ms or DEFAULT_TIMEOUT_MS,
        caller_ip=source.caller_ip,
        options=options,
    )


def _inherited(redaction: Redaction | None) -> Redaction | None:
    """What the source hides is in the callback's body, whatever it is: so that is hidden too."""
    return None if redaction is None else replace(redaction, body=True)
