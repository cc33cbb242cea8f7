"""`GET console/api/overview`: what waits, runs and fails, now and over time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, Query, json_response
from qtasks.broker.console import table_rows
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.core.observed import histograms
from qtasks.broker.core.observed.statuses import Status
from qtasks.broker.loops.indexer import Indexer
from qtasks.broker.store.verbs.insight import totals
from qtasks.broker.store.verbs.insight.figures import Figures
from qtasks.broker.store.verbs.insight.totals import DestinationFigures, NextSchedule, Totals
from qtasks.protocol import cron

DEFAULT_MINUTES: Final = 60
LEAST_MINUTES: Final = 5
MOST_MINUTES: Final = 10_080
OTHERS: Final = "all other destinations"
"""The name of those that are counted together."""
_NOW: Final = (Status.SCHEDULED, Status.WAITING, Status.RUNNING, Status.RETRYING, Status.DEAD)
_BACKLOG: Final = (Status.WAITING, Status.RUNNING, Status.RETRYING)
"""What a destination has still to do, and could do now."""


async def show(context: ConsoleContext, viewer: Viewer, request: ApiRequest) -> ApiResponse:
    """The figures of the last `minutes` minutes."""
    minutes = Query(request.query).integer("minutes", low=LEAST_MINUTES, high=MOST_MINUTES) or DEFAULT_MINUTES
    await Indexer(context.store, context.clock).catch_up()
    now_ms, offset_ms = context.clock.now_ms(), context.clock.offset_ms()
    figures = await context.store.read_long(totals.totals, viewer.account, minutes=minutes, now_ms=now_ms)
    return json_response(
        {
            "timeMs": now_ms + offset_ms,
            "behind": figures.behind,
            "now": counts_json(figures.counts),
            "oldestWaiting": await _oldest_waiting(context, viewer, figures, offset_ms),
            "series": _series(figures, offset_ms),
            "destinations": [_destination(each, figures.rate_ms) for each in figures.destinations],
            "nextSchedules": [_schedule(schedule, offset_ms) for schedule in figures.next_schedules],
            "held": figures.held._asdict(),
            "checklist": {
                "broker": True,
                "dispatcher": figures.has_dispatcher or bool(context.manifests.prefixes(viewer.account, ())),
                "message": figures.has_message,
                "run": figures.has_run,
            },
        }
    )


def counts_json(counts: Mapping[Status, int]) -> dict[str, int]:
    """The member `now` of the overview."""
    return {status.name.lower(): counts.get(status, 0) for status in _NOW}


async def _oldest_waiting(
    context: ConsoleContext, viewer: Viewer, figures: Totals, offset_ms: int
) -> dict[str, Any] | None:
    if figures.oldest_waiting is None:
        return None
    seq, since_ms = figures.oldest_waiting
    rows = await table_rows.read(context, viewer, [seq])
    return {**rows[0], "sinceMs": since_ms + offset_ms} if rows else None


def _series(figures: Totals, offset_ms: int) -> dict[str, Any]:
    return {
        "stepMs": figures.step_ms,
        "fromMs": figures.series[0].start_ms + offset_ms,
        "points": [
            {**_events(point.figures), **_durations(point.figures), **_waits(point.figures)} for point in figures.series
        ],
    }


def _events(figures: Figures) -> dict[str, int]:
    return {
        "created": figures.created,
        "delivered": figures.delivered,
        "failed": figures.failed,
        "retried": figures.retried,
    }


def _durations(figures: Figures) -> dict[str, int | None]:
    return {
        "p50Ms": histograms.quantile_ms(figures.durations, 0.5),
        "p95Ms": histograms.quantile_ms(figures.durations, 0.95),
    }


def _waits(figures: Figures) -> dict[str, int | None]:
    return {
        "waitP50Ms": histograms.quantile_ms(figures.waits, 0.5),
        "waitP95Ms": histograms.quantile_ms(figures.waits, 0.95),
    }


def _destination(each: DestinationFigures, rate_ms: int) -> dict[str, Any]:
    per_minute = each.delivered_lately * 60_000 / rate_ms
    backlog = sum(each.counts.get(status, 0) for status in _BACKLOG)
    return {
        "destination": each.url or OTHERS,
        "task": each.task,
        **counts_json(each.counts),
        **_events(each.figures),
        "perMinute": round(per_minute, 2),
        **_durations(each.figures),
        "timeToEmptyS": round(backlog * 60 / per_minute) if per_minute else None,
    }


def _schedule(schedule: NextSchedule, offset_ms: int) -> dict[str, Any]:
    return {
        "scheduleId": schedule.schedule_id,
        "task": schedule.task,
        "destination": schedule.destination,
        "nextMs": schedule.next_ms + (offset_ms if cron.is_interval(schedule.cron) else 0),
    }
