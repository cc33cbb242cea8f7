"""`qtasks send`: call a task by its name, without its code."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from qtasks.cli.operate.completing import task_names
from qtasks.error_codes import ErrorCode
from qtasks.errors import ArgumentsError, ResultTimeout, TaskFailed, did_you_mean

if TYPE_CHECKING:
    from qtasks.cli.operate.running_tasks import RunningTask
    from qtasks.tasks.send.outgoing import Outgoing

_NEGATIVE: Final = re.compile(r"-\d.*")
_POSITIONAL: Final = "\0"
"""Marks an argument that looks like an option; no argument of a process can contain this character."""


class _SendCommand(click.Command):
    """Reads ``-2`` as a number, not as an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with_value = {name for option in self.params for name in option.opts if not getattr(option, "is_flag", True)}
        marked = [
            _POSITIONAL + arg if _NEGATIVE.fullmatch(arg) and earlier not in with_value else arg
            for earlier, arg in zip(["", *args], args, strict=False)
        ]
        return super().parse_args(ctx, marked)


@click.command("send", cls=_SendCommand)
@click.argument("task", shell_complete=task_names)
@click.argument("args", nargs=-1)
@click.option("--kwargs", "kwargs_text", default="{}", metavar="JSON", help="Named arguments as a JSON object.")
@click.option("--delay", default=None, metavar="DURATION", help="Run it after this time, such as 10s or 1h30m.")
@click.option("--encrypt", is_flag=True, help="Encrypt it with QTASKS_SECRET_KEY, for a task with encrypt=True.")
@click.option("--wait", is_flag=True, help="Wait for the result and print it as JSON.")
@click.option("--timeout", default=60.0, show_default=True, metavar="SECONDS", help="How long --wait waits.")
def command(
    task: str, args: tuple[str, ...], kwargs_text: str, delay: str | None, encrypt: bool, wait: bool, timeout: float
) -> None:
    """Send a call of TASK with ARGS to the configured broker, or to the `qtasks dev` that runs in this folder.

    Each of ARGS is read as JSON if it is valid JSON (2, true, '"2"', '[1, 2]'), otherwise as text. The call has the
    options of its task, such as retries and queue, if the application answers; nothing is sent if it answers that it
    has no such task.
    """
    # Imported here, so that --help and completion stay quick.
    from qtasks.cli.operate.running_tasks import names_of_tasks, running_task
    from qtasks.tasks.app import QTasks

    tasks = QTasks()

    # The code of the task is not here: arguments are sent as they are and checked where the task runs.
    @tasks.task(name=task, encrypt=encrypt)
    def unknown(*args: Any, **kwargs: Any) -> Any: ...

    kwargs = _read_kwargs(kwargs_text)
    call = unknown.using(delay=delay) if delay is not None else unknown
    with tasks:
        application = tasks.runtime.settings()
        _check_name(task, names_of_tasks(application))
        message = call.message(tuple(map(_read_argument, args)), kwargs)
        if not encrypt and (described := running_task(application, task)) is not None:
            message = _as_described(message, described)
        result = call.send_message(message)
        click.echo(f"{result.message_id}  {result.id}", err=wait)
        if wait:
            try:
                click.echo(json.dumps(result.get(timeout=timeout), ensure_ascii=False, default=repr))
            except (TaskFailed, ResultTimeout) as error:
                raise click.ClickException(str(error)) from None


def _as_described(message: Outgoing, described: RunningTask) -> Outgoing:
    """The call with the options of its task. Raises ArgumentsError if only the application can make it."""
    if described.refusal is not None:
        raise ArgumentsError(
            f"{message.task} cannot be called from here: {described.refusal}",
            fix="call it from code of the application",
            code=ErrorCode.COMMAND_OPTION_INVALID,
        )
    from qtasks.protocol.labels.argument_labels import labels_of
    from qtasks.protocol.messages import changed

    call, usual = message.envelope, described.envelope
    return replace(
        message,
        options=changed(described.options, delay_ms=message.options.delay_ms),
        queue=described.queue,
        envelope=usual._replace(call_id=call.call_id, args=call.args, kwargs=call.kwargs),
        argument_labels=labels_of(described.searchable, call.args, call.kwargs),
    )


def _check_name(task: str, names: list[str] | None) -> None:
    """Raise ArgumentsError for a task that is not among `names`; None: they are not known."""
    if names is not None and task not in names:
        raise ArgumentsError(
            f"there is no task {task!r}{did_you_mean(task, names)}",
            details={"known": ", ".join(names) or "none"},
            code=ErrorCode.TASK_UNKNOWN,
        )


def _read_argument(text: str) -> Any:
    text = text.removeprefix(_POSITIONAL)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _read_kwargs(text: str) -> dict[str, Any]:
    try:
        kwargs = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArgumentsError(
            f"--kwargs is not JSON: {error}",
            fix="""write it as '{"name": "Ada"}'""",
            code=ErrorCode.COMMAND_OPTION_INVALID,
        ) from None
    if not isinstance(kwargs, dict):
        raise ArgumentsError(
            "--kwargs is not a JSON object",
            fix="""write it as '{"name": "Ada"}'""",
            code=ErrorCode.COMMAND_OPTION_INVALID,
        )
    return kwargs
