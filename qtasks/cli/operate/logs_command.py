"""`qtasks logs`: the log of the service."""

from __future__ import annotations

import threading
from typing import Any, Final

import click

from qtasks.cli.changes import as_json_option
from qtasks.cli.operate.completing import message_ids
from qtasks.cli.operate.masked import MaskedMessages
from qtasks.cli.operate.service import ServiceConnection, connected, now_ms
from qtasks.cli.option_types import count_option
from qtasks.cli.printing import TableColumn, echo_json, echo_table, moment, printable, talk
from qtasks.tasks.admin.filter_words import time_ms

_COLUMNS: Final = (
    TableColumn("TIME"),
    TableColumn("STATE"),
    TableColumn("MESSAGE"),
    TableColumn("TASK OR DESTINATION", is_flexible=True),
)
_STATES: Final = (
    "created", "active", "retry", "error", "delivered", "failed", "cancel_requested", "canceled", "in_progress"
)  # fmt: skip
_PAUSE_S: Final = 1.0
_MAX_PAGE: Final = 1_000


@click.command("logs")
@click.argument("message_id", required=False, metavar="[MESSAGE]", shell_complete=message_ids)
@click.option("--state", type=click.Choice(_STATES, case_sensitive=False), help="Only entries of this state.")
@click.option("--queue", help="Only messages of this queue.")
@click.option("--url", help="Only messages to this URL.")
@click.option("--after", metavar="TIME", help="Only since then: a time, or an age such as 15m or 2h.")
@count_option(50, _MAX_PAGE)
@click.option("--follow", "-f", is_flag=True, help="Print new entries as they come, until Ctrl-C.")
@as_json_option
def command(
    message_id: str | None,
    state: str | None,
    queue: str | None,
    url: str | None,
    after: str | None,
    count: int,
    follow: bool,
    as_json: bool,
) -> None:
    """Print the newest entries of the log, the latest last: of all messages, or of MESSAGE.

    With --follow and --json each entry is one line. The service is that of QSTASH_TOKEN and QSTASH_URL, or the `qtasks
    dev` that runs in this folder.
    """
    filters = {"messageId": message_id, "state": state.upper() if state else None, "queueName": queue, "url": url}
    pairs = [(name, value) for name, value in filters.items() if value]
    if after:
        pairs.append(("fromDate", str(time_ms(after, now_ms()))))
    with connected() as service:
        entries = _entries(service, [*pairs, ("count", str(count))])
        if follow:
            _follow(service, pairs, entries, as_json=as_json)
            return
        masking = MaskedMessages.of(service, entries)
    if as_json:
        echo_json({"entries": [masking.document(entry) for entry in entries]})
    elif entries:
        echo_table(_COLUMNS, [_cells(entry) for entry in entries], [_error(entry, masking) for entry in entries])
    else:
        talk("the log has no such entry")


def _entries(service: ServiceConnection, pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Entries of the log, the latest last."""
    return list(reversed(service.read("/v2/events", *pairs)["events"]))


def _follow(
    service: ServiceConnection, pairs: list[tuple[str, str]], entries: list[dict[str, Any]], *, as_json: bool
) -> None:
    """Print `entries`, and then those that come. An entry of the last moment is asked for again, and printed once."""
    import json

    pairs = [pair for pair in pairs if pair[0] != "fromDate"]
    shown: set[tuple[int, str, str]] = set()
    while True:
        masking = MaskedMessages.of(service, entries)
        for entry in entries:
            if (identity := (entry["time"], entry["messageId"], entry["state"])) not in shown:
                shown.add(identity)
                text = "  ".join((*_cells(entry), _error(entry, masking))).rstrip()
                click.echo(json.dumps(masking.document(entry)) if as_json else text)
        since = max((moment_ms for moment_ms, _, _ in shown), default=now_ms() - 1)
        shown = {identity for identity in shown if identity[0] >= since}
        threading.Event().wait(_PAUSE_S)
        entries = _entries(service, [*pairs, ("fromDate", str(since)), ("count", str(_MAX_PAGE))])


def _cells(entry: dict[str, Any]) -> tuple[str, ...]:
    path = entry["url"].partition("?")[0]
    name = path.rpartition("/")[2] if entry.get("callId") else path
    return moment(entry["time"]).partition(" ")[2], entry["state"].lower(), entry["messageId"], printable(name)


def _error(entry: dict[str, Any], masking: MaskedMessages) -> str:
    return printable(masking.text(entry, entry["error"])) if entry.get("error") else ""
