"""The view of the tasks: the manifest of each dispatcher that the account's messages go to."""

from __future__ import annotations

import orjson

from qtasks.broker.api.api_request import ApiRequest, ApiResponse
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.console.manifests import ManifestAnswer
from qtasks.broker.store.verbs.reads import dispatchers


async def list_tasks(context: ConsoleContext, viewer: Viewer, request: ApiRequest) -> ApiResponse:
    """`GET console/api/tasks`: the manifests, those of the dispatchers first that were used last."""
    offset_ms = context.clock.offset_ms()
    shown = [_shown(answer, offset_ms) for answer in await answers(context, viewer)]
    return ApiResponse(200, orjson.dumps({"dispatchers": shown}))


async def answers(context: ConsoleContext, viewer: Viewer) -> list[ManifestAnswer]:
    """What the dispatchers of the account say."""
    used = await context.store.read(dispatchers.prefixes, viewer.account)
    return await context.manifests.of(viewer.account, context.manifests.prefixes(viewer.account, used))


def _shown(answer: ManifestAnswer, offset_ms: int) -> dict[str, object]:
    return {
        "prefix": answer.prefix,
        "manifest": None if answer.manifest is None else orjson.Fragment(answer.manifest),
        "error": answer.error,
        "timeMs": answer.time_ms + offset_ms,
    }
