"""The dead letter queue: listed, deleted, retried, one, many or by filter (docs/protocol.md 2.9)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from qtasks.broker import ids
from qtasks.broker.api import query_filters
from qtasks.broker.api.api_context import ApiContext
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, Query, json_response
from qtasks.broker.api.validation import check_not_before, check_policy
from qtasks.broker.core.message_builder import retry_of_dead_letter
from qtasks.broker.core.values import DeadLetterCriteria, Page, Publication
from qtasks.broker.store import dead_letters, queries
from qtasks.broker.store.queries import BadCursorError
from qtasks.protocol import views, wire
from qtasks.protocol.messages import DeadLetter, Message, PublishOptions

PAGE: Final = 100
"""Dead letters of a page, by default and at most (docs/compatibility.md A23)."""
_ID: Final = re.compile(r"[0-9]{1,18}-[0-9]{1,18}")


async def list_dead_letters(context: ApiContext, account: int, request: ApiRequest) -> ApiResponse:
    """`GET /v2/dlq`."""
    query = Query(request.query)
    which = query_filters.dead_letter_filter(query)
    if bad := [one for one in which.ids if not _ID.fullmatch(one)]:
        raise HttpError(400, f"dlqIds: expected an id such as 1725323658779-0, got {bad[0][:40]!r}")
    page = await _page(context, account, which, query.last("cursor") or None, query.count(default=PAGE, most=PAGE))
    answer: dict[str, object] = {"messages": [views.dead_letter_json(letter) for letter in page.items]}
    if page.cursor is not None:
        answer["cursor"] = page.cursor
    return json_response(answer)


async def get_dead_letter(context: ApiContext, account: int, request: ApiRequest, letter_id: str) -> ApiResponse:
    """`GET /v2/dlq/{dlqId}`."""
    return json_response(views.dead_letter_json(await _known(context, account, letter_id)))


async def delete_dead_letter(context: ApiContext, account: int, request: ApiRequest, letter_id: str) -> ApiResponse:
    """`DELETE /v2/dlq/{dlqId}`: 404 when it is gone."""
    await _known(context, account, letter_id)
    done = await context.store.write(
        dead_letters.delete_dead_letters, account, DeadLetterCriteria(ids=(letter_id,)), cursor=None, limit=1
    )
    if not done.count:  # somebody else was faster
        raise _not_found(letter_id)
    return json_response({"deleted": 1})


async def delete_dead_letters(context: ApiContext, account: int, request: ApiRequest) -> ApiResponse:
    """`DELETE /v2/dlq`: by ids, where those that are gone are skipped, or by filter, a page at a time."""
    query = await query_filters.read(request, query_filters.DEAD_LETTER_NAMES)
    deleted, cursor = 0, None
    for which, count in _portions(query):
        try:
            done = await context.store.write(
                dead_letters.delete_dead_letters, account, which, cursor=query.last("cursor") or None, limit=count
            )
        except BadCursorError as error:
            raise HttpError(400, str(error)) from None
        deleted, cursor = deleted + done.count, done.cursor
    return json_response({"deleted": deleted, **({} if cursor is None else {"cursor": cursor})})


async def retry_dead_letter(context: ApiContext, account: int, request: ApiRequest, letter_id: str) -> ApiResponse:
    """`POST /v2/dlq/retry/{dlqId}`: a new message in place of the entry; headers override what it was sent with."""
    letter = await _known(context, account, letter_id)
    taken = await _retry(context, account, [letter], _overrides(context, request))
    if not taken:
        raise _not_found(letter_id)
    return json_response({"messageId": taken[0].message.id, "url": taken[0].message.url}, 201)


async def retry_dead_letters(context: ApiContext, account: int, request: ApiRequest) -> ApiResponse:
    """`POST /v2/dlq/retry`: as for one, by ids or by filter, a page at a time."""
    query = await query_filters.read(request, query_filters.DEAD_LETTER_NAMES)
    overrides = _overrides(context, request)
    taken: list[Publication] = []
    cursor = None
    for which, count in _portions(query):
        cursor = query.last("cursor") or None
        while True:
            page = await _page(context, account, which, cursor, count)
            taken += await _retry(context, account, page.items, overrides)
            if (cursor := page.cursor) is None or not which.ids:
                break
    responses = [{"messageId": one.message.id, "url": one.message.url} for one in taken]
    return json_response({"responses": responses, **({} if cursor is None else {"cursor": cursor})}, 201)


def _portions(query: Query) -> list[tuple[DeadLetterCriteria, int]]:
    """What is selected, each with how many at most: one page of a filter, or all ids in some portions.

    Ids of which none can exist are left out: they are skipped as those that are gone.
    """
    which = query_filters.dead_letter_filter(query)
    if "dlqIds" not in query and "dlqId" not in query:
        return [(which, query.count(default=PAGE, most=PAGE))]
    known = tuple(one for one in which.ids if _ID.fullmatch(one))
    return [(replace(which, ids=some), len(some)) for some in query_filters.slices(known)]


def _overrides(context: ApiContext, request: ApiRequest) -> PublishOptions:
    try:
        overrides = wire.read(request.headers)
    except wire.WireError as error:
        raise HttpError(error.status, str(error)) from None
    check_not_before(overrides, context.clock.now_ms())
    check_policy(context, options=overrides)
    return overrides


async def _retry(
    context: ApiContext, account: int, letters: tuple[DeadLetter, ...] | list[DeadLetter], overrides: PublishOptions
) -> list[Publication]:
    now_ms = context.clock.now_ms()

    def retry(message: Message) -> Publication:
        message_id = ids.message_id(context.random, now_ms)
        return retry_of_dead_letter(message, overrides, message_id=message_id, now_ms=now_ms)

    retries = [(letter.id, retry(letter.message)) for letter in letters]
    taken = await context.store.write(dead_letters.retry_dead_letters, account, retries, now_ms=now_ms)
    context.wake()
    context.watchers.notify_created([one.message for one in taken], now_ms=now_ms)
    return taken


async def _page(
    context: ApiContext, account: int, which: DeadLetterCriteria, cursor: str | None, count: int
) -> Page[DeadLetter]:
    try:
        return await context.store.read(queries.dead_letters, account, which, cursor=cursor, count=count)
    except BadCursorError as error:
        raise HttpError(400, str(error)) from None


async def _known(context: ApiContext, account: int, letter_id: str) -> DeadLetter:
    if _ID.fullmatch(letter_id):
        page = await context.store.read(
            queries.dead_letters, account, DeadLetterCriteria(ids=(letter_id,)), cursor=None, count=1
        )
        if page.items:
            return page.items[0]
    raise _not_found(letter_id)


def _not_found(letter_id: str) -> HttpError:
    return HttpError(404, f"dead letter {letter_id[:128]} not found")
