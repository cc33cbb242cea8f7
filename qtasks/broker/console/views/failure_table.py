"""`console/api/failures`: failed attempts in groups, one group, and a retry of its dead letters."""

from __future__ import annotations

from typing import Any, Final

from qtasks.broker.api import dead_letters
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, Query, json_response, read_object
from qtasks.broker.console import bulk, table_rows
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.console.filter_request import read_filter, unreadable
from qtasks.broker.console.filter_text import FilterError
from qtasks.broker.loops.indexer import Indexer
from qtasks.broker.store.verbs.insight import failure_reads
from qtasks.broker.store.verbs.insight.failure_reads import FailureFigures

DEFAULT_HOURS: Final = 24
LEAST_HOURS: Final = 4
MOST_HOURS: Final = 168
PAGE: Final = 50


async def list_failures(context: ConsoleContext, viewer: Viewer, request: ApiRequest) -> ApiResponse:
    """`GET failures`: those of the last `hours` hours, latest first."""
    query = Query(request.query)
    try:
        criteria = read_filter(context, viewer, query.last("filter") or "")
    except FilterError as error:
        return unreadable(error)
    hours = _hours(query)
    await Indexer(context.store, context.clock).catch_up()
    now_ms = context.clock.now_ms()
    groups = await context.store.read_long(failure_reads.failures, viewer.account, criteria, hours=hours, now_ms=now_ms)
    return json_response({"failures": [_view(context, viewer, group) for group in groups]})


async def show_failure(context: ConsoleContext, viewer: Viewer, request: ApiRequest, fingerprint: str) -> ApiResponse:
    """`GET failures/FINGERPRINT`: the group and a page of its messages, newest first."""
    query = Query(request.query)
    hours, below = _hours(query), query.integer("cursor")
    group = await _existing(context, viewer, fingerprint, hours)
    seqs, cursor = await context.store.read_long(
        failure_reads.members, group.number, below=below, count=query.count(default=PAGE, most=200)
    )
    return json_response(
        {
            **_view(context, viewer, group),
            "rows": await table_rows.read(context, viewer, seqs),
            "cursor": None if cursor is None else str(cursor),
        }
    )


async def group(context: ConsoleContext, viewer: Viewer, fingerprint: str) -> dict[str, Any]:
    """A failure as the list shows it. HttpError 404 if there is none."""
    return _view(context, viewer, await _existing(context, viewer, fingerprint, DEFAULT_HOURS))


async def retry_failure(context: ConsoleContext, viewer: Viewer, request: ApiRequest, fingerprint: str) -> ApiResponse:
    """`POST failures/FINGERPRINT/retry`: retry a portion of the dead letters that failed with it for good."""
    expected = bulk.expected_of(await read_object(request))
    group = await _existing(context, viewer, fingerprint, DEFAULT_HOURS)
    if group.dead_letters > expected:
        return bulk.too_many(group.dead_letters)
    ids = await context.store.read_long(failure_reads.dead_letter_ids, viewer.account, group.number, count=bulk.PORTION)
    change = context.api.change_by(request, viewer.account, "dlq.retry", f"failure {fingerprint}")
    retried = await dead_letters.retry_by_ids(context.api, change, ids)
    return json_response({"retried": retried, "left": bulk.rest_of(group.dead_letters, retried)})


async def _existing(context: ConsoleContext, viewer: Viewer, fingerprint: str, hours: int) -> FailureFigures:
    await Indexer(context.store, context.clock).catch_up()
    group = await context.store.read_long(
        failure_reads.failure, viewer.account, fingerprint, hours=hours, now_ms=context.clock.now_ms()
    )
    if group is None:
        raise HttpError(404, f"no failure has the fingerprint {fingerprint[:64]}")
    return group


def _hours(query: Query) -> int:
    return query.integer("hours", low=LEAST_HOURS, high=MOST_HOURS) or DEFAULT_HOURS


def _view(context: ConsoleContext, viewer: Viewer, group: FailureFigures) -> dict[str, Any]:
    offset_ms = context.clock.offset_ms()
    return {
        "fingerprint": group.fingerprint,
        "task": group.task,
        "destination": group.destination,
        "error": table_rows.shown_error(group.error, viewer),
        "attempts": group.attempts,
        "messages": group.messages,
        "deadLetters": group.dead_letters,
        "firstMs": group.first_ms + offset_ms,
        "lastMs": group.last_ms + offset_ms,
        "sparkline": group.sparks,
        "sampleId": group.sample_id,
    }
