"""`GET console/api/audit`: who changed what, the newest first."""

from __future__ import annotations

from typing import Final

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, Query, json_response
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.core.operator_changes import AuditEntry
from qtasks.broker.store.verbs import audit
from qtasks.protocol.views import Json

PAGE: Final = 50
LARGEST_PAGE: Final = 500
_MOST_WORDS: Final = 20
HIDDEN: Final = "hidden: it may hold values of messages"
"""In place of a subject, for those who see no payloads."""


async def list_changes(context: ConsoleContext, viewer: Viewer, request: ApiRequest) -> ApiResponse:
    """One page. `filter` is words that a row must contain, all of them."""
    query = Query(request.query)
    count = query.count(default=PAGE, most=LARGEST_PAGE)
    entries = await context.store.read_long(
        audit.entries,
        viewer.account,
        words=(query.last("filter") or "").split()[:_MOST_WORDS],
        sees_payloads=viewer.sees_payloads,
        before=query.integer("cursor"),
        count=count + 1,
    )
    offset_ms = context.clock.offset_ms()
    shown = [_view(entry, viewer, offset_ms) for entry in entries[:count]]
    return json_response({"changes": shown, "cursor": str(entries[count - 1].n) if len(entries) > count else None})


def _view(entry: AuditEntry, viewer: Viewer, offset_ms: int) -> Json:
    return {
        "id": entry.n,
        "timeMs": entry.time_ms + offset_ms,
        "who": entry.who,
        "origin": entry.origin,
        "what": entry.what,
        "subject": HIDDEN if entry.is_payload and not viewer.sees_payloads else entry.subject,
        "count": entry.how_many,
        "note": entry.note,
    }
