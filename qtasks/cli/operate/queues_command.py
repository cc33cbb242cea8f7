"""`qtasks queues`: look at queues, pause them, and set how many of their messages run at the same time."""

from __future__ import annotations

from typing import Any, Final

import click

from qtasks.cli.changes import as_json_option, confirmed, dry_run_option, progress, yes_option
from qtasks.cli.operate.completing import queue_names
from qtasks.cli.operate.groups import OperatorGroup
from qtasks.cli.operate.pause_notes import note_option, pause_line, with_note
from qtasks.cli.operate.service import ServiceConnection, connected, missing, now_ms
from qtasks.cli.printing import TableColumn, age, counted, echo_json, echo_table, moment, span, talk
from qtasks.qstash import queue as queue_api
from qtasks.qstash.conversation.operation import Operation
from qtasks.qstash.message import cancel_all

_COLUMNS: Final = (
    TableColumn("QUEUE", is_flexible=True),
    TableColumn("STATE"),
    TableColumn("PARALLELISM", is_number=True),
    TableColumn("UNFINISHED", is_number=True),
)
_PROGRESS_COLUMNS: Final = (
    TableColumn("OLDEST", is_number=True),
    TableColumn("PER MINUTE", is_number=True),
    TableColumn("EMPTY IN", is_number=True),
)
_CHANGED_COLUMN: Final = TableColumn("CHANGED")
_PROGRESS: Final = ("oldestMs", "perMinute", "timeToEmptyS")
"""What only a broker of ours says of a queue."""
_name = click.argument("name", shell_complete=queue_names)


@click.group("queues", cls=OperatorGroup)
def command() -> None:
    """Look at queues, pause and resume them, and set their parallelism.

    The service is that of QSTASH_TOKEN and QSTASH_URL, or the `qtasks dev` that runs in this folder.
    """


@command.command("list")
@as_json_option
def list_(as_json: bool) -> None:
    """List all queues; of a broker of ours also how old the oldest message is, and how quickly each queue gets on."""
    with connected() as service:
        queues = _queues(service)
    if as_json:
        echo_json({"queues": queues})
    elif queues:
        _echo(queues)
    else:
        talk("there are no queues")


@command.command("show")
@_name
@as_json_option
def show(name: str, as_json: bool) -> None:
    """Show one queue."""
    with connected() as service:
        queue = _existing(service, name, _queues(service))
    if as_json:
        echo_json(queue)
    else:
        _echo([queue])


@command.command("pause")
@_name
@note_option
@as_json_option
def pause(name: str, note: str | None, as_json: bool) -> None:
    """Pause a queue: it accepts messages and starts none."""
    _act(name, with_note(queue_api.pause(name), note), "paused", as_json=as_json)


@command.command("resume")
@_name
@as_json_option
def resume(name: str, as_json: bool) -> None:
    """Resume a paused queue."""
    _act(name, queue_api.resume(name), "resumed", as_json=as_json)


@command.command("set")
@_name
@click.option(
    "--parallelism", type=click.IntRange(1, 1000), required=True, help="How many of its messages run at the same time."
)
@click.option("--create", is_flag=True, help="Create the queue if there is no queue of this name.")
@as_json_option
def set_(name: str, parallelism: int, create: bool, as_json: bool) -> None:
    """Set the parallelism of a queue; 1 keeps its messages in order. A paused queue stays paused."""
    with connected() as service:
        queues = {queue["name"]: queue for queue in service.read("/v2/queues")}
        if name not in queues and not create:
            raise missing("queue", name, list(queues))
        service.run(queue_api.upsert(name, parallelism, queues.get(name, {}).get("paused", False)))
        _echo_changed(service, name, f"parallelism {parallelism}", as_json=as_json)


@command.command("delete")
@_name
@yes_option
@dry_run_option
@as_json_option
def delete(name: str, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Delete a queue. Its unfinished messages go on without it."""
    with connected() as service:
        queue = _existing(service, name)
        touched = [f"{name}: {counted(queue['lag'], 'message')} not finished"]
        if done := confirmed(f"delete the queue {name} at {service.url}", touched, yes=yes, dry_run=dry_run):
            service.run(queue_api.delete(name))
    if as_json:
        echo_json({"name": name, "deleted": done})
    elif done:
        click.echo(f"{name}  deleted")


@command.command("purge")
@_name
@yes_option
@dry_run_option
@as_json_option
def purge(name: str, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Cancel every unfinished message of a queue."""
    with connected() as service:
        lag = _existing(service, name)["lag"]
        cancelled = 0
        question = f"cancel {counted(lag, 'message')} of the queue {name} at {service.url}"
        if confirmed(question, [], yes=yes, dry_run=dry_run):
            with progress("cancelled", lag) as report:
                while done := service.run(cancel_all({"queue": name}, 500)):
                    cancelled += done
                    report(min(cancelled, lag))
    if as_json:
        echo_json({"cancelled": cancelled})
    elif not dry_run:
        click.echo(f"cancelled {counted(cancelled, 'message')}")


def _queues(service: ServiceConnection) -> list[dict[str, Any]]:
    """The queues as the API shows them, with the progress that the console of a broker of ours adds."""
    lines = {line["name"]: line for line in service.console_if_any("queues") or []}
    queues = service.read("/v2/queues")
    return [
        {**queue, **{name: value for name, value in lines.get(queue["name"], {}).items() if name in _PROGRESS}}
        for queue in queues
    ]


def _existing(service: ServiceConnection, name: str, queues: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The queue as the API shows it, or as it is in `queues`. Raises ApiError (404) with the nearest name."""
    queues = service.read("/v2/queues") if queues is None else queues
    queue = next((queue for queue in queues if queue["name"] == name), None)
    if queue is None:
        raise missing("queue", name, [queue["name"] for queue in queues])
    return dict(queue)


def _act(name: str, operation: Operation[None], done: str, *, as_json: bool) -> None:
    with connected() as service:
        _existing(service, name)
        service.run(operation)
        _echo_changed(service, name, done, as_json=as_json)


def _echo_changed(service: ServiceConnection, name: str, done: str, *, as_json: bool) -> None:
    if as_json:
        echo_json(_existing(service, name))
    else:
        click.echo(f"{name}  {done}")


def _echo(queues: list[dict[str, Any]]) -> None:
    has_progress = any(_PROGRESS[0] in queue for queue in queues)
    now = now_ms()
    rows = [
        (
            queue["name"],
            "paused" if queue["paused"] else "running",
            f"{queue['parallelism']:,}",
            f"{queue['lag']:,}",
            *(_progress(queue, now) if has_progress else (moment(queue["updatedAt"]).partition(".")[0],)),
        )
        for queue in queues
    ]
    columns = (*_COLUMNS, *(_PROGRESS_COLUMNS if has_progress else (_CHANGED_COLUMN,)))
    echo_table(columns, rows, [pause_line(queue) for queue in queues])


def _progress(queue: dict[str, Any], now: int) -> tuple[str, str, str]:
    """The age of the oldest message, the rate, and the time until the queue is empty; empty texts: unknown, or none."""
    oldest, per_minute, left_s = (queue.get(name) for name in _PROGRESS)
    rate = "" if per_minute is None else f"{per_minute:,.1f}"
    return age(oldest, now), rate, span(1000 * left_s) if left_s else ""
