"""`qtasks failures`: what fails, grouped: errors that differ only in numbers, ids and quoted values are one failure."""

from __future__ import annotations

from typing import Any, Final

import click

from qtasks.cli.changes import as_json_option, confirmed, dry_run_option, progress, yes_option
from qtasks.cli.operate.groups import OperatorGroup
from qtasks.cli.operate.message_shapes import echo_messages, row
from qtasks.cli.operate.service import connected, now_ms
from qtasks.cli.option_types import Duration
from qtasks.cli.printing import TableColumn, age, counted, echo_json, echo_table, moment, printable, talk
from qtasks.masking import mask_pairs
from qtasks.qstash.conversation.operation import segment
from qtasks.tasks.admin.summaries import of_row

_WHAT: Final = "failures in groups"
_HOUR_MS: Final = 3_600_000
_COLUMNS: Final = (
    TableColumn("FAILURE"),
    TableColumn("LAST", is_number=True),
    TableColumn("MESSAGES", is_number=True),
    TableColumn("DEAD", is_number=True),
    TableColumn("TASK OR DESTINATION", is_flexible=True),
)
_fingerprint = click.argument("fingerprint", metavar="FAILURE")


@click.group("failures", cls=OperatorGroup)
def command() -> None:
    """Look at failures in groups, mute a known one, and retry all dead letters of one.

    Only `qtasks broker` and `qtasks dev` have them.

    FILTER is the same as for `qtasks messages`. The service is that of QSTASH_TOKEN and QSTASH_URL, or the `qtasks dev`
    that runs in this folder.
    """


@command.command("list")
@click.argument("words", nargs=-1, metavar="[FILTER]...")
@click.option("--hours", type=click.IntRange(4, 168), default=24, show_default=True, help="Of the last hours.")
@as_json_option
def list_(words: tuple[str, ...], hours: int, as_json: bool) -> None:
    """List failures, the latest first."""
    pairs = [("hours", str(hours)), *([("filter", " ".join(words))] if words else [])]
    with connected() as service:
        failures = service.console(_WHAT, "failures", *pairs)["failures"]
    if as_json:
        echo_json({"failures": failures})
        return
    if not failures:
        talk(f"nothing failed in the last {counted(hours, 'hour')}")
        return
    now = now_ms()
    rows = [
        (
            str(each["fingerprint"]),
            age(each.get("lastMs"), now),
            f"{each.get('messages') or 0:,}",
            f"{each.get('deadLetters') or 0:,}",
            each.get("task") or each.get("destination") or "",
        )
        for each in failures
    ]
    echo_table(_COLUMNS, rows, [_detail(each) for each in failures])


def _detail(failure: dict[str, Any]) -> str:
    """The line below a failure of the list: its error, and until when it is muted."""
    error = mask_pairs(failure.get("error") or "")
    return f"({_muted(failure)}) {error}" if failure.get("muted") else error


def _muted(failure: dict[str, Any]) -> str:
    """Until when, to the minute, and by whom."""
    until = moment(failure["muted"]["untilMs"])[: len("2026-11-28 10:00")]
    return f"muted until {until} by {failure['muted']['who']}"


@command.command("show")
@_fingerprint
@click.option("--for-assistant", is_flag=True, help="As one Markdown text to give to an assistant; secrets are masked.")
@as_json_option
def show(fingerprint: str, for_assistant: bool, as_json: bool) -> None:
    """Show one failure with its newest messages."""
    with connected() as service:
        if for_assistant:
            _echo_text(service.console(_WHAT, f"{_path(fingerprint)}/assistant"), as_json=as_json)
            return
        failure = service.console(_WHAT, _path(fingerprint))
    messages = [of_row(each) for each in failure.get("rows", [])]
    if as_json:
        echo_json({**failure, "rows": [row(message) for message in messages]})
        return
    now = now_ms()
    click.echo(f"{fingerprint}  {failure.get('task') or failure.get('destination')}")
    click.echo(f"  {mask_pairs(failure.get('error') or '')}")
    click.echo(
        f"  {counted(failure.get('attempts') or 0, 'attempt')}, first {age(failure.get('firstMs'), now)} ago,"
        f" last {age(failure.get('lastMs'), now)} ago"
    )
    if failure.get("muted"):
        click.echo(printable(f"  {_muted(failure)}"))
    echo_messages(messages, now)


def _echo_text(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        echo_json(document)
        return
    for line in document["text"].splitlines():
        click.echo(printable(line))


@command.command("retry")
@_fingerprint
@yes_option
@dry_run_option
@as_json_option
def retry(fingerprint: str, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Publish all dead letters of a failure again."""
    with connected() as service:
        failure: dict[str, Any] = service.console(_WHAT, _path(fingerprint))
        expected = int(failure.get("deadLetters") or 0)
        retried = 0
        question = f"retry {counted(expected, 'dead letter')} of {fingerprint} at {service.url}"
        if expected and confirmed(question, [mask_pairs(failure.get("error") or "")], yes=yes, dry_run=dry_run):
            with progress("retry", expected) as report:
                remaining = expected
                while remaining > 0:
                    answer = service.console_post(_WHAT, f"{_path(fingerprint)}/retry", {"expected": remaining})
                    retried += answer["retried"]
                    remaining = answer["left"] if answer["retried"] else 0
                    report(min(retried, expected))
    if as_json:
        echo_json({"retried": retried})
    elif not dry_run:
        click.echo(f"published {counted(retried, 'message')}")


@command.command("mute")
@_fingerprint
@click.option(
    "--for",
    "span_ms",
    type=Duration(least="1h", most="30d"),
    default="1d",
    show_default=True,
    help="How long, such as 12h or 2d; parts of an hour count as a whole one.",
)
@as_json_option
def mute(fingerprint: str, span_ms: int, as_json: bool) -> None:
    """Keep a known failure out of the list of the console for a time.

    It is counted all the same, and this command lists it with a note.
    """
    _set_mute(fingerprint, -(-span_ms // _HOUR_MS), as_json=as_json)


@command.command("unmute")
@_fingerprint
@as_json_option
def unmute(fingerprint: str, as_json: bool) -> None:
    """Show a muted failure in the list of the console again."""
    _set_mute(fingerprint, 0, as_json=as_json)


def _set_mute(fingerprint: str, hours: int, *, as_json: bool) -> None:
    with connected() as service:
        answer = service.console_post(_WHAT, f"{_path(fingerprint)}/mute", {"hours": hours})
    failure: dict[str, Any] = answer["failure"]
    if as_json:
        echo_json({"fingerprint": failure["fingerprint"], "muted": failure["muted"]})
    else:
        text = _muted(failure) if failure["muted"] else "not muted"
        click.echo(printable(f"{failure['fingerprint']}: {text}"))


def _path(fingerprint: str) -> str:
    return f"failures/{segment(fingerprint, 'FAILURE')}"
