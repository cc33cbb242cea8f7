"""Times as users know them: wall time, made from the broker's time by its offset. Pure.

Nothing changes when the offset is 0, as on nearly every machine.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from qtasks.broker.core.values import MessageCriteria
from qtasks.protocol import cron
from qtasks.protocol.messages import DeadLetter, LogEntry, Message, Schedule

Criteria = TypeVar("Criteria", bound=MessageCriteria)


def due_ms(message: Message, offset_ms: int) -> int:
    """When a new message is due, in the broker's time."""
    is_wall_time = message.options.not_before_s is not None
    return message.not_before_ms - (offset_ms if is_wall_time else 0)


def of_message(message: Message, offset_ms: int) -> Message:
    """`message` with its times as wall times."""
    if not offset_ms:
        return message
    return replace(
        message,
        created_ms=message.created_ms + offset_ms,
        not_before_ms=due_ms(message, offset_ms) + offset_ms,
    )


def of_log_entry(entry: LogEntry, offset_ms: int) -> LogEntry:
    """`entry` with its times as wall times."""
    if not offset_ms:
        return entry
    return replace(
        entry,
        time_ms=entry.time_ms + offset_ms,
        message=of_message(entry.message, offset_ms),
        next_delivery_ms=added(entry.next_delivery_ms, offset_ms),
    )


def of_dead_letter(letter: DeadLetter, offset_ms: int) -> DeadLetter:
    """`letter` with its times as wall times. Its id is a name, which stays."""
    if not offset_ms:
        return letter
    return replace(letter, message=of_message(letter.message, offset_ms), failed_ms=letter.failed_ms + offset_ms)


def of_schedule(schedule: Schedule, offset_ms: int) -> Schedule:
    """`schedule` with its times as wall times."""
    if not offset_ms:
        return schedule
    ticks_ms = offset_ms if cron.is_interval(schedule.cron) else 0
    return replace(
        schedule,
        created_ms=schedule.created_ms + offset_ms,
        next_ms=added(schedule.next_ms, ticks_ms),
        last_ms=added(schedule.last_ms, ticks_ms),
        pause=schedule.pause and schedule.pause._replace(paused_ms=schedule.pause.paused_ms + offset_ms),
    )


def of_criteria(criteria: Criteria, offset_ms: int) -> Criteria:
    """`criteria` with the user's dates in the broker's time."""
    if not offset_ms:
        return criteria
    return replace(criteria, from_ms=added(criteria.from_ms, -offset_ms), to_ms=added(criteria.to_ms, -offset_ms))


def added(time_ms: int | None, span_ms: int) -> int | None:
    """`time_ms` moved by a span; None stays None."""
    return None if time_ms is None else time_ms + span_ms
