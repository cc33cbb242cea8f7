"""The call of a message of a service that asks no dispatcher: what the message says, and what the application knows.

In the process of the application its own result backend is read. Elsewhere the page says why it knows nothing.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import orjson

from qtasks.broker.console.asked_calls import read_report
from qtasks.broker.console.views.message_call import NO_CALL, NO_RESULTS, call_json, flow_json
from qtasks.protocol.dispatcher_questions import VERSION
from qtasks.tasks.admin.summaries import call_in

Json = dict[str, Any]
AskCall = Callable[[bytes], Awaitable[bytes]]
"""Answers a question about a call, as a dispatcher does (docs/protocol.md 5.18). Raises HttpError."""

NOT_ASKED: Final = (
    "the API of this service does not tell results; the console that an application mounts (console_router) shows them"
)


def body_of(message: Json, entries: Iterable[Json]) -> str | None:
    """The body of a message: from the message, else from its log, which has it in base64; None if it is not text."""
    if isinstance(text := message.get("body"), str):
        return text
    coded = next((entry["body"] for entry in entries if isinstance(entry.get("body"), str)), None)
    try:
        return None if coded is None else base64.b64decode(coded, validate=True).decode()
    except (binascii.Error, ValueError):
        return None


def task_of(url: str, body: str | None) -> tuple[str | None, str | None]:
    """The task that a message calls, and the id of the call, both by its body; None for any other message."""
    call = call_in((body or "").encode())
    return (url.partition("?")[0].rpartition("/")[2], call.get("id")) if call else (None, None)


async def call_view(ask: AskCall | None, message_id: str, body: str | None) -> Json:
    """What `GET console/api/messages/ID/call` answers."""
    view: Json = {"prefix": None, "error": None, "timeMs": None, "hasResults": None, "call": None, "flow": None}
    envelope = call_in((body or "").encode())
    if not envelope or ask is None:
        return {**view, "error": NOT_ASKED if envelope else NO_CALL}
    call_id, flow_id = envelope.get("id") or message_id, (envelope.get("flow") or {}).get("id")
    question = {"v": VERSION, "id": call_id, **({} if flow_id is None else {"flow": flow_id})}
    report = read_report(await ask(orjson.dumps(question)))
    call, flow = report["call"], report["flow"]
    return {
        **view,
        "error": None if report["results"] else NO_RESULTS,
        "hasResults": report["results"],
        "call": None if call is None else call_json(call),
        "flow": None if flow is None else flow_json(flow, {}, call_id),
    }
