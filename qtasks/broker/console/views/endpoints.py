"""`GET console/api/endpoints`: the applications by URL prefix, and whether they answer."""

from __future__ import annotations

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, json_response
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.core.wall_times import added
from qtasks.broker.store.verbs.reads import prefix_table


async def list_endpoints(context: ConsoleContext, viewer: Viewer, request: ApiRequest) -> ApiResponse:
    """The prefixes that messages of the account go to, those that refuse first."""
    offset_ms = context.clock.offset_ms()
    return json_response(
        [
            {
                "prefix": line.prefix,
                "isDispatcher": line.is_dispatcher,
                "down": None
                if line.down_since_ms is None
                else {
                    "sinceMs": line.down_since_ms + offset_ms,
                    "nextProbeMs": added(line.probe_ms, offset_ms),
                },
                "waiting": line.waiting,
                "running": line.running,
            }
            for line in await context.store.read_long(prefix_table.prefix_lines, viewer.account)
        ]
    )
