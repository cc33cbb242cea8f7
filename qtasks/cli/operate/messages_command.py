"""`qtasks messages`: search, look at, cancel and retry messages."""

from __future__ import annotations

from typing import IO

import click

from qtasks.cli.changes import as_json_option, confirmed, dry_run_option, progress, yes_option
from qtasks.cli.operate.call_shapes import echo_call, echo_flow, read_call
from qtasks.cli.operate.completing import message_ids
from qtasks.cli.operate.editing import edited_body
from qtasks.cli.operate.groups import OperatorGroup
from qtasks.cli.operate.masked import MaskedMessages
from qtasks.cli.operate.message_shapes import attempt, echo_attempts, echo_message, echo_messages, echo_newest
from qtasks.cli.operate.service import ServiceConnection, connected, now_ms
from qtasks.cli.option_types import count_option
from qtasks.cli.printing import counted, echo_json, moment, printable, talk
from qtasks.qstash.conversation.operation import segment
from qtasks.tasks.admin import actions
from qtasks.tasks.admin.republish import publish_again
from qtasks.tasks.admin.searches import messages
from qtasks.tasks.admin.summaries import MessageSummary
from qtasks.tasks.send.end_callback import END_TASK

_NO_REPORTS = f"-task:{END_TASK}"
_ENDED = ("delivered", "failed", "canceled")
_words = click.argument("words", nargs=-1, metavar="[FILTER]...")
_ids = click.argument("ids", nargs=-1, required=True, metavar="ID...", shell_complete=message_ids)
_id = click.argument("message_id", metavar="ID", shell_complete=message_ids)


@click.group("messages", cls=OperatorGroup)
def command() -> None:
    """Search, look at, cancel and retry messages, such as `qtasks messages task:charge status:failed`.

    FILTER is words such as task:NAME, status:failed, queue:NAME, key:NAME, label:TEXT, error:TEXT, id:ID, after:2h,
    before:2026-11-28 and arg.NAME:VALUE; all must hold (docs/console.md). The service is that of QSTASH_TOKEN and
    QSTASH_URL, or the `qtasks dev` that runs in this folder.
    """


@command.command("list")
@_words
@count_option(20, 10_000)
@click.option("--reports", is_flag=True, help="Also the framework's own messages, which report how a call has ended.")
@as_json_option
def list_(words: tuple[str, ...], count: int, reports: bool, as_json: bool) -> None:
    """List messages, newest first."""
    hidden = () if reports or any(word.startswith("task:") for word in words) else (_NO_REPORTS,)
    with connected() as service:
        newest, has_more = _select(service, " ".join((*words, *hidden)), count)
    is_filtered = bool(words)
    echo_newest(
        "message", newest, echo_messages, now_ms=now_ms(), has_more=has_more, is_filtered=is_filtered, as_json=as_json
    )


@command.command("show")
@_id
@click.option("--reveal", is_flag=True, help="Show the body with its secrets.")
@as_json_option
def show(message_id: str, reveal: bool, as_json: bool) -> None:
    """Show a message, what it waits for, its result and flow, its log, and where the time of its attempts went.

    ID is that of the message or of its call. Only `qtasks broker` and `qtasks dev` measure attempts, and ask the
    application for what its result backend knows.
    """
    with connected() as service:
        message = service.read(f"/v2/messages/{segment(message_id, 'ID')}")
        log = service.read("/v2/events", ("messageId", message["messageId"]))["events"]
        page = service.console_if_any(f"messages/{segment(message['messageId'], 'ID')}")
        call = read_call(service, message["messageId"])
        masking = MaskedMessages.of(service, [message, *log])
    attempts = None if page is None else [attempt(each) for each in page["attempts"]]
    if not reveal:
        call = masking.call(message, call)
    if as_json:
        if not reveal:
            message, log = masking.document(message), list(map(masking.document, log))
        echo_json({"message": message, "log": log, "attempts": attempts, "call": call})
        return
    state = message.get("state") or (log[0]["state"] if log else "")
    click.echo(f"{message['messageId']}  {state.lower()}".rstrip())
    echo_message(message, now_ms(), masking, reveal=reveal, waiting=None if page is None else page.get("waiting"))
    if call is not None:
        echo_call(call)
        if call["flow"] is not None:
            echo_flow(call["flow"])
    for entry in reversed(log):
        error = entry.get("error") or ""
        detail = f"  {printable(error if reveal else masking.text(message, error))}".rstrip()
        click.echo(f"    {moment(entry['time'])}  {entry['state']}{detail}")
    if attempts:
        click.echo()
        echo_attempts(attempts)


@command.command("cancel")
@click.argument("words", nargs=-1, required=True, metavar="ID... or FILTER...", shell_complete=message_ids)
@yes_option
@dry_run_option
@as_json_option
def cancel(words: tuple[str, ...], yes: bool, dry_run: bool, as_json: bool) -> None:
    """Cancel messages by their ids, or all that match a filter and have not ended."""
    with connected() as service:
        ids = list(words)
        if not all(word.startswith(("msg_", "call_")) for word in words):
            selected, _ = _select(service, " ".join(words), None)
            ids = [message.message_id for message in selected if message.status not in _ENDED]
        if not ids:
            talk("no message that has not ended matches")
        cancelled = 0
        if ids and confirmed(f"cancel {counted(len(ids), 'message')} at {service.url}", ids, yes=yes, dry_run=dry_run):
            with progress("cancelled", len(ids)) as report:
                cancelled = service.steps(actions.cancel(ids, report))
    if as_json:
        echo_json({"cancelled": cancelled})
    elif not dry_run and ids:
        click.echo(f"cancelled {counted(cancelled, 'message')}")


@command.command("retry")
@_ids
@as_json_option
def retry(ids: tuple[str, ...], as_json: bool) -> None:
    """Publish messages again that failed for good. See also `qtasks dlq retry FILTER`."""
    with connected() as service:
        published = service.steps(actions.retry_messages(ids))
    echo_published(published, as_json=as_json)


@command.command("again")
@_id
@as_json_option
def again(message_id: str, as_json: bool) -> None:
    """Publish a message once more as it was, also one that was delivered."""
    with connected() as service:
        message = service.steps(actions.get_message(message_id))
        published = service.steps(publish_again(message, None, asks_console=not service.settings.is_hosted))
    echo_published([published], as_json=as_json)


@command.command("edit")
@_id
@click.option("--body", "file", type=click.File("rb"), help="Take the body from this file; - is standard input.")
@as_json_option
def edit(message_id: str, file: IO[bytes] | None, as_json: bool) -> None:
    """Change the body of a message in $EDITOR, and publish it once more. The message itself stays as it is."""
    with connected() as service:
        message = service.steps(actions.get_message(message_id))
        body = edited_body(message, file)
        if body is None:
            talk("the body is unchanged: nothing was published")
            return
        published = service.steps(publish_again(message, body, asks_console=not service.settings.is_hosted))
    echo_published([published], as_json=as_json)


def echo_published(message_ids: list[str], *, as_json: bool) -> None:
    """Print the ids of new messages."""
    if as_json:
        echo_json({"messages": [{"messageId": message_id} for message_id in message_ids]})
        return
    for message_id in message_ids:
        click.echo(message_id)


def _select(service: ServiceConnection, text: str, count: int | None) -> tuple[list[MessageSummary], bool]:
    """See `ServiceConnection.collect`."""
    return service.collect(messages, lambda page: page.messages, text, count)
