"""`GET .../assistant`: a failure, or a failed message, as one text that a person gives to an assistant."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, json_response, read_large
from qtasks.broker.console import assistant_text, manifest_reader
from qtasks.broker.console.assistant_text import Facts, Recorded
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.console.manifest_reader import DescribedTask
from qtasks.broker.console.views import failure_table, message_page, source_lines
from qtasks.protocol.dispatcher_questions import SourceFrame
from qtasks.threads import DaemonThreadPool

_WRITER: Final = DaemonThreadPool(1, "qtasks-assistant")
"""One text at a time: a long one takes a second of a processor."""


async def of_message(context: ConsoleContext, viewer: Viewer, request: ApiRequest, message_id: str) -> ApiResponse:
    """`GET messages/ID/assistant`."""
    return await _text(context, viewer, message_id, None)


async def of_failure(context: ConsoleContext, viewer: Viewer, request: ApiRequest, fingerprint: str) -> ApiResponse:
    """`GET failures/FINGERPRINT/assistant`: its newest message, and how often it happened."""
    failure = await failure_table.group(context, viewer, fingerprint)
    if failure["sampleId"] is None:
        raise HttpError(404, "no message of this failure is stored any more")
    return await _text(context, viewer, failure["sampleId"], failure)


async def _text(context: ConsoleContext, viewer: Viewer, message_id: str, failure: Facts | None) -> ApiResponse:
    message = await message_page.detail(context, viewer, message_id)
    task, application = await _described(context, viewer, message["row"])
    source = await _source(context, viewer, message)
    recorded = Recorded(message=message, task=task, application=application, source=source, failure=failure)
    text = await asyncio.get_running_loop().run_in_executor(_WRITER, assistant_text.write, recorded)
    return json_response({"text": text})


async def _source(context: ConsoleContext, viewer: Viewer, message: Facts) -> Mapping[str, SourceFrame]:
    """The lines of code around the places of the error of a message that calls a task."""
    if message["row"]["task"] is None:
        return {}
    return await source_lines.ask(context, viewer, _prefix(message["row"]), assistant_text.places_of(message))


def _prefix(row: Facts) -> str:
    return f"{row['destination'].rpartition('/')[0]}/"


async def _described(context: ConsoleContext, viewer: Viewer, row: Facts) -> tuple[DescribedTask | None, str]:
    """What the application says of the task of a message, and the versions of the application."""
    if row["task"] is None:
        return None, "another program than an application of qtasks"
    [answer] = await context.manifests.of(viewer.account, [_prefix(row)])
    if (manifest := answer.manifest) is None:
        return None, f"not known: {answer.error}"
    content = await read_large(len(manifest), lambda: manifest_reader.read(manifest))
    versions = f"qtasks {content.package}" + (f", Python {content.python}" if content.python else "")
    return next((task for task in content.tasks if task.name == row["task"]), None), versions
