"""`GET console/api/messages`: messages that match a filter, newest first."""

from __future__ import annotations

from typing import Final

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, Query, json_response
from qtasks.broker.console import table_rows
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.console.filter_request import read_filter, unreadable
from qtasks.broker.console.filter_text import FilterError
from qtasks.broker.core.observed.message_filter import ConsoleFilter, Kind
from qtasks.broker.loops.indexer import Indexer
from qtasks.broker.store.verbs.insight import search

PAGE: Final = 50
"""Messages of a page."""
LARGEST_PAGE: Final = 200
SCAN_MOST: Final = 50_000
"""Messages that one request looks at, at most: the next one goes on."""
_ONE_BY_ONE: Final = (Kind.ARGUMENT, Kind.ERROR, Kind.QUEUE, Kind.KEY, Kind.SCHEDULE)
"""Conditions without an index of their own."""


async def list_messages(context: ConsoleContext, viewer: Viewer, request: ApiRequest) -> ApiResponse:
    """One page, and how many messages were read for it where that was necessary."""
    query = Query(request.query)
    try:
        criteria = read_filter(context, viewer, query.last("filter") or "")
    except FilterError as error:
        return unreadable(error)
    below = query.integer("cursor", high=2**53)
    count = query.count(default=PAGE, most=LARGEST_PAGE)
    await Indexer(context.store, context.clock).catch_up()
    seqs, below, looked_at = await _search(context, viewer, criteria, below, count)
    scanned = {"messages": looked_at, "of": SCAN_MOST} if criteria.of(*_ONE_BY_ONE) else None
    rows = await table_rows.read(context, viewer, seqs)
    return json_response({"messages": rows, "cursor": None if below is None else str(below), "scanned": scanned})


async def _search(
    context: ConsoleContext, viewer: Viewer, criteria: ConsoleFilter, below: int | None, count: int
) -> tuple[list[int], int | None, int]:
    """`seq` of the matches, where to go on, and how many messages were looked at. Others read between its steps."""
    seqs: list[int] = []
    looked_at = 0
    while True:
        matches = await context.store.read_long(
            search.messages, viewer.account, criteria, below=below, count=count - len(seqs)
        )
        seqs += matches.seqs
        looked_at, below = looked_at + matches.looked_at, matches.below
        if below is None or len(seqs) >= count or looked_at >= SCAN_MOST:
            return seqs, below, looked_at
