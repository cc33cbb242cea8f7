"""Schedules: create, replace, list, pause, delete (docs/protocol.md 2.7, 5.8)."""

from __future__ import annotations

from dataclasses import replace

import apsw

from qtasks.broker import ids
from qtasks.broker.api import pages, workflows
from qtasks.broker.api.api_context import ApiContext
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, json_response
from qtasks.broker.api.validation import check_api, check_callbacks_of_queue, check_policy, split_target
from qtasks.broker.core import wall_times
from qtasks.broker.loops.scheduler import schedule_ms
from qtasks.broker.store.verbs import schedules, url_groups
from qtasks.protocol import cron, views, wire
from qtasks.protocol.messages import MAX_BODY, Schedule


async def create_schedule(context: ApiContext, account: int, request: ApiRequest, raw_target: str) -> ApiResponse:
    """`POST /v2/schedules/{destination}`."""
    return await store_schedule(context, account, request, split_target(raw_target))


async def store_schedule(
    context: ApiContext, account: int, request: ApiRequest, target: wire.Target, *, queue: str | None = None
) -> ApiResponse:
    """Create a schedule, or replace the one with the same id. Also for a publish with `Upstash-Cron`."""
    workflows.check_headers([name for name, _ in (*request.headers, *target.query)])
    try:
        kind = wire.destination_kind(target.destination)
        options = wire.read(request.headers, target.query)
        if queue is not None:
            options = replace(options, queue=wire.check_name(queue, "queue name"))
        if kind == "url":
            wire.check_url(target.destination)
        expression = cron.parse(options.cron or "")
    except wire.WireError as error:
        raise HttpError(error.status, str(error)) from None
    except ValueError as error:
        raise HttpError(400, str(error)) from None
    if kind == "group" and await context.store.read(url_groups.group, account, target.destination) is None:
        raise HttpError(400, f"{wire.INVALID_SCHEME} (there is no URL group named {target.destination[:128]!r})")
    if kind == "api":
        check_api(context, target.destination, options)
    if options.queue is not None:
        check_callbacks_of_queue(options)
    check_policy(context, *([target.destination] if kind == "url" else []), options=options)
    body = await request.read_body(MAX_BODY)
    now_ms, offset_ms = context.clock.now_ms(), context.clock.offset_ms()
    schedule = Schedule(
        id=options.schedule_id or ids.schedule_id(context.random),
        account=account,
        destination=target.destination,
        cron=expression.text,
        options=options,
        body=body,
        caller_ip=request.client_ip,
        created_ms=now_ms,
    )
    schedule = replace(schedule, next_ms=expression.next_ms(schedule_ms(schedule, now_ms, offset_ms)))
    change = context.change_by(request, account, "schedule.set", schedule.id)
    await context.write(change, schedules.put_schedule, schedule)
    context.wake_scheduler()
    return json_response({"scheduleId": schedule.id})


async def list_schedules(context: ApiContext, account: int, request: ApiRequest) -> ApiResponse:
    """`GET /v2/schedules`."""

    def view(db: apsw.Connection, schedule_id: str) -> views.Json | None:
        schedule = schedules.schedule(db, account, schedule_id)
        return None if schedule is None else view_of(context, schedule)

    return await pages.array_response(context.store, await context.store.read(schedules.schedule_ids, account), view)


async def get_schedule(context: ApiContext, account: int, request: ApiRequest, schedule_id: str) -> ApiResponse:
    """`GET /v2/schedules/{id}`."""
    return json_response(view_of(context, await _existing(context, account, schedule_id)))


async def delete_schedule(context: ApiContext, account: int, request: ApiRequest, schedule_id: str) -> ApiResponse:
    """`DELETE /v2/schedules/{id}`: 404 for an unknown id (docs/compatibility.md A31)."""
    change = context.change_by(request, account, "schedule.delete", schedule_id)
    if not await context.write(change, schedules.delete_schedule, account, schedule_id):
        raise _not_found(schedule_id)
    return json_response({})


async def pause_schedule(context: ApiContext, account: int, request: ApiRequest, schedule_id: str) -> ApiResponse:
    """`PATCH` or `POST /v2/schedules/{id}/pause` (docs/compatibility.md A22)."""
    change = context.change_by(request, account, "schedule.pause", schedule_id)
    if not await context.write(
        change, schedules.pause_schedule, account, schedule_id, paused=True, next_ms=None, cause=change
    ):
        raise _not_found(schedule_id)
    return json_response({})


async def resume_schedule(context: ApiContext, account: int, request: ApiRequest, schedule_id: str) -> ApiResponse:
    """`PATCH` or `POST /v2/schedules/{id}/resume`: runs missed during the pause are not repeated."""
    schedule = await _existing(context, account, schedule_id)
    change = context.change_by(request, account, "schedule.resume", schedule_id)
    await context.write(
        change, schedules.pause_schedule, account, schedule_id, paused=False, next_ms=_next_ms(context, schedule)
    )
    context.wake_scheduler()
    return json_response({})


async def _existing(context: ApiContext, account: int, schedule_id: str) -> Schedule:
    if (schedule := await context.store.read(schedules.schedule, account, schedule_id)) is None:
        raise _not_found(schedule_id)
    return schedule


def _not_found(schedule_id: str) -> HttpError:
    return HttpError(404, f"schedule {schedule_id[:128]} not found")


def view_of(context: ApiContext, schedule: Schedule) -> views.Json:
    """A schedule as ``GET /v2/schedules`` shows it."""
    # A paused schedule stores the time at which it was paused; show when it would run if it were resumed now.
    if schedule.paused:
        schedule = replace(schedule, next_ms=_next_ms(context, schedule))
    return views.schedule_json(wall_times.of_schedule(schedule, context.clock.offset_ms()))


def _next_ms(context: ApiContext, schedule: Schedule) -> int | None:
    now_ms = schedule_ms(schedule, context.clock.now_ms(), context.clock.offset_ms())
    try:
        return cron.parse(schedule.cron).next_ms(now_ms)
    except ValueError:  # for example a removed time zone; the schedule loop reports it in the `error` of the schedule
        return now_ms
