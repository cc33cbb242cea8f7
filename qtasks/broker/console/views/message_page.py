"""`GET console/api/messages/ID`: all that is known of one message."""

from __future__ import annotations

import hashlib
from typing import Any, Final, NamedTuple

import apsw

from qtasks.broker.api import messages as api_messages
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, json_response
from qtasks.broker.console import table_rows
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.core import wall_times
from qtasks.broker.core.message_builder import LLM_URL
from qtasks.broker.core.observed.shown_urls import without_secrets
from qtasks.broker.core.past_attempts import HistoryEntry, PastAttempt, attempts
from qtasks.broker.core.values import MessageStatus
from qtasks.broker.core.wall_times import added
from qtasks.broker.store.verbs import stored
from qtasks.broker.store.verbs.reads import history, queries, status
from qtasks.broker.store.verbs.reads.waits import Wait, wait_of
from qtasks.protocol import signing
from qtasks.protocol.messages import Message, Response
from qtasks.protocol.views import Json, body_json, grouped

CALLBACKS: Final = 50
"""Callbacks that are shown of a message; every attempt may have one."""
_WITHOUT_PAYLOADS: Final = frozenset(
    {
        "messageId",
        "callId",
        "topicName",
        "endpointName",
        "queueName",
        "scheduleId",
        "method",
        "maxRetries",
        "label",
        "labels",
        "flowControlKey",
        "parallelism",
        "rate",
        "period",
        "notBefore",
        "createdAt",
        "state",
        "retried",
        "nextDeliveryTime",
        "waitsFor",
        "dlqId",
    }
)
"""What a viewer without payloads sees of a message."""


class _Known(NamedTuple):
    """What the store has of one message."""

    seq: int
    status: MessageStatus
    entries: list[HistoryEntry]
    failed_before: int
    wait: Wait | None
    callbacks: list[int]
    parent: int | None
    tick_ms: int | None


async def show(context: ConsoleContext, viewer: Viewer, request: ApiRequest, message_id: str) -> ApiResponse:
    """The message of that id, or the newest one of the call of that id."""
    return json_response(await detail(context, viewer, message_id))


async def detail(context: ConsoleContext, viewer: Viewer, message_id: str) -> dict[str, Any]:
    """All that is known of that message. HttpError 404 if there is none."""
    now_ms, offset_ms = context.clock.now_ms(), context.clock.offset_ms()
    stored_message = await context.store.read(
        _read, viewer.account, message_id, now_ms=now_ms, parallelism=context.api.parallelism
    )
    if stored_message is None:
        raise HttpError(404, f"message {message_id[:128]} not found")
    parents = [] if stored_message.parent is None else [stored_message.parent]
    rows = await table_rows.read_by_seq(context, viewer, [stored_message.seq, *stored_message.callbacks, *parents])
    if stored_message.seq not in rows:
        raise HttpError(404, f"message {message_id[:128]} was removed a moment ago")
    message = stored_message.status.message
    shown = api_messages.view_of(stored_message.status, offset_ms)
    if not viewer.sees_payloads:
        shown = table_rows.without_argument_labels({name: shown[name] for name in shown if name in _WITHOUT_PAYLOADS})
    first_due_ms = max(message.created_ms, wall_times.due_ms(message, offset_ms))
    past = attempts(stored_message.entries, first_due_ms=first_due_ms, failed_before=stored_message.failed_before)
    return {
        "row": rows[stored_message.seq],
        "message": shown,
        "attempts": [_attempt(attempt, viewer, offset_ms) for attempt in past],
        "waiting": None if stored_message.wait is None else _waiting(stored_message.wait, offset_ms),
        "log": [_entry(entry, viewer, offset_ms) for entry in stored_message.entries],
        "deadLetterId": stored_message.status.dead_letter_id,
        "signature": await _signature(context, message, viewer),
        "callbacks": [rows[seq] for seq in stored_message.callbacks if seq in rows],
        "parent": None if stored_message.parent is None else rows.get(stored_message.parent),
        "run": None
        if message.schedule_id is None
        else {"scheduleId": message.schedule_id, "tickMs": stored_message.tick_ms},
    }


def _read(db: apsw.Connection, account: int, message_id: str, *, now_ms: int, parallelism: int) -> _Known | None:
    seq = queries.seq_of(db, account, message_id)
    current = None if seq is None else status.message_status(db, account, message_id, now_ms=now_ms)
    kept = None if seq is None else stored.one(db, seq)
    if seq is None or current is None or kept is None:
        return None
    entries = history.entries(db, seq)
    message = current.message
    return _Known(
        seq,
        current,
        entries,
        history.failed_before(db, seq, entries[0].n) if len(entries) == history.MOST else 0,
        None if message.damaged else wait_of(db, kept, now_ms=now_ms, parallelism=parallelism),
        history.callbacks(db, seq, CALLBACKS),
        history.parent_of(db, seq),
        None if message.schedule_id is None else history.tick_of(db, account, message.schedule_id, message.created_ms),
    )


def _attempt(attempt: PastAttempt, viewer: Viewer, offset_ms: int) -> Json:
    return {
        "number": attempt.number,
        "startedMs": attempt.started_ms + offset_ms,
        "endedMs": added(attempt.ended_ms, offset_ms),
        "outcome": attempt.outcome,
        "error": table_rows.shown_error(attempt.error, viewer),
        "response": None if attempt.response is None else _response(attempt.response, viewer),
        "nextMs": added(attempt.next_ms, offset_ms),
        "timing": _timing(attempt),
    }


def _timing(attempt: PastAttempt) -> dict[str, int]:
    """What is known of where its time went."""
    connect_ms, first_byte_ms, body_ms, bundled = attempt.timing
    parts = {
        "queuedMs": None if attempt.due_ms is None else max(0, attempt.started_ms - attempt.due_ms),
        "connectMs": connect_ms,
        "firstByteMs": first_byte_ms,
        "bodyMs": body_ms,
        "bundled": bundled,
    }
    return {name: value for name, value in parts.items() if value is not None}


def _response(response: Response, viewer: Viewer) -> Json:
    if not viewer.sees_payloads:
        return {"status": response.status}
    return {"status": response.status, "header": grouped(response.headers), **body_json("body", response.body)}


def _waiting(wait: Wait, offset_ms: int) -> Json:
    return {
        "reason": wait.reason,
        "text": wait.text,
        "untilMs": added(wait.until_ms, offset_ms),
        "subject": wait.subject,
    }


def _entry(entry: HistoryEntry, viewer: Viewer, offset_ms: int) -> Json:
    return {
        "timeMs": entry.time_ms + offset_ms,
        "state": entry.state,
        "error": table_rows.shown_error(entry.error, viewer),
        "nextMs": added(entry.next_ms, offset_ms),
    }


async def _signature(context: ConsoleContext, message: Message, viewer: Viewer) -> dict[str, Any] | None:
    """What the destination can check, with a short name of the key; None for what is not sent to an endpoint."""
    if message.url == LLM_URL:
        return None
    keys = await context.api.keys.of(viewer.account)
    url = message.url if viewer.sees_payloads else without_secrets(message.url)
    return {"url": url, "issuer": signing.ISSUER, "keyId": hashlib.sha256(keys.current.encode()).hexdigest()[:8]}
