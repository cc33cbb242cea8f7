"""`GET console/api/endpoints`: the applications by URL prefix, whether they answer, and how quickly."""

from __future__ import annotations

from typing import Any

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, json_response
from qtasks.broker.console import table_rows
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.core.interruptions import NOT_COUNTED
from qtasks.broker.core.observed import histograms
from qtasks.broker.core.wall_times import added
from qtasks.broker.loops.indexer import Indexer
from qtasks.broker.store.verbs.insight import prefix_table
from qtasks.broker.store.verbs.insight.prefix_table import LastAnswer, PrefixLine


async def list_endpoints(context: ConsoleContext, viewer: Viewer, request: ApiRequest) -> ApiResponse:
    """The prefixes that messages of the account go to, those that refuse first."""
    await Indexer(context.store, context.clock).catch_up()
    now_ms, offset_ms = context.clock.now_ms(), context.clock.offset_ms()
    table = await context.store.read_long(prefix_table.prefix_table, viewer.account, now_ms=now_ms)
    return json_response(
        [
            {
                "prefix": line.prefix,
                "url": line.url,
                "isDispatcher": line.is_dispatcher,
                "down": None
                if line.down_since_ms is None
                else {
                    "sinceMs": line.down_since_ms + offset_ms,
                    "nextProbeMs": added(line.probe_ms, offset_ms),
                },
                "waiting": line.waiting,
                "running": line.running,
                "last": None if line.last is None else _answer(line.last, viewer, offset_ms),
                **_figures(line, table.rate_ms),
                "bundles": _bundles(context, line.prefix),
            }
            for line in table.lines
        ]
    )


def _answer(last: LastAnswer, viewer: Viewer, offset_ms: int) -> dict[str, Any]:
    reason = None if last.error is None else last.error.removeprefix(f"{NOT_COUNTED}: ")
    return {
        "timeMs": last.time_ms + offset_ms,
        "status": last.status,
        "error": table_rows.shown_error(reason, viewer),
    }


def _figures(line: PrefixLine, rate_ms: int) -> dict[str, Any]:
    figures = line.figures
    return {
        "perMinute": round(line.delivered_lately * 60_000 / rate_ms, 2),
        "delivered": figures.delivered,
        "failed": figures.failed,
        "retried": figures.retried,
        "p50Ms": histograms.quantile_ms(figures.durations, 0.5),
        "p95Ms": histograms.quantile_ms(figures.durations, 0.95),
    }


def _bundles(context: ConsoleContext, prefix: str) -> dict[str, Any] | None:
    """What its dispatcher says of bundles; None if it has not answered since the broker was started."""
    if (offer := context.last_offer(prefix)) is None:
        return None
    refused_for_s = offer.refused_until_s - context.clock.monotonic()
    until_ms = context.api.wall_ms() + round(refused_for_s * 1000) if refused_for_s > 0 else None
    return {"slots": offer.slots, "refusedUntilMs": until_ms}
