"""The dead-letter queue: list, delete and retry dead letters, by id or by filter (docs/protocol.md 2.9)."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import apsw

from qtasks.broker import ids
from qtasks.broker.api import pages, query_filters
from qtasks.broker.api.api_context import ApiContext
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, Query, json_response
from qtasks.broker.api.pages import PageSlice
from qtasks.broker.api.validation import check_not_before, check_policy
from qtasks.broker.core import wall_times
from qtasks.broker.core.message_builder import retry_of_dead_letter
from qtasks.broker.core.operator_changes import OperatorChange, several
from qtasks.broker.core.values import DeadLetterCriteria, Page, Publication
from qtasks.broker.store.verbs import dead_letters
from qtasks.broker.store.verbs.reads import queries
from qtasks.broker.store.verbs.reads.queries import BadCursorError
from qtasks.protocol import views, wire
from qtasks.protocol.messages import DeadLetter, Message, PublishOptions

Found = TypeVar("Found", str, DeadLetter)

PAGE: Final = 100
"""Dead letters per page, default and maximum (docs/compatibility.md A23)."""
RETRY_BYTES: Final = 1024 * 1024
"""Bytes of dead letters that one transaction publishes again, or more if a single one is larger."""
_ID: Final = re.compile(r"[0-9]{1,18}-[0-9]{1,18}")


async def list_dead_letters(context: ApiContext, account: int, request: ApiRequest) -> ApiResponse:
    """`GET /v2/dlq`."""
    query = Query(request.query)
    criteria = wall_times.of_criteria(query_filters.dead_letter_filter(query), context.clock.offset_ms())
    if invalid := [letter_id for letter_id in criteria.ids if not _ID.fullmatch(letter_id)]:
        raise HttpError(400, f"dlqIds: expected an id such as 1725323658779-0, got {invalid[0][:40]!r}")

    def read(db: apsw.Connection, cursor: str | None, count: int) -> PageSlice:
        page = queries.dead_letters(db, account, criteria, cursor=cursor, count=count, size=pages.SLICE_BYTES)
        return pages.page_slice(
            (_view(context, letter) for letter in page.items), begin=cursor, next_cursor=page.cursor
        )

    count = query.count(default=PAGE, most=PAGE)
    return await pages.page_response(
        context.store, read, ("messages",), cursor=query.last("cursor") or None, count=count
    )


async def get_dead_letter(context: ApiContext, account: int, request: ApiRequest, letter_id: str) -> ApiResponse:
    """`GET /v2/dlq/{dlqId}`."""
    return json_response(_view(context, await _existing(context, account, letter_id)))


async def delete_dead_letter(context: ApiContext, account: int, request: ApiRequest, letter_id: str) -> ApiResponse:
    """`DELETE /v2/dlq/{dlqId}`: 404 for an unknown id."""
    await _existing(context, account, letter_id)
    change = context.change_by(request, account, "dlq.delete", letter_id)
    if not await delete_by_ids(context, change, [letter_id]):  # another request has deleted it meanwhile
        raise _not_found(letter_id)
    return json_response({"deleted": 1})


async def delete_dead_letters(context: ApiContext, account: int, request: ApiRequest) -> ApiResponse:
    """`DELETE /v2/dlq`: by ids, skipping those that do not exist, or by filter, one page per request."""
    query = await query_filters.read(request, query_filters.DEAD_LETTER_NAMES)
    deleted, cursor = 0, None
    change = _change(context, account, request, "dlq.delete", query)
    for criteria, count in _portions(context, query):
        # Found by a reader: a filter may look at very many rows, and a write holds the event loop.
        page = await _found(context, queries.dead_letter_ids, account, criteria, query.last("cursor") or None, count)
        deleted += await delete_by_ids(context, change, page.items)
        cursor = page.cursor
    return json_response({"deleted": deleted, **({} if cursor is None else {"cursor": cursor})})


async def retry_dead_letter(context: ApiContext, account: int, request: ApiRequest, letter_id: str) -> ApiResponse:
    """`POST /v2/dlq/retry/{dlqId}`: replace a dead letter by a new message. Headers override its original options."""
    letter = await _existing(context, account, letter_id)
    if letter.message.damaged:
        raise HttpError(
            409,
            f"dead letter {letter_id} cannot be retried: what is stored of its message is damaged, so it would not be"
            " what was published; publish the message again, then delete the dead letter",
        )
    change = context.change_by(request, account, "dlq.retry", letter_id)
    retried = await _retry(context, change, [letter], _overrides(context, request))
    if not retried:
        raise _not_found(letter_id)
    return json_response({"messageId": retried[0].message.id, "url": retried[0].message.url}, 201)


async def retry_dead_letters(context: ApiContext, account: int, request: ApiRequest) -> ApiResponse:
    """`POST /v2/dlq/retry`: retry dead letters by ids or by filter, one page per request. Damaged ones are skipped."""
    query = await query_filters.read(request, query_filters.DEAD_LETTER_NAMES)
    overrides = _overrides(context, request)
    responses: list[dict[str, str]] = []
    cursor = None
    change = _change(context, account, request, "dlq.retry", query)
    for criteria, count in _portions(context, query):
        done, cursor = await _retry_matching(context, change, criteria, query.last("cursor") or None, count, overrides)
        responses += done
    return json_response({"responses": responses, **({} if cursor is None else {"cursor": cursor})}, 201)


async def retry_by_ids(context: ApiContext, change: OperatorChange, letter_ids: Sequence[str]) -> int:
    """Retry dead letters as they are; how many. Damaged ones, and ids that do not exist, are skipped."""
    count = 0
    for portion in query_filters.slices(tuple(letter_ids)):
        criteria = DeadLetterCriteria(ids=portion)
        done, _ = await _retry_matching(context, change, criteria, None, len(portion), PublishOptions())
        count += len(done)
    return count


async def delete_by_ids(context: ApiContext, change: OperatorChange, letter_ids: Sequence[str]) -> int:
    """Delete dead letters; how many. Ids that do not exist are skipped."""
    count = 0
    for portion in query_filters.slices(tuple(letter_ids)):
        criteria = DeadLetterCriteria(ids=portion)
        done = await context.write(
            change, dead_letters.delete_dead_letters, change.account, criteria, cursor=None, limit=len(portion)
        )
        count += done.count
    return count


async def _retry_matching(
    context: ApiContext,
    change: OperatorChange,
    criteria: DeadLetterCriteria,
    cursor: str | None,
    count: int,
    overrides: PublishOptions,
) -> tuple[list[dict[str, str]], str | None]:
    """Retry up to `count` dead letters after `cursor`; return id and URL of each new message, and the next cursor."""
    responses: list[dict[str, str]] = []
    while True:
        page = await _page(context, change.account, criteria, cursor, count)
        retried = await _retry(context, change, page.items, overrides)
        # Only these, not the messages: a request may name thousands of large ones.
        responses += [{"messageId": again.message.id, "url": again.message.url} for again in retried]
        cursor, count = page.cursor, count - len(page.items)
        if cursor is None or count <= 0:
            return responses, cursor


def _portions(context: ApiContext, query: Query) -> list[tuple[DeadLetterCriteria, int]]:
    """The selected dead letters as criteria, each with a limit: one page of a filter, or all ids in portions.

    Malformed ids are left out, because ids that do not exist are skipped.
    """
    criteria = wall_times.of_criteria(query_filters.dead_letter_filter(query), context.clock.offset_ms())
    if "dlqIds" not in query and "dlqId" not in query:
        return [(criteria, query.count(default=PAGE, most=PAGE))]
    valid_ids = tuple(letter_id for letter_id in criteria.ids if _ID.fullmatch(letter_id))
    return [(replace(criteria, ids=portion), len(portion)) for portion in query_filters.slices(valid_ids)]


def _change(context: ApiContext, account: int, request: ApiRequest, what: str, query: Query) -> OperatorChange:
    """The change of the dead letters that `query` selects."""
    if chosen := query.several("dlqIds", "dlqId", most=None):
        return context.change_by(request, account, what, several(chosen))
    return context.change_by(request, account, what, query.shown(), is_payload=True)


def _overrides(context: ApiContext, request: ApiRequest) -> PublishOptions:
    try:
        overrides = wire.read(request.headers)
    except wire.WireError as error:
        raise HttpError(error.status, str(error)) from None
    check_not_before(overrides, context.wall_ms())
    check_policy(context, options=overrides)
    return overrides


async def _retry(
    context: ApiContext,
    change: OperatorChange,
    letters: tuple[DeadLetter, ...] | list[DeadLetter],
    overrides: PublishOptions,
) -> list[Publication]:
    now_ms = context.clock.now_ms()

    def retry(message: Message) -> Publication:
        message_id = ids.message_id(context.random, now_ms)
        return retry_of_dead_letter(message, overrides, message_id=message_id, now_ms=now_ms)

    retries = [(letter.id, retry(letter.message)) for letter in letters if not letter.message.damaged]
    retried = await context.write(change, dead_letters.retry_dead_letters, change.account, retries, now_ms=now_ms)
    context.wake()
    context.watchers.notify_created([publication.message for publication in retried], now_ms=now_ms)
    return retried


async def _page(
    context: ApiContext, account: int, criteria: DeadLetterCriteria, cursor: str | None, count: int
) -> Page[DeadLetter]:
    return await _found(
        context, functools.partial(queries.dead_letters, size=RETRY_BYTES), account, criteria, cursor, count
    )


async def _found(
    context: ApiContext,
    query: Callable[..., Page[Found]],
    account: int,
    criteria: DeadLetterCriteria,
    cursor: str | None,
    count: int,
) -> Page[Found]:
    try:
        return await context.store.read_long(query, account, criteria, cursor=cursor, count=count)
    except BadCursorError as error:
        raise HttpError(400, str(error)) from None


async def _existing(context: ApiContext, account: int, letter_id: str) -> DeadLetter:
    if _ID.fullmatch(letter_id):
        page = await context.store.read(
            queries.dead_letters, account, DeadLetterCriteria(ids=(letter_id,)), cursor=None, count=1
        )
        if page.items:
            return page.items[0]
    raise _not_found(letter_id)


def _view(context: ApiContext, letter: DeadLetter) -> views.Json:
    return views.dead_letter_json(wall_times.of_dead_letter(letter, context.clock.offset_ms()))


def _not_found(letter_id: str) -> HttpError:
    return HttpError(404, f"dead letter {letter_id[:128]} not found")
