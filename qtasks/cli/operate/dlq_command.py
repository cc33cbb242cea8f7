"""`qtasks dlq`: search, look at, retry and delete dead letters."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import IO, Any, Final

import click

from qtasks.cli.changes import as_json_option, confirmed, dry_run_option, progress, yes_option
from qtasks.cli.operate.completing import dead_letter_ids
from qtasks.cli.operate.editing import edited_body
from qtasks.cli.operate.groups import OperatorGroup
from qtasks.cli.operate.masked import MaskedMessages
from qtasks.cli.operate.message_shapes import echo_dead_letters, echo_message, echo_newest
from qtasks.cli.operate.messages_command import echo_published
from qtasks.cli.operate.service import ServiceConnection, connected, now_ms
from qtasks.cli.option_types import count_option
from qtasks.cli.printing import counted, echo_json, talk
from qtasks.qstash.conversation.operation import segment
from qtasks.tasks.admin import actions
from qtasks.tasks.admin.republish import publish_again
from qtasks.tasks.admin.searches import dead_letters
from qtasks.tasks.admin.summaries import DeadLetterSummary

ID: Final = re.compile(r"\d+-\d+")
"""The form of the id of a dead letter."""
_words = click.argument("words", nargs=-1, metavar="[FILTER]...")
_id = click.argument("dlq_id", metavar="ID", shell_complete=dead_letter_ids)
_targets = click.argument("targets", nargs=-1, metavar="ID... or FILTER...", shell_complete=dead_letter_ids)
_all = click.option("--all", "everything", is_flag=True, help="All dead letters.")


@click.group("dlq", cls=OperatorGroup)
def command() -> None:
    """Search, look at, retry and delete dead letters, such as `qtasks dlq retry task:charge error:timeout`.

    FILTER is the same as for `qtasks messages`. The service is that of QSTASH_TOKEN and QSTASH_URL, or the `qtasks dev`
    that runs in this folder.
    """


@command.command("list")
@_words
@count_option(20, 10_000)
@as_json_option
def list_(words: tuple[str, ...], count: int, as_json: bool) -> None:
    """List dead letters, newest first."""
    with connected() as service:
        newest, has_more = _newest(service, " ".join(words), count)
    echo_newest(
        "dead letter",
        newest,
        echo_dead_letters,
        now_ms=now_ms(),
        has_more=has_more,
        is_filtered=bool(words),
        as_json=as_json,
    )


@command.command("show")
@_id
@click.option("--reveal", is_flag=True, help="Show the body with its secrets.")
@as_json_option
def show(dlq_id: str, reveal: bool, as_json: bool) -> None:
    """Show a dead letter: the message, and the last response."""
    with connected() as service:
        letter = service.read(f"/v2/dlq/{segment(dlq_id, 'ID')}")
        masking = MaskedMessages.of(service, [letter])
    if as_json:
        echo_json(letter if reveal else masking.document(letter))
        return
    click.echo(f"{letter['dlqId']}  {letter['messageId']}")
    echo_message({**letter, "lastError": letter.get("error")}, now_ms(), masking, reveal=reveal)


@command.command("retry")
@_targets
@_all
@yes_option
@dry_run_option
@as_json_option
def retry(targets: tuple[str, ...], everything: bool, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Publish dead letters again, by their ids or by a filter. It removes them from the dead letters."""
    published = _change(targets, everything, "retry", actions.retry_dead_letters, yes=yes, dry_run=dry_run) or []
    if as_json:
        echo_json({"messages": [{"messageId": message_id} for message_id in published]})
    elif not dry_run:
        click.echo(f"published {counted(len(published), 'message')}")


@command.command("delete")
@_targets
@_all
@yes_option
@dry_run_option
@as_json_option
def delete(targets: tuple[str, ...], everything: bool, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Delete dead letters, by their ids or by a filter."""
    deleted = _change(targets, everything, "delete", actions.delete_dead_letters, yes=yes, dry_run=dry_run) or 0
    if as_json:
        echo_json({"deleted": deleted})
    elif not dry_run:
        click.echo(f"deleted {counted(deleted, 'dead letter')}")


@command.command("edit")
@_id
@click.option("--body", "file", type=click.File("rb"), help="Take the body from this file; - is standard input.")
@as_json_option
def edit(dlq_id: str, file: IO[bytes] | None, as_json: bool) -> None:
    """Change the body of a dead letter in $EDITOR, publish it once more, and delete the dead letter."""
    with connected() as service:
        letter = service.steps(actions.get_dead_letter(dlq_id))
        body = edited_body(letter, file)
        if body is None:
            talk("the body is unchanged: nothing was published; `qtasks dlq retry` publishes it as it is")
            return
        published = service.steps(publish_again(letter, body, asks_console=not service.settings.is_hosted))
        service.steps(actions.delete_dead_letters([dlq_id]))
    echo_published([published], as_json=as_json)


def _change(
    targets: tuple[str, ...], everything: bool, verb: str, act: Callable[..., Any], *, yes: bool, dry_run: bool
) -> Any:
    """Do `act` with the ids that are meant, after a question; None if nothing was done."""
    if bool(targets) == everything:
        raise click.UsageError(f"name what to {verb}: ids, a filter such as task:NAME, or --all")
    with connected() as service:
        if everything or not all(ID.fullmatch(target) for target in targets):
            selected, _ = _select(service, " ".join(targets), None)
            names = [f"{letter.dlq_id}  {letter.task or letter.destination}" for letter in selected]
            ids = [letter.dlq_id for letter in selected]
        else:
            ids = names = list(targets)
        if not ids:
            talk("no dead letter matches")
            return None
        question = f"{verb} {counted(len(ids), 'dead letter')} at {service.url}"
        if not confirmed(question, names, yes=yes, dry_run=dry_run):
            return None
        with progress(verb, len(ids)) as report:
            return service.steps(act(ids, report))


def _newest(service: ServiceConnection, text: str, count: int) -> tuple[list[DeadLetterSummary], bool]:
    """The newest dead letters that match, newest first; and whether there are more.

    A service that does not know the order `latestFirst` begins with the oldest: then all are read.
    """
    selected, has_more = _select(service, text, max(2, count))
    if has_more and selected[0].failed_ms < selected[-1].failed_ms:
        selected, has_more = _select(service, text, None)
    selected.sort(key=lambda letter: letter.failed_ms, reverse=True)
    return selected[:count], has_more or len(selected) > count


def _select(service: ServiceConnection, text: str, count: int | None) -> tuple[list[DeadLetterSummary], bool]:
    """See `ServiceConnection.collect`."""
    return service.collect(dead_letters, lambda page: page.dead_letters, text, count)
