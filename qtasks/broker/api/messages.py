"""Messages, their log, and the signing keys (docs/protocol.md 2.5, 2.10, 2.12)."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final

import apsw

from qtasks.broker import ids
from qtasks.broker.api import pages, query_filters
from qtasks.broker.api.api_context import ApiContext
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, Query, json_response
from qtasks.broker.api.pages import PageSlice
from qtasks.broker.core import wall_times
from qtasks.broker.core.operator_changes import OperatorChange, several
from qtasks.broker.core.values import MessageCriteria, MessageStatus
from qtasks.broker.store.verbs import accounts, cancel
from qtasks.broker.store.verbs.reads import queries, status
from qtasks.protocol import views

log = logging.getLogger("qtasks.broker")

LOG_PAGE: Final = 1000
"""Entries per log page, default and maximum (docs/compatibility.md A23)."""
MAX_CANCEL: Final = 500
"""The largest `count` of a cancellation."""
ALL_IN_FACT: Final = 100
"""The `count` that official SDKs send where their caller named none, and that the newest of them promise to be all."""


async def get_message(context: ApiContext, account: int, request: ApiRequest, message_id: str) -> ApiResponse:
    """`GET /v2/messages/{id}`, by message id or call id."""
    current = await context.store.read(status.message_status, account, message_id, now_ms=context.clock.now_ms())
    if current is None:
        raise HttpError(404, f"message {message_id[:128]} not found")
    return json_response(view_of(current, context.clock.offset_ms()))


def view_of(current: MessageStatus, offset_ms: int) -> views.Json:
    """A message with its status, as ``GET /v2/messages/{id}`` shows it."""
    optional = {
        "lastError": current.last_error,
        "nextDeliveryTime": wall_times.added(current.next_delivery_ms, offset_ms),
        "waitsFor": current.waits_for,
        "dlqId": current.dead_letter_id,
    }
    return {
        **views.message_json(wall_times.of_message(current.message, offset_ms)),
        "state": current.state,
        "retried": current.message.retried,
        **{name: value for name, value in optional.items() if value is not None},
    }


async def cancel_message(context: ApiContext, account: int, request: ApiRequest, message_id: str) -> ApiResponse:
    """`DELETE /v2/messages/{id}`, by message id or call id.

    404 if it is unknown, finished or already cancelled (docs/compatibility.md A21).
    """
    change = context.change_by(request, account, "message.cancel", message_id)
    cancelled = await context.cancel(change, cancel.cancel, account, [message_id], now_ms=change.now_ms)
    if not cancelled.count:
        raise HttpError(404, f"message {message_id[:128]} not found, or already finished")
    return json_response({"cancelled": cancelled.count})


async def cancel_messages(context: ApiContext, account: int, request: ApiRequest) -> ApiResponse:
    """`DELETE /v2/messages`: cancel by ids, by filter, or all; query or JSON body. Ids win over filters."""
    query = await query_filters.read(request, query_filters.CANCEL_NAMES)
    message_ids = query.several("messageIds", "messageId", most=None)
    if message_ids:
        cancelled = 0
        change = context.change_by(request, account, "message.cancel", several(message_ids))
        for some in query_filters.slices(message_ids):
            done = await context.cancel(change, cancel.cancel, account, some, now_ms=context.clock.now_ms())
            cancelled += done.count
    else:
        count = query.integer("count", low=1, high=MAX_CANCEL)
        count = None if count == ALL_IN_FACT else count
        change = context.change_by(request, account, "message.cancel", query.shown(), is_payload=True)
        cancelled = await _cancel_where(context, change, query_filters.message_filter(query), count)
    return json_response({"cancelled": cancelled})


async def _cancel_where(
    context: ApiContext, change: OperatorChange, criteria: MessageCriteria, count: int | None
) -> int:
    """Cancel the matching messages in slices; return their number.

    Messages accepted meanwhile are not cancelled, nor are the end callbacks that this creates.
    """
    now_ms = change.now_ms
    newest = await context.store.read(queries.newest_seq)
    criteria = wall_times.of_criteria(criteria, context.clock.offset_ms())
    criteria = replace(criteria, to_ms=now_ms if criteria.to_ms is None else min(now_ms, criteria.to_ms))
    cancelled, after = 0, 0
    while count is None or cancelled < count:
        limit = query_filters.SLICE if count is None else min(query_filters.SLICE, count - cancelled)
        done = await context.cancel(
            change,
            cancel.cancel_where,
            change.account,
            criteria,
            after=after,
            newest=newest,
            limit=limit,
            now_ms=now_ms,
        )
        cancelled += done.count
        if done.last is None:
            break
        after = done.last
    return cancelled


async def list_log(context: ApiContext, account: int, request: ApiRequest) -> ApiResponse:
    """`GET /v2/events` and `GET /v2/logs`: one page of the log, under both keys (docs/compatibility.md A3)."""
    query = Query(request.query)
    offset_ms = context.clock.offset_ms()
    criteria = wall_times.of_criteria(query_filters.log_filter(query), offset_ms)

    def read(db: apsw.Connection, cursor: str | None, count: int) -> PageSlice:
        page = queries.log(
            db, account, criteria, cursor=cursor, count=min(count, pages.SLICE_ITEMS), size=pages.SLICE_BYTES
        )
        views_of = (views.log_json(wall_times.of_log_entry(entry, offset_ms)) for entry in page.items)
        return pages.page_slice(views_of, begin=cursor, next_cursor=page.cursor)

    count = query.count(default=LOG_PAGE, most=LOG_PAGE)
    return await pages.page_response(
        context.store, read, ("events", "logs"), cursor=query.last("cursor") or None, count=count
    )


async def get_keys(context: ApiContext, account: int, request: ApiRequest) -> ApiResponse:
    """`GET /v2/keys`: the signing keys. Official SDKs in dev mode recognise the dev server by this response."""
    keys = await context.keys.of(account)
    return json_response({"current": keys.current, "next": keys.next})


async def rotate_keys(context: ApiContext, account: int, request: ApiRequest) -> ApiResponse:
    """`POST /v2/keys/rotate`: the next key becomes the current one.

    Every later attempt is signed with the new current key, including those of messages stored before.
    """
    change = context.change_by(request, account, "keys.rotate", "")
    keys = await context.write(
        change, accounts.rotate_keys, account, ids.signing_key(context.random), now_ms=change.now_ms
    )
    context.keys.forget(account)
    log.info("the signing keys were rotated: the next key of before signs now", extra={"action": "keys_rotated"})
    return json_response({"current": keys.current, "next": keys.next})
