"""Messages, log entries and dead letters as the API shows them (docs/protocol.md 2.5, 2.9, 2.10).

Where official SDKs disagree on a name, both spellings are written (docs/compatibility.md A3 to A7). Redacted parts
become ``REDACTED:<sha256>`` (docs/protocol.md 5.12); deliveries use the originals and never pass through here.
"""

from __future__ import annotations

import base64
import hashlib

from qtasks.protocol import wire
from qtasks.protocol.headers import canonical_name
from qtasks.protocol.messages import (
    DEFAULT_RETRIES,
    DeadLetter,
    FlowControl,
    Headers,
    LogEntry,
    Message,
    PauseFacts,
    PublishOptions,
    Redaction,
    Response,
    Schedule,
    State,
)

Json = dict[str, object]
_NOTHING = Redaction()


def message_json(message: Message) -> Json:
    """The Message object of ``GET /v2/messages/{id}``; absent and empty fields are left out."""
    redaction = message.options.redact or _NOTHING
    return {
        **_common(message, redaction),
        **_body(message.body, redaction),
        **_callback_headers(message.options, redaction, suffix="Header"),
        "notBefore": message.not_before_ms,
        "createdAt": message.created_ms,
    }


def dead_letter_json(letter: DeadLetter) -> Json:
    """An entry of ``GET /v2/dlq``. `responseStatus` is 0 if there was no response; `error` then says why."""
    response = letter.response
    answer = _without_none(
        {
            "responseStatus": response.status if response else 0,
            "responseHeader": grouped(response.headers) if response else None,
            "error": letter.error,
        }
    )
    return {
        **message_json(letter.message),
        "dlqId": letter.id,
        **answer,
        **(body_json("responseBody", response.body) if response else {}),
    }


def schedule_json(schedule: Schedule) -> Json:
    """The Schedule object of ``GET /v2/schedules``; durations in seconds."""
    options = schedule.options
    redaction = options.redact or _NOTHING
    ip = schedule.caller_ip or None
    return {
        "scheduleId": schedule.id,
        "destination": schedule.destination,
        "cron": schedule.cron,
        "method": options.method or "POST",
        "createdAt": schedule.created_ms,
        "isPaused": schedule.paused,
        **pause_json(schedule.pause),
        "retries": DEFAULT_RETRIES if options.retries is None else options.retries,
        **_body(schedule.body, redaction),
        **_callback_headers(options, redaction, suffix="Header"),
        **_without_none(
            {
                "header": grouped(wire.delivery_headers(options), redaction),
                "delay": None if options.delay_ms is None else options.delay_ms // 1000,
                "timeout": None if options.timeout_ms is None else options.timeout_ms // 1000,
                "retryDelayExpression": options.retry_delay,
                "callback": options.callback,
                "failureCallback": options.failure_callback,
                "queueName": options.queue,
                "callerIP": ip,
                "callerIp": ip,
                "label": options.labels[0] if options.labels else None,
                "labels": list(options.labels) or None,
                "nextScheduleTime": schedule.next_ms,
                "lastScheduleTime": schedule.last_ms,
                "lastScheduleStates": {name: str(state) for name, state in schedule.last_run} or None,
                "error": schedule.error,
                **_limits(options.flow_control),
            }
        ),
    }


def pause_json(pause: PauseFacts | None, offset_ms: int = 0) -> Json:
    """What is known of the pause of a schedule, queue or flow-control key (docs/protocol.md 5.19)."""
    if pause is None:
        return {}
    note = {} if pause.note is None else {"pauseNote": pause.note}
    return {"pausedAt": pause.paused_ms + offset_ms, "pausedBy": pause.who, **note}


def callback_json(
    message: Message, outcome: Response | None, *, error: str | None = None, dead_letter_id: str | None = None
) -> Json:
    """The body of a callback (docs/protocol.md 4.4). Bodies are base64, times are text (docs/compatibility.md A8).

    A callback is a delivery: its bodies are the originals. A redacted header of the message shows only its hash: the
    callback does not need the key of a provider. `status` is 0 if there was no response; `error` then says why.
    """
    return {
        "status": outcome.status if outcome else 0,
        "header": (grouped(outcome.headers) if outcome else None) or {},
        "body": _base64(outcome.body) if outcome else "",
        "retried": message.retried,
        "maxRetries": message.max_retries,
        "sourceMessageId": message.id,
        "url": message.url,
        "method": message.method,
        "sourceHeader": grouped(message.headers, message.options.redact or _NOTHING) or {},
        "sourceBody": _base64(message.body),
        "notBefore": str(message.not_before_ms),
        "createdAt": str(message.created_ms),
        "callerIP": message.caller_ip,
        **_without_none(
            {
                "dlqId": dead_letter_id,
                "topicName": message.url_group,
                "endpointName": message.endpoint,
                "scheduleId": message.schedule_id,
                "error": error,
            }
        ),
    }


