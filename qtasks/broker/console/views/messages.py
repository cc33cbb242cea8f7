"""`GET console/api/messages`: messages that match a filter, newest first."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, Query, json_response
from qtasks.broker.console import table_rows
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.console.filter_request import read_filter, unreadable
from qtasks.broker.console.filter_text import FilterError
from qtasks.broker.core.observed.message_filter import ConsoleFilter, Kind
from qtasks.broker.loops.indexer import Indexer
from qtasks.broker.store.verbs.insight import search
from qtasks.broker.store.verbs.insight.candidates import Part

PAGE: Final = 50
"""Messages of a page."""
LARGEST_PAGE: Final = 200
SCAN_MOST: Final = 50_000
"""Messages that one request looks at, at most: the next one goes on."""
_ONE_BY_ONE: Final = (Kind.ARGUMENT, Kind.ERROR, Kind.QUEUE, Kind.KEY, Kind.SCHEDULE)
"""Conditions without an index of their own, or with one that has not all messages."""
_READING: Final = "r"
_CURSOR: Final = re.compile(rf"({_READING}?)([0-9]{{0,16}})")


async def list_messages(context: ConsoleContext, viewer: Viewer, request: ApiRequest) -> ApiResponse:
    """One page, and how many messages were read for it where that was necessary."""
    query = Query(request.query)
    try:
        criteria = read_filter(context, viewer, query.last("filter") or "")
    except FilterError as error:
        return unreadable(error)
    place = _place(query.last("cursor") or "", criteria)
    count = query.count(default=PAGE, most=LARGEST_PAGE)
    await Indexer(context.store, context.clock).catch_up()
    seqs, then, read = await _search(context, viewer, criteria, place, count)
    scanned = {"messages": read, "of": SCAN_MOST} if criteria.of(*_ONE_BY_ONE) else None
    rows = await table_rows.read(context, viewer, sorted(seqs, reverse=True))
    return json_response({"messages": rows, "cursor": None if then is None else then.cursor, "scanned": scanned})


class _Place(NamedTuple):
    """Where a search goes on."""

    part: Part | None
    """Of a search by a searchable argument: first what the index has, then what must be read."""
    below: int | None = None
    """The `seq` of the message before."""

    @property
    def cursor(self) -> str:
        """The place as clients get it; `_place` reads it."""
        return f"{_READING if self.part is Part.UNLABELLED else ''}{'' if self.below is None else self.below}"


def _place(cursor: str, criteria: ConsoleFilter) -> _Place:
    """The place that a cursor names. Raises HttpError 400."""
    if (match := _CURSOR.fullmatch(cursor)) is None:
        raise HttpError(400, "cursor: expected one that a list has given")
    below = int(match[2]) if match[2] else None
    if criteria.searchable() is None:
        return _Place(None, below)
    return _Place(Part.UNLABELLED if match[1] else Part.LABELLED, below)


async def _search(
    context: ConsoleContext, viewer: Viewer, criteria: ConsoleFilter, place: _Place, count: int
) -> tuple[list[int], _Place | None, int]:
    """`seq` of the matches, where to go on, and how many messages were read. Others read between its steps."""
    seqs: list[int] = []
    looked_at = read = 0
    while True:
        matches = await context.store.read_long(
            search.messages, viewer.account, criteria, below=place.below, count=count - len(seqs), part=place.part
        )
        seqs += matches.seqs
        looked_at += matches.looked_at
        read += 0 if place.part is Part.LABELLED else matches.looked_at
        if matches.below is not None:
            place = place._replace(below=matches.below)
        elif place.part is Part.LABELLED:
            place = _Place(Part.UNLABELLED)
        else:
            return seqs, None, read
        if len(seqs) >= count or looked_at >= SCAN_MOST:
            return seqs, place, read
