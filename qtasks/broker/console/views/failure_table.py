"""`console/api/failures`: failed attempts in groups, one group, and a retry of its dead letters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qtasks.broker.api import dead_letters
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, Query, json_response, read_object
from qtasks.broker.console import bulk, table_rows
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.console.filter_request import read_filter, unreadable
from qtasks.broker.console.filter_text import FilterError
from qtasks.broker.loops.indexer import Indexer
from qtasks.broker.store.verbs import audit
from qtasks.broker.store.verbs.insight import failure_reads, muted_failures
from qtasks.broker.store.verbs.insight.failure_reads import FailureFigures
from qtasks.broker.store.verbs.insight.muted_failures import Muted

DEFAULT_HOURS: Final = 24
LEAST_HOURS: Final = 4
MOST_HOURS: Final = 168
PAGE: Final = 50
LONGEST_MUTE_HOURS: Final = 30 * 24


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
    muted = await _muted(context, viewer)
    return json_response({"failures": [_view(context, viewer, group, muted) for group in groups]})


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
            **_view(context, viewer, group, await _muted(context, viewer)),
            "rows": await table_rows.read(context, viewer, seqs),
            "cursor": None if cursor is None else str(cursor),
        }
    )


async def group(context: ConsoleContext, viewer: Viewer, fingerprint: str) -> dict[str, Any]:
    """A failure as the list shows it. HttpError 404 if there is none."""
    failure = await _existing(context, viewer, fingerprint, DEFAULT_HOURS)
    return _view(context, viewer, failure, await _muted(context, viewer))


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


async def mute_failure(context: ConsoleContext, viewer: Viewer, request: ApiRequest, fingerprint: str) -> ApiResponse:
    """`POST failures/FINGERPRINT/mute` for so many hours; 0 ends it."""
    hours = (await read_object(request)).get("hours")
    if not isinstance(hours, int) or isinstance(hours, bool) or not 0 <= hours <= LONGEST_MUTE_HOURS:
        raise HttpError(400, f"hours: a whole number from 0, which ends it, to {LONGEST_MUTE_HOURS}")
    await _existing(context, viewer, fingerprint, DEFAULT_HOURS)
    now_ms = context.clock.now_ms()
    what = "failure.mute" if hours else "failure.unmute"
    change = context.api.change_by(request, viewer.account, what, f"failure {fingerprint}")
    await context.store.write(
        audit.audited(change, muted_failures.mute),
        viewer.account,
        fingerprint,
        until_ms=now_ms + hours * 3_600_000,
        who=change.actor.name,
        now_ms=now_ms,
    )
    return json_response({"failure": await group(context, viewer, fingerprint)})


async def _muted(context: ConsoleContext, viewer: Viewer) -> dict[str, Muted]:
    return await context.store.read(muted_failures.muted, viewer.account, now_ms=context.clock.now_ms())


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


def _view(context: ConsoleContext, viewer: Viewer, group: FailureFigures, muted: Mapping[str, Muted]) -> dict[str, Any]:
    offset_ms = context.clock.offset_ms()
    mute = muted.get(group.fingerprint)
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
        "muted": None if mute is None else {"untilMs": mute.until_ms + offset_ms, "who": mute.who},
    }
