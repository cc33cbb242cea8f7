"""`qtasks audit`: who changed what, when, from where and why."""

from __future__ import annotations

from typing import Any, Final

import click

from qtasks.cli.changes import as_json_option
from qtasks.cli.operate.service import connected
from qtasks.cli.option_types import count_option
from qtasks.cli.printing import TableColumn, echo_json, echo_table, moment, talk

_COLUMNS: Final = (
    TableColumn("TIME"),
    TableColumn("WHAT"),
    TableColumn("COUNT", is_number=True),
    TableColumn("WHO", is_flexible=True, least=20),  # "the configured token" is whole
    TableColumn("FROM"),
    TableColumn("OF WHAT"),  # the last, and whole: an id is for the next command
)
_PAGE: Final = 500


@click.command("audit")
@click.argument("words", nargs=-1, metavar="[WORD]...")
@count_option(50)
@as_json_option
def command(words: tuple[str, ...], count: int, as_json: bool) -> None:
    """Show what operators changed, the latest first; only changes that contain all WORDs.

    Only `qtasks broker` and `qtasks dev` have an audit. The service is that of QSTASH_TOKEN and QSTASH_URL, or the
    `qtasks dev` that runs in this folder.
    """
    changes: list[dict[str, Any]] = []
    cursor: str | None = None
    with connected() as service:
        while len(changes) < count:
            pairs = [("count", str(min(_PAGE, count - len(changes)))), ("filter", " ".join(words))]
            page = service.console("changes", "audit", *pairs, *([("cursor", cursor)] if cursor else []))
            changes += page["changes"]
            if (cursor := page["cursor"]) is None:
                break
    if as_json:
        echo_json({"changes": changes, "hasMore": cursor is not None})
    elif changes:
        rows = [
            (
                moment(change["timeMs"]).partition(".")[0],
                change["what"],
                f"{change['count']:,}",
                change["who"],
                change["origin"],
                change["subject"],
            )
            for change in changes
        ]
        echo_table(_COLUMNS, rows, [change["note"] or "" for change in changes])
    else:
        talk("nothing was changed" if not words else f"no change contains {' '.join(words)}")
