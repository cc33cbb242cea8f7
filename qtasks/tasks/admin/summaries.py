"""Messages and dead letters as lists show them (the rows of docs/console.md), and how answers of a service are read."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

from qtasks.protocol.labels import argument_labels
from qtasks.tasks.send.end_callback import dispatcher_error

if TYPE_CHECKING:
    from qtasks.qstash.dlq import DlqMessage
    from qtasks.qstash.log import Log

_STATUSES: Final[Mapping[str, str]] = {
    "CREATED": "waiting",
    "ACTIVE": "running",
    "RETRY": "retrying",
    "ERROR": "retrying",
    "DELIVERED": "delivered",
    "FAILED": "failed",
    "CANCELED": "canceled",
    "CANCEL_REQUESTED": "canceled",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageSummary:
    """One message in a list. Times are Unix milliseconds; None: unknown, or it does not apply."""

    message_id: str
    call_id: str | None = None
    task: str | None = None
    """Name of the task; None for a message to another place."""
    destination: str
    """The URL without its query."""
    status: str
    """``scheduled``, ``waiting``, ``running``, ``retrying``, ``delivered``, ``failed`` or ``canceled``."""
    created_ms: int
    due_ms: int | None = None
    finished_ms: int | None = None
    attempts: int = 0
    """Attempts so far, the first one included, without those that were interrupted and spent no retry."""
    max_retries: int | None = None
    error: str | None = None
    """The error of the last failed attempt."""
    queue: str | None = None
    flow_key: str | None = None
    schedule_id: str | None = None
    labels: Sequence[str] = ()
    """Those that were chosen for it, without those of searchable arguments."""
    argument_labels: Sequence[str] = field(default=(), repr=False)
    """Those of searchable arguments, if the list was read from the log of a service."""
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The arguments by name and position, if the list was read from the log of a service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterSummary(MessageSummary):
    """One dead letter in a list."""

    dlq_id: str
    """Id of the dead letter; it differs from the message id."""
    failed_ms: int
    response_status: int | None = None
    """HTTP status of the last response; 0 if there was none."""


@dataclass(frozen=True, slots=True)
class MessagePage:
    """One page of messages, newest first."""

    messages: list[MessageSummary]
    cursor: str | None
    """Continues the list; None at its end."""


@dataclass(frozen=True, slots=True)
class DeadLetterPage:
    """One page of dead letters."""

    dead_letters: list[DeadLetterSummary]
    cursor: str | None
    """Continues the list; None at its end."""
    matching: int | None
    """How many match in all; None if the service does not count them."""


def of_row(row: Mapping[str, Any]) -> MessageSummary:
    """Read a row of the console API."""
    return MessageSummary(**_row_fields(row))


def dead_letter_of_row(row: Mapping[str, Any]) -> DeadLetterSummary:
    """Read a row of the dead letters of the console API."""
    return DeadLetterSummary(
        **_row_fields(row),
        dlq_id=str(row["deadLetterId"]),
        failed_ms=int(row["failedMs"]),
        response_status=row.get("responseStatus"),
    )


def _row_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "message_id": str(row["messageId"]),
        "call_id": row.get("callId"),
        "task": row.get("task"),
        "destination": str(row["destination"]),
        "status": str(row["status"]),
        "created_ms": int(row["createdMs"]),
        "due_ms": row.get("dueMs"),
        "finished_ms": row.get("finishedMs"),
        "attempts": row.get("attempts") or 0,
        "max_retries": row.get("maxRetries"),
        "error": row.get("error"),
        "queue": row.get("queue"),
        "flow_key": row.get("flowKey"),
        "schedule_id": row.get("scheduleId"),
        "labels": tuple(row.get("labels") or ()),
    }


def of_log(entries: Sequence[Log], now_ms: int) -> MessageSummary:
    """A message from its log entries, the newest first; the last one is that of its acceptance."""
    newest, first = entries[0], entries[-1]
    call = call_in(_bytes(first.body_base64))
    status = _STATUSES.get(newest.state.value, "waiting")
    due_ms = newest.next_delivery_time
    if status == "waiting" and due_ms is not None and due_ms > now_ms:
        status = "scheduled"
    return MessageSummary(
        message_id=first.message_id,
        call_id=call.get("id"),
        task=_task(first.url, is_call=bool(call)),
        destination=first.url.partition("?")[0],
        status=status,
        created_ms=first.time,
        due_ms=due_ms,
        finished_ms=newest.time if status in ("delivered", "failed", "canceled") else None,
        attempts=sum(entry.state.value == "ACTIVE" for entry in entries),
        max_retries=first.max_retries,
        error=_last_error(entries),
        queue=first.queue,
        flow_key=None if first.flow_control is None else first.flow_control.key,
        schedule_id=first.schedule_id,
        **_labels(first.labels or ([first.label] if first.label else ())),
        arguments=_arguments(call),
    )


def _last_error(entries: Sequence[Log]) -> str | None:
    """Why the last attempt failed. Its entries are newer than its start; the response is in any of them."""
    failed = [number for number, entry in enumerate(entries) if entry.error or (entry.response_status or 0) >= 300]
    if not failed:
        return None
    attempt = list(takewhile(lambda entry: entry.state.value != "ACTIVE", entries[failed[0] :]))
    answered = next((entry for entry in attempt if entry.response_body), attempt[0])
    return _failure(attempt[0].error, _bytes(answered.response_body), answered.response_status)


def of_dead_letter(letter: DlqMessage) -> DeadLetterSummary:
    """A dead letter as the API of QStash shows it."""
    call = call_in((letter.body or "").encode() or _bytes(letter.body_base64))
    answered = (letter.response_body or "").encode() or _bytes(letter.response_body_base64)
    failed_ms = letter.dlq_id.partition("-")[0]
    return DeadLetterSummary(
        message_id=letter.message_id,
        call_id=letter.call_id or call.get("id"),
        task=_task(letter.url, is_call=bool(call)),
        destination=letter.url.partition("?")[0],
        status="failed",
        created_ms=letter.created_at,
        finished_ms=int(failed_ms) if failed_ms.isdigit() else None,
        attempts=letter.max_retries + 1,
        max_retries=letter.max_retries,
        error=_failure(None, answered, letter.response_status),
        queue=letter.queue,
        flow_key=None if letter.flow_control is None else letter.flow_control.key,
        schedule_id=letter.schedule_id,
        **_labels(letter.labels or ([letter.label] if letter.label else ())),
        arguments=_arguments(call),
        dlq_id=letter.dlq_id,
        failed_ms=int(failed_ms) if failed_ms.isdigit() else letter.created_at,
        response_status=letter.response_status,
    )


def call_in(body: bytes) -> dict[str, Any]:
    """The envelope in the body of a message of the framework; an empty dict for any other body."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    is_call = isinstance(document, dict) and "v" in document and not document.keys().isdisjoint({"args", "coded"})
    return document if is_call else {}


def _arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    args, kwargs = call.get("args"), call.get("kwargs")
    positional = {str(position): value for position, value in enumerate(args if isinstance(args, list) else ())}
    return {**positional, **(kwargs if isinstance(kwargs, dict) else {})}


def _labels(labels: Sequence[str]) -> dict[str, Any]:
    return {
        "labels": argument_labels.without(labels),
        "argument_labels": tuple(filter(argument_labels.is_argument_label, labels)),
    }


def _task(url: str, *, is_call: bool) -> str | None:
    return url.partition("?")[0].rpartition("/")[2] if is_call else None


def _failure(error: str | None, body: bytes, status: int | None) -> str | None:
    """Why an attempt failed: in the words of the dispatcher, else of the service, else by the status."""
    return dispatcher_error(body) or error or (f"the destination answered {status}" if status else None)


def _bytes(text: str | None) -> bytes:
    """What base64 in a log entry stands for. Services also put plain text there."""
    try:
        return base64.b64decode(text or "", validate=True)
    except (ValueError, binascii.Error):
        return (text or "").encode()
