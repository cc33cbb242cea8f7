"""`GET console/api/schedules` in plain English, and `POST .../run`, which publishes one run now."""

from __future__ import annotations

import contextlib
from typing import Final, NamedTuple

import apsw

from qtasks.broker import ids
from qtasks.broker.api import schedules as api_schedules
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, json_response
from qtasks.broker.console import table_rows
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.console.message_targets import task_of
from qtasks.broker.core.message_builder import publications, publish_of_schedule
from qtasks.broker.core.observed.shown_urls import without_secrets
from qtasks.broker.loops.scheduler import schedule_ms
from qtasks.broker.store.verbs import audit, schedules, url_groups
from qtasks.broker.store.verbs.reads.ticks import TickRow, missed_ticks, recent_ticks
from qtasks.protocol import cron, cron_english, wire
from qtasks.protocol.messages import Schedule
from qtasks.protocol.views import Json

NEXT: Final = 5
"""Runs that are shown ahead."""
CHANGE_MS: Final = 60 * 24 * 60 * 60 * 1000
"""How far ahead a change of the clocks is announced."""
RECENT: Final = 30
"""Runs that are shown of the past."""
MOST: Final = 300
"""Schedules that are listed."""
_HIDDEN: Final = frozenset(
    {
        "body",
        "bodyBase64",
        "header",
        "callback",
        "callbackHeader",
        "failureCallback",
        "failureCallbackHeader",
        "callerIP",
        "callerIp",
        "error",
    }
)
"""What a viewer without payloads does not see of a schedule; of the destination they do not see the query."""


class _StoredSchedule(NamedTuple):
    schedule: Schedule
    ticks: list[TickRow]
    missed: int


async def list_schedules(context: ConsoleContext, viewer: Viewer, request: ApiRequest) -> ApiResponse:
    """The schedules, oldest first."""
    kept = await context.store.read_long(_read, viewer.account)
    return json_response({"zone": "UTC", "schedules": [_view(context, viewer, each) for each in kept]})


def _read(db: apsw.Connection, account: int) -> list[_StoredSchedule]:
    listed: list[_StoredSchedule] = []
    for schedule_id in schedules.schedule_ids(db, account)[:MOST]:
        if (schedule := schedules.schedule(db, account, schedule_id)) is not None:
            ticks = recent_ticks(db, account, schedule_id, RECENT)
            listed.append(_StoredSchedule(schedule, ticks, missed_ticks(db, account, schedule_id)))
    return listed


def _view(context: ConsoleContext, viewer: Viewer, kept: _StoredSchedule) -> Json:
    schedule, offset_ms = kept.schedule, context.clock.offset_ms()
    in_wall_time_ms = offset_ms if cron.is_interval(schedule.cron) else 0
    shown = api_schedules.view_of(context.api, schedule)
    if not viewer.sees_payloads:
        shown = table_rows.without_argument_labels({name: shown[name] for name in shown if name not in _HIDDEN})
        shown["destination"] = without_secrets(schedule.destination)
    return {
        "schedule": shown,
        "task": task_of(schedule.destination, schedule.options),
        "destination": without_secrets(schedule.destination),
        "english": cron_english.describe(schedule.cron),
        "timeZone": _zone(schedule.cron),
        "clockChange": _clock_change(context, schedule.cron),
        "nextMs": [next_ms + in_wall_time_ms for next_ms in _next_runs(context, schedule)],
        "recent": [
            {
                "tickMs": tick.tick_ms + in_wall_time_ms,
                "outcome": tick.outcome.lower(),
                "messages": tick.message_ids,
                "lateMs": max(0, tick.stored_ms + offset_ms - tick.tick_ms - in_wall_time_ms)
                if tick.outcome == "FIRED"
                else None,
            }
            for tick in kept.ticks
        ],
        "missed": kept.missed,
    }


def _zone(text: str) -> str:
    try:
        return cron.parse(text).zone
    except ValueError:  # a zone that the system does not know any more
        return "UTC"


def _clock_change(context: ConsoleContext, text: str) -> str | None:
    """What the next change of the clocks does to the runs, a sentence."""
    try:
        expression = cron.parse(text)
    except ValueError:
        return None
    change = expression.clock_change(context.api.wall_ms(), CHANGE_MS)
    return None if change is None else cron_english.describe_change(expression.zone, change)


def _next_runs(context: ConsoleContext, schedule: Schedule) -> list[int]:
    """The next runs in the schedule's time: what it would do if it were resumed now, if it is paused."""
    try:
        expression = cron.parse(schedule.cron)
    except ValueError:
        return []
    next_ms = schedule.next_ms
    if schedule.paused or next_ms is None:
        next_ms = expression.next_ms(schedule_ms(schedule, context.clock.now_ms(), context.clock.offset_ms()))
    runs: list[int] = []
    while next_ms is not None and len(runs) < NEXT:
        runs.append(next_ms)
        next_ms = expression.next_ms(next_ms)
    return runs


async def run_now(context: ConsoleContext, viewer: Viewer, request: ApiRequest, schedule_id: str) -> ApiResponse:
    """Publish what the next run of a schedule would publish; the schedule itself goes on as before."""
    api = context.api
    schedule = await context.store.read(schedules.schedule, viewer.account, schedule_id)
    if schedule is None:
        raise HttpError(404, f"schedule {schedule_id[:128]} not found")
    now_ms = context.clock.now_ms()
    group = None
    with contextlib.suppress(wire.WireError):
        if wire.destination_kind(schedule.destination) == "group":
            group = await context.store.read(url_groups.group, viewer.account, schedule.destination)
    try:
        publish = publish_of_schedule(schedule, group)
        run = list(publications(publish, new_id=lambda: ids.message_id(api.random, now_ms), now_ms=now_ms))
    except wire.WireError as error:
        raise HttpError(409, f"the schedule cannot run: {error}") from None
    await api.accept(run, now_ms=now_ms)
    await context.store.write(
        audit.record, api.change_by(request, viewer.account, "schedule.run", schedule_id), len(run)
    )
    return json_response({"messages": [publication.message.id for publication in run]}, 201)
