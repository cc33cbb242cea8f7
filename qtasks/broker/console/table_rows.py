"""A message in a list, as JSON: the row of docs/console.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.core import wall_times
from qtasks.broker.store.verbs.insight.shown import ShownMessage, shown
from qtasks.protocol.labels import argument_labels
from qtasks.protocol.views import Json

HIDDEN: Final = "hidden: the texts of endpoints are not shown to this token"
"""In place of an error, for those who see no payloads."""


def row(message: ShownMessage, viewer: Viewer, *, offset_ms: int) -> dict[str, Any]:
    """The row of a message, with wall times: the broker's times plus `offset_ms`.

    Its labels are those that people have chosen, without those by which it is found by its arguments.
    """
    return {
        "messageId": message.message_id,
        "callId": message.call_id,
        "task": message.task,
        "destination": message.destination,
        "status": message.status.word,
        "createdMs": message.created_ms + offset_ms,
        "dueMs": wall_times.added(message.due_ms, offset_ms),
        "finishedMs": wall_times.added(message.finished_ms, offset_ms),
        "attempts": message.attempts,
        "maxRetries": message.max_retries,
        "error": shown_error(message.error, viewer),
        "queue": message.queue,
        "flowKey": message.flow_key,
        "scheduleId": message.schedule_id,
        "labels": argument_labels.without(message.labels),
    }


def without_argument_labels(shown: Json) -> Json:
    """What the API shows of a message or a schedule, without labels that say what its arguments are."""
    labels = shown.get("labels")
    if not isinstance(labels, list):
        return shown
    kept = list(argument_labels.without(labels))
    return {**shown, "label": kept[0] if kept else None, "labels": kept or None}


def shown_error(error: str | None, viewer: Viewer) -> str | None:
    """The error, or a fixed text for a viewer without payloads."""
    return error if error is None or viewer.sees_payloads else HIDDEN


async def read(context: ConsoleContext, viewer: Viewer, seqs: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of the messages `seqs`, in that order, without those that have been removed meanwhile."""
    return list((await read_by_seq(context, viewer, seqs)).values())


async def read_by_seq(context: ConsoleContext, viewer: Viewer, seqs: Sequence[int]) -> dict[int, dict[str, Any]]:
    """As `read`, by `seq`."""
    now_ms, offset_ms = context.clock.now_ms(), context.clock.offset_ms()
    messages = await context.store.read_long(shown, viewer.account, seqs, now_ms=now_ms)
    return {message.seq: row(message, viewer, offset_ms=offset_ms) for message in messages}
