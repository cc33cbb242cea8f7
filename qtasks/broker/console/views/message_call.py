"""`GET console/api/messages/ID/call`: what the application knows of a message's call: its result, and its flow.

Asked of the dispatcher that the message names for its end, apart from the page of the message, because it may be slow
or away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

import apsw

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, json_response
from qtasks.broker.console import table_rows
from qtasks.broker.console.asked_calls import steps_in
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.store.verbs.reads import queries
from qtasks.protocol.dispatcher_questions import CallRecord, FlowReport
from qtasks.protocol.messages import Message

NO_CALL: Final = "only the call of a task has a result: this message is not one"
NO_RESULTS: Final = "it keeps no results; set QTASKS_RESULTS where it runs, such as QTASKS_RESULTS=sqlite:///results.db"
STATUSES: Final[Mapping[str, str]] = {
    "queued": "waiting",
    "running": "running",
    "retrying": "retrying",
    "cancelling": "running",
    "succeeded": "delivered",
    "failed": "failed",
    "cancelled": "canceled",
    "expired": "expired",
}
"""The words of this console for the states of calls."""
_FINAL: Final = frozenset({"succeeded", "failed", "cancelled", "expired"})
_LONGEST_WORD: Final = 32
MOST_ROWS: Final = 1_000
"""Steps of a flow whose messages are looked up, the first ones. A dispatcher of ours tells fewer."""


class CallPlace(NamedTuple):
    """Which call a message is about, and whom to ask about it."""

    prefix: str
    call_id: str
    flow_id: str | None


async def show(context: ConsoleContext, viewer: Viewer, request: ApiRequest, message_id: str) -> ApiResponse:
    """Of the message with that id, or the newest one of the call with that id."""
    message = await context.store.read(queries.message, viewer.account, message_id)
    if message is None:
        raise HttpError(404, f"message {message_id[:128]} not found")
    place = place_of(message)
    if place is None:
        return json_response(
            {"prefix": None, "error": NO_CALL, "timeMs": None, "hasResults": None, "call": None, "flow": None}
        )
    answer = await context.calls.of(viewer.account, *place)
    call, flow = (None, None) if answer.report is None else (answer.report["call"], answer.report["flow"])
    is_redacted = message.options.redact is not None and message.options.redact.body
    return json_response(
        {
            "prefix": place.prefix,
            "error": NO_RESULTS if answer.report is not None and not answer.report["results"] else answer.error,
            "timeMs": answer.time_ms + context.clock.offset_ms(),
            "hasResults": None if answer.report is None else answer.report["results"],
            "call": None if call is None else _shown(call, viewer, is_redacted=is_redacted),
            "flow": None if flow is None else await _flow(context, viewer, flow, place.call_id),
        }
    )


def place_of(message: Message) -> CallPlace | None:
    """The call of a message; None if it is not one of the framework."""
    url, _, query = (message.options.end_callback or "").partition("?")
    if not query:
        return None
    named = parse_qs(query)
    call_id = named.get("call", [message.id])[0]  # the body of a schedule has no id of a call
    return CallPlace(f"{url.rpartition('/')[0]}/", call_id, named.get("flow", [None])[0])


def call_json(call: CallRecord) -> dict[str, Any]:
    """The call as the page has it, with its result."""
    return {"callId": call["id"], **{name: value for name, value in call.items() if name != "id"}}


def _shown(call: CallRecord, viewer: Viewer, *, is_redacted: bool) -> dict[str, Any]:
    document = call_json(call)
    progress, result = call["progress"], call["result"]
    if not viewer.sees_payloads:
        document["progress"] = None if progress is None else {**progress, "note": ""}
        document["error"] = table_rows.shown_error(call["error"], viewer)
        document["result"] = None
    elif result is not None and is_redacted:
        document["result"] = {"form": "redacted", "bytes": result["bytes"]}
    return document


async def _flow(context: ConsoleContext, viewer: Viewer, flow: FlowReport, call_id: str) -> dict[str, Any]:
    steps = list(islice(steps_in(flow["sequence"]), MOST_ROWS))
    seqs = await context.store.read(_messages_of, viewer.account, [step["id"] for step in steps])
    rows = await table_rows.read_by_seq(context, viewer, list(seqs.values()))
    rows_by_call = {each: rows[seq] for each, seq in seqs.items() if seq in rows}
    return flow_json(flow, rows_by_call, call_id)


def flow_json(flow: FlowReport, rows_by_call: Mapping[str, Any], call_id: str) -> dict[str, Any]:
    """The flow as the page has it: its steps with the rows of their messages, as far as there are any."""
    return {
        "flowId": flow["id"],
        "status": _status(flow["state"]),
        "sequence": [_node(node, rows_by_call, call_id) for node in flow["sequence"]],
    }


def _messages_of(db: apsw.Connection, account: int, call_ids: list[str]) -> dict[str, int]:
    """`seq` of the message of each call that has one, by call id."""
    pairs = ((call_id, queries.seq_of(db, account, call_id)) for call_id in call_ids)
    return {call_id: seq for call_id, seq in pairs if seq is not None}


def _node(node: Any, rows: Mapping[str, Any], call_id: str) -> dict[str, Any]:
    if "members" in node:
        members = [[_node(inner, rows, call_id) for inner in member] for member in node["members"]]
        return {"collect": node["collect"], "members": members}
    if "leftOut" in node:
        counts = Counter[str]()
        for state, number in node["leftOut"].items():
            counts[_status(state)] += number
        return {"leftOut": dict(counts)}
    row = rows.get(node["id"])
    return {
        "task": node["task"],
        "callId": node["id"],
        "status": row["status"] if row is not None and node["state"] not in _FINAL else _status(node["state"]),
        "messageId": None if row is None else row["messageId"],
        "isThis": node["id"] == call_id,
    }


def _status(state: str) -> str:
    return STATUSES.get(state, state[:_LONGEST_WORD])
