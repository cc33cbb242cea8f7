"""The result of a call and the flow around it, as text (docs/cli.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import click

from qtasks.cli.operate.service import ServiceConnection
from qtasks.cli.printing import counted, echo_facts, printable, shortened
from qtasks.errors import ApiError
from qtasks.qstash.conversation.operation import segment

_LONGEST: Final = 2_000
"""Characters of a result that are printed; with ``--json`` all that the application tells."""
_ENDED: Final = ("succeeded", "failed", "cancelled", "expired")
_STATUS_WIDTH: Final = 12

CallView = Mapping[str, Any]
"""What ``GET console/api/messages/ID/call`` answers."""


def read_call(service: ServiceConnection, message_id: str) -> CallView | None:
    """What the application knows of the call of a message; None if the message has none, or the service cannot ask."""
    try:
        view: CallView | None = service.console_if_any(f"messages/{segment(message_id, 'ID')}/call")
    except ApiError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        return None  # an older broker
    return None if view is None or view["prefix"] is None else view


def echo_call(view: CallView) -> None:
    """Print the result, or how far the call is, or why that is not known."""
    call = view["call"]
    if call is None:
        if view["error"] is None:
            echo_facts([("result", "not known: nothing is recorded of the call")])
        else:
            echo_facts([("application", f"says nothing about the call: {view['error']}")])
        return
    progress = None if call["state"] in _ENDED else call["progress"]
    echo_facts(
        [
            ("call is", f"{call['state']}, attempt {call['attempt']}"),
            ("progress", None if progress is None else _progress(progress)),
            ("result", None if call["result"] is None else _result(call["result"])),
            ("its error", call["error"]),
        ]
    )


def echo_flow(flow: Mapping[str, Any]) -> None:
    """Print the steps of a flow, each with its call id and, in words, which one is shown."""
    counts = _counts(flow["sequence"])
    total = sum(counts.values())
    click.echo(f"  flow          {flow['status']}, {counts['delivered']:,} of {counted(total, 'call')} delivered")
    for line in _lines(flow["sequence"], 4):
        click.echo(printable(line))


def _progress(progress: Mapping[str, Any]) -> str:
    done, total, note = progress["done"], progress["total"], progress["note"]
    share = "" if total is None else f" of {total:g}"
    return f"{done:g}{share}  {note}".rstrip()


def _result(result: Mapping[str, Any]) -> str:
    if result["form"] != "json":
        return f"{result['form']}, {result['bytes']:,} bytes"
    text = shortened(result["text"], _LONGEST)
    return f"{text} (the beginning of {result['bytes']:,} bytes)" if result["isCut"] else text


def _counts(nodes: Sequence[Mapping[str, Any]]) -> Counter[str]:
    counts = Counter[str]()
    for node in nodes:
        if "members" in node:
            for member in node["members"]:
                counts += _counts(member)
        else:
            counts.update(node["leftOut"] if "leftOut" in node else {node["status"]: 1})
    return counts


def _lines(nodes: Sequence[Mapping[str, Any]], indent: int, first: str = "  ") -> Iterator[str]:
    """The lines of a sequence; `first` stands before its first one, as the mark of a member."""
    for node in nodes:
        before = " " * indent + first
        if "members" in node:
            yield f"{before}side by side:"
            for member in node["members"]:
                yield from _lines(member, indent + 4, "- ")
        elif "leftOut" in node:
            counts = ", ".join(f"{number:,} {status}" for status, number in node["leftOut"].items())
            yield f"{before}{sum(node['leftOut'].values()):,} more: {counts}"
        else:
            status = "not sent yet" if node["status"] == "waiting" and node["messageId"] is None else node["status"]
            mark = "  (this call)" if node["isThis"] else ""
            yield f"{before}{status:<{_STATUS_WIDTH}}  {node['task']}  {node['callId']}{mark}"
        first = "  "
