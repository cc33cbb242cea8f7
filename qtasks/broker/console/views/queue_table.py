"""`GET console/api/queues` and `flow`: what waits in each queue and each flow-control key, and until when."""

from __future__ import annotations

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, json_response
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.core.wall_times import added
from qtasks.broker.store.verbs import pauses
from qtasks.broker.store.verbs.reads import lines
from qtasks.protocol.views import pause_json


async def list_queues(context: ConsoleContext, viewer: Viewer, request: ApiRequest) -> ApiResponse:
    """The queues by name."""
    queues, rates = await context.store.read_long(lines.queue_lines, viewer.account, now_ms=context.clock.now_ms())
    pause_facts = await context.store.read(pauses.pauses_of, viewer.account, "queue")
    offset_ms = context.clock.offset_ms()
    return json_response(
        [
            {
                "name": queue.name,
                "parallelism": queue.parallelism,
                "paused": bool(queue.paused),
                **pause_json(pause_facts.get(queue.name), offset_ms),
                "waiting": queue.waiting,
                "running": queue.running,
                "oldestMs": added(queue.oldest_ms, offset_ms),
                **_progress(rates.queues.get(queue.name, 0.0), queue.waiting + queue.running),
            }
            for queue in queues
        ]
    )


async def list_flow_keys(context: ConsoleContext, viewer: Viewer, request: ApiRequest) -> ApiResponse:
    """The flow-control keys by name."""
    keys, rates = await context.store.read_long(lines.key_lines, viewer.account, now_ms=context.clock.now_ms())
    pause_facts = await context.store.read(pauses.pauses_of, viewer.account, "flow key")
    offset_ms = context.clock.offset_ms()
    return json_response(
        [
            {
                "name": key.key,
                "parallelism": key.parallelism,
                "rate": key.rate,
                "periodS": key.period_s,
                "pinned": bool(key.pinned),
                "paused": bool(key.paused),
                **pause_json(pause_facts.get(key.key), offset_ms),
                "waiting": key.waiting,
                "running": key.running,
                "oldestMs": added(key.oldest_ms, offset_ms),
                **_progress(rates.keys.get(key.key, 0.0), key.waiting + key.running),
            }
            for key in keys
        ]
    )


def _progress(per_minute: float, backlog: int) -> dict[str, float | int | None]:
    """How quickly a line gets on, and when it is empty at that rate; unknown while nothing is delivered."""
    if backlog == 0:
        return {"perMinute": per_minute, "timeToEmptyS": 0}
    return {"perMinute": per_minute, "timeToEmptyS": round(backlog / per_minute * 60) if per_minute else None}