def end_callback_json(
    message: Message, state: State, outcome: Response | None, *, error: str | None, dead_letter_id: str | None
) -> Json:
    """The body of an end callback: that of a failure callback, with the `state` in place of `sourceBody`."""
    fields = callback_json(message, outcome, error=error, dead_letter_id=dead_letter_id)
    del fields["sourceBody"]
    return {**fields, "state": str(state)}


def log_json(entry: LogEntry) -> Json:
    """An entry of ``GET /v2/events``. Bodies are base64 here, a redacted one is plain text."""
    message = entry.message
    redaction = message.options.redact or _NOTHING
    body = _redacted(message.body) if redaction.body else _base64(message.body)
    return {
        "time": entry.time_ms,
        "state": str(entry.state),
        **_common(message, redaction),
        **_without_none(
            {
                "error": entry.error,
                "nextDeliveryTime": entry.next_delivery_ms,
                "body": body if message.body else None,
                "timeout": message.timeout_ms,
                "retryDelayExpr": message.options.retry_delay,
            }
        ),
        **_callback_headers(message.options, redaction, suffix="Header"),
        **_callback_headers(message.options, redaction, suffix="Headers"),
        **_log_response(entry),
    }


def _log_response(entry: LogEntry) -> Json:
    response = entry.response
    if response is None:
        return {"responseStatus": 0} if entry.state is State.ERROR else {}
    headers = grouped(response.headers)
    return _without_none(
        {
            "responseStatus": response.status,
            "responseBody": _base64(response.body) if response.body else None,
            "responseHeader": headers,
            "responseHeaders": headers,
        }
    )


def _common(message: Message, redaction: Redaction) -> Json:
    """What every view of a message shows under the same names."""
    options = message.options
    return _without_none(
        {
            "messageId": message.id,
            "callId": options.call_id,
            "url": message.url,
            "topicName": message.url_group,
            "endpointName": message.endpoint,
            "queueName": message.queue,
            "scheduleId": message.schedule_id,
            "method": message.method,
            "header": grouped(message.headers, redaction),
            "maxRetries": message.max_retries,
            "retryDelayExpression": options.retry_delay,
            "callback": options.callback,
            "failureCallback": options.failure_callback,
            "callerIP": message.caller_ip or None,
            "callerIp": message.caller_ip or None,
            "label": options.labels[0] if options.labels else None,
            "labels": list(options.labels) or None,
            **_limits(options.flow_control),
        }
    )


def _limits(flow: FlowControl | None) -> Json:
    if flow is None:
        return {}
    return {"flowControlKey": flow.key, "parallelism": flow.parallelism, "rate": flow.rate, "period": flow.period_s}


def _callback_headers(options: PublishOptions, redaction: Redaction, *, suffix: str) -> Json:
    pairs = (("callback", options.callback_options), ("failureCallback", options.failure_callback_options))
    return _without_none({name + suffix: grouped(nested.forward, redaction) for name, nested in pairs if nested})


def grouped(headers: Headers, redaction: Redaction = _NOTHING) -> dict[str, list[str]] | None:
    """Name to values, as Go's servers show headers; None when there are none."""
    grouped: dict[str, list[str]] = {}
    for name, value in headers:
        hidden = redaction.all_headers or name in redaction.headers
        grouped.setdefault(canonical_name(name), []).append(_redacted(value.encode()) if hidden else value)
    return grouped or None


def _body(body: bytes, redaction: Redaction) -> Json:
    return {"body": _redacted(body)} if body and redaction.body else body_json("body", body)


def body_json(name: str, body: bytes) -> Json:
    """`body` as text under `name`, or as base64 under ``<name>Base64`` when it is not UTF-8; nothing when empty."""
    if not body:
        return {}
    try:
        return {name: body.decode()}
    except UnicodeDecodeError:
        return {f"{name}Base64": _base64(body)}


def _base64(body: bytes) -> str:
    return base64.b64encode(body).decode("ascii")


def _redacted(value: bytes) -> str:
    return f"REDACTED:{hashlib.sha256(value).hexdigest()}"


def _without_none(fields: Json) -> Json:
    return {name: value for name, value in fields.items() if value is not None}
