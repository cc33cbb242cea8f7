"""`console/api/dead-letters`: those that match a filter, and actions on all of them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from qtasks.broker.api import dead_letters
from qtasks.broker.api.api_context import ApiContext
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, Query, json_response, read_object
from qtasks.broker.console import bulk, table_rows
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.console.filter_request import read_filter, unreadable
from qtasks.broker.console.filter_text import FilterError
from qtasks.broker.core.observed.message_filter import ConsoleFilter
from qtasks.broker.core.operator_changes import OperatorChange, several
from qtasks.broker.loops.indexer import Indexer
from qtasks.broker.store.verbs.insight import search
from qtasks.broker.store.verbs.insight.search import DeadMatch
from qtasks.broker.store.verbs.reads.queries import BadCursorError, split_id

PAGE: Final = 50
LARGEST_PAGE: Final = 200
SCAN_MOST: Final = 50_000
"""Dead letters that one request looks at, at most, from the latest on."""
_ID: Final = re.compile(r"[0-9]{1,18}-[0-9]{1,18}")

Action = Callable[[ApiContext, OperatorChange, Sequence[str]], Awaitable[int]]


async def list_dead_letters(context: ConsoleContext, viewer: Viewer, request: ApiRequest) -> ApiResponse:
    """`GET`: one page, latest first, and how many match in all."""
    query = Query(request.query)
    try:
        criteria = read_filter(context, viewer, query.last("filter") or "")
    except FilterError as error:
        return unreadable(error)
    before, read_ms = _cursor(query.last("cursor")), context.api.wall_ms()
    count = query.count(default=PAGE, most=LARGEST_PAGE)
    await Indexer(context.store, context.clock).catch_up()
    letters = await _matching(context, viewer, criteria)
    page = [letter for letter in letters if before is None or (letter.failed_ms, letter.n) < before]
    last = page[count - 1].id if len(page) > count else None
    rows = await _rows(context, viewer, page[:count])
    return json_response({"deadLetters": rows, "cursor": last, "matching": len(letters), "timeMs": read_ms})


async def retry_dead_letters(context: ConsoleContext, viewer: Viewer, request: ApiRequest) -> ApiResponse:
    """`POST .../retry`: publish them again."""
    return await _act(context, viewer, request, "dlq.retry", dead_letters.retry_by_ids)


async def delete_dead_letters(context: ConsoleContext, viewer: Viewer, request: ApiRequest) -> ApiResponse:
    """`POST .../delete`."""
    return await _act(context, viewer, request, "dlq.delete", dead_letters.delete_by_ids)


async def _act(context: ConsoleContext, viewer: Viewer, request: ApiRequest, what: str, action: Action) -> ApiResponse:
    """Act on the dead letters that a request names, or on a portion of those that match, the oldest first.

    Those that failed after `untilMs` stay: a message that was retried may have failed again meanwhile.
    """
    body = await read_object(request)
    if "ids" in body:
        ids = _ids(body["ids"])
        change = context.api.change_by(request, viewer.account, what, several(ids))
        return json_response({"done": await action(context.api, change, ids), "left": 0})
    text = body.get("filter")
    if not isinstance(text, str):
        raise HttpError(400, "name the dead letters by ids, or by a filter")
    expected, until_ms = bulk.expected_of(body), _until_ms(context, body)
    try:
        criteria = read_filter(context, viewer, text)
    except FilterError as error:
        return unreadable(error)
    await Indexer(context.store, context.clock).catch_up()
    letters = [letter for letter in await _matching(context, viewer, criteria) if letter.failed_ms <= until_ms]
    if len(letters) > expected:
        return bulk.too_many(len(letters))
    change = context.api.change_by(request, viewer.account, what, text or "all", is_payload=bool(text))
    chosen = letters if body.get("whole") is True else letters[-bulk.PORTION :]
    done = await action(context.api, change, [letter.id for letter in reversed(chosen)])
    rest = bulk.rest_of(len(letters), done)
    return json_response({"done": done, "left": rest, "untilMs": until_ms + context.clock.offset_ms()})


async def _matching(context: ConsoleContext, viewer: Viewer, criteria: ConsoleFilter) -> list[DeadMatch]:
    """All that match, latest first, as far as `SCAN_MOST` allows. Others read between its steps."""
    letters: list[DeadMatch] = []
    before: tuple[int, int] | None = None
    looked_at = 0
    while True:
        matches = await context.store.read_long(
            search.dead_letters, viewer.account, criteria, before=before, count=search.SCAN
        )
        letters += matches.letters
        looked_at, before = looked_at + matches.looked_at, matches.before
        if before is None or looked_at >= SCAN_MOST:
            return letters


async def _rows(context: ConsoleContext, viewer: Viewer, letters: Sequence[DeadMatch]) -> list[dict[str, Any]]:
    offset_ms = context.clock.offset_ms()
    by_seq = await table_rows.read_by_seq(context, viewer, [letter.seq for letter in letters])
    return [
        {
            **by_seq[letter.seq],
            "deadLetterId": letter.id,
            "failedMs": letter.failed_ms + offset_ms,
            "responseStatus": letter.response_status or None,
        }
        for letter in letters
        if letter.seq in by_seq
    ]


def _cursor(text: str | None) -> tuple[int, int] | None:
    try:
        return split_id(text) if text else None
    except BadCursorError as error:
        raise HttpError(400, str(error)) from None


def _ids(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) and _ID.fullmatch(item) for item in value):
        raise HttpError(400, "ids: expected an array of ids such as 1725323658779-0")
    if len(value) > bulk.PORTION:
        raise HttpError(400, f"ids: at most {bulk.PORTION} in one request")
    return list(dict.fromkeys(value))


def _until_ms(context: ConsoleContext, body: dict[str, Any]) -> int:
    """Member ``untilMs`` in the broker's time; absent: now."""
    until_ms = body.get("untilMs")
    if until_ms is None:
        return context.clock.now_ms()
    if not isinstance(until_ms, int) or isinstance(until_ms, bool):
        raise HttpError(400, "untilMs: expected a whole number")
    return until_ms - context.clock.offset_ms()
